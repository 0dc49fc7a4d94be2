"""What is not finite is named with its step, its pairs and its term, and the advice is about its cause."""

import logging
from functools import partial

import pytest
import torch
from tiny import TWO_PAIRS, Pairs, decoder, make_step, runner
from torch import nn

from sparsepo_plugin import OBJECTIVES, Objective, ReferenceFeatures, SparsePOError
from sparsepo_plugin.faults import (
    NonFinite,
    Term,
    fault_of_gradient,
    fault_of_loss,
    fault_of_weight,
    first_non_finite,
)
from sparsepo_plugin.objectives.sparsepo import SparsePO

PAIRS = Pairs(TWO_PAIRS)
BOTH = r", pairs \[0, 1\] of the micro-batch; "
NAN, INF = torch.nan, torch.inf


class Run:
    """A step on tiny Llamas, the parts of which a test breaks."""

    def __init__(self, section=None, dtype=torch.float32, **options):
        self.policy, self.reference = decoder("llama").to(dtype), decoder("llama", seed=1).to(dtype)
        self.step = make_step({"shared": False, **(section or {})}, self.policy, self.reference, **options)
        self.masks = self.step.policy.masks

    def __call__(self, number=1):
        frozen = runner(self.reference, PAIRS.inputs)
        return self.step(partial(self.step.policy, **PAIRS.inputs), PAIRS.tokens, frozen, number=number)

    def fault(self, number=1) -> NonFinite:
        with pytest.raises(NonFinite) as caught:
            self(number)
        assert "\n" not in str(caught.value)
        return caught.value


def check(fault, says, about=None, lasting=False):
    assert says in str(fault)
    assert (fault.about, fault.lasting) == (about, lasting)


def break_weight(model):
    model.model.layers[1].mlp.up_proj.weight.data[3, 2] = NAN


def overflow(model):
    """Finite weights, and hidden states or logits that are not."""
    model.model.norm.weight.data[:] = 6e4 if model.dtype == torch.float16 else 3e38


WEIGHT = "its weight model.layers.1.mlp.up_proj.weight"
BROKEN = "the model's files are broken, or their numbers do not fit into"
SMALLER = "a lower learning rate, of the policy or of its masks, or clipped gradients may help"
HALF = "its weights are finite: float16 cannot hold what they compute, bfloat16 or float32 can"


@pytest.mark.parametrize(
    ("broken", "number", "says", "about", "lasting"),
    [
        (break_weight, 1, f"{WEIGHT} is not finite, and no step has changed it: {BROKEN} float32", "policy", True),
        (break_weight, 7, f"{WEIGHT} is not finite since an update: {SMALLER}", "learning rate", True),
        (overflow, 1, "its weights are finite and no step has changed them: the model is at fault", None, False),
        (overflow, 7, f"its weights are finite and may have grown: {SMALLER}", "learning rate", False),
    ],
)
def test_policy(broken, number, says, about, lasting):
    run = Run()
    broken(run.policy)
    head = f"not finite at step {number}: log-probabilities of the policy, pairs [0, 1] of the micro-batch; "
    check(run.fault(number), head + says, about, lasting)


def test_policy_in_float16():
    run = Run(dtype=torch.float16)
    overflow(run.policy)
    check(run.fault(7), f"log-probabilities of the policy, pairs [0, 1] of the micro-batch; {HALF}", "dtype")


@pytest.mark.parametrize(
    ("broken", "dtype", "says", "about", "lasting"),
    [
        (break_weight, torch.float32, f"{WEIGHT} is not finite: {BROKEN} float32", "reference", True),
        (overflow, torch.float32, "its weights are finite: the model is at fault, or these texts", "reference", False),
        (overflow, torch.float16, HALF, "dtype", False),
    ],
)
def test_reference(broken, dtype, says, about, lasting):
    run = Run(dtype=dtype)
    broken(run.reference)
    check(
        run.fault(7),
        f"step 7: log-probabilities of the reference, pairs [0, 1] of the micro-batch; {says}",
        about,
        lasting,
    )


def test_the_pairs_are_those_with_the_broken_token():
    """A prompt token of the second pair's chosen response, and of no other sequence."""
    pairs = Pairs(TWO_PAIRS)
    token = pairs.input_ids[1, 0]
    pairs.input_ids[pairs.input_ids == token] = token - 1
    pairs.input_ids[1, 0] = token
    run = Run()
    run.policy.model.embed_tokens.weight.data[token] = NAN
    with pytest.raises(NonFinite, match=r"log-probabilities of the policy, pairs \[1\] of the micro-batch"):
        run.step(partial(run.step.policy, **pairs.inputs), pairs.tokens, runner(run.reference, pairs.inputs), number=1)


def test_token_kl():
    """The log-probabilities of the written tokens can be finite where the expectation is not."""
    run = Run()
    forward = run.step.policy.forward

    def broken(**inputs):
        output = forward(**inputs)
        output["statistics"][2, PAIRS.tokens.sequence == 3] = INF
        return output

    run.step.policy.forward = broken
    check(run.fault(2), "step 2: token KL, pairs [1] of the micro-batch; its weights are finite", "learning rate")


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("role", ["reward", "kl"])
def test_a_parameter_of_a_mask(role, value):
    run = Run()
    run(1)
    run.masks.get_submodule(role).weight.data[0, 0] = value
    says = (
        f"weights of {role} mask 'learned', pairs [0, 1] of the micro-batch; its parameter weight is not finite since "
    )
    check(run.fault(2), says + "an update: lower sparsepo.mask_lr", lasting=True)


def test_a_mask_that_has_grown():
    run = Run({"layers": "last"})
    run(1)
    run.masks.reward.weight.data[:] = 3e38 * torch.sign(run.masks.reward.weight)
    check(run.fault(2), "its parameters are finite and may have grown: lower sparsepo.mask_lr, or look at its code")


@pytest.mark.parametrize(("side", "pair"), [("chosen", 0), ("rejected", 1)])
def test_the_code_of_a_mask(side, pair):
    run = Run({"mask": "uniform", "shared": True})
    run(1)
    forward, sequence = run.masks.reward.forward, pair if side == "chosen" else pair + 2
    run.masks.reward.forward = lambda features, tokens: forward(features, tokens).masked_fill(
        tokens.sequence == sequence, NAN
    )
    says = (
        f"weights of reward mask 'uniform', pairs [{pair}] of the micro-batch; its parameters and what it reads are "
    )
    check(run.fault(2), says + "finite: its code is at fault")


@pytest.mark.parametrize(
    ("read", "says", "about"),
    [
        ("hidden_states", "nor is what it reads of the reference, hidden_states: its weights are finite", "reference"),
        ("oracle_logps", "nor is what it reads of sparsepo.oracle", None),
    ],
)
def test_what_a_mask_reads(read, says, about):
    """Of a layer that its own model does without, or of an oracle."""
    run = Run()
    term = Term("weights of a mask", "reward", torch.tensor([1.0, NAN]), torch.tensor([0, 1]))
    features = ReferenceFeatures(last_hidden=torch.ones(2, 3), **{read: torch.tensor([1.0, INF])})
    fault = fault_of_loss([term], run.step.policy, features, runner(run.reference, PAIRS.inputs), 3)
    check(fault, f"weights of a mask, pairs [1] of the micro-batch; {says}", about)


def test_l1():
    run = Run({"l1_kl": 3e38})
    says = (
        "L1 term l1_kl, pairs [0, 1] of the micro-batch; the weights themselves are finite: lower sparsepo.l1_kl or "
    )
    check(run.fault(1), says + "sparsepo.mask_lr")


@pytest.mark.parametrize(("number", "about"), [(1, None), (2, "learning rate")])
def test_reward(number, about):
    fault = Run(beta=1e38).fault(number)
    says = (
        "reward, pairs [1] of the micro-batch; all that loss 'sparsepo' reads is finite: its code or its options are "
    )
    check(fault, says, about)
    assert (SMALLER in str(fault)) == (about is not None)


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * NAN


@pytest.fixture
def objective(monkeypatch):
    """Registers SparsePO with a change of its output, or of the log-probabilities that it is given."""

    def register(change=lambda output: output, of_logps=lambda logps: logps):
        class Changed(SparsePO):
            def forward(self, stats, masks, tokens):
                return change(
                    super().forward(stats._replace(policy_logps=of_logps(stats.policy_logps)), masks, tokens)
                )

        monkeypatch.setitem(OBJECTIVES._classes, "changed", Changed)

    return register


def infinite(output):
    output.loss = output.loss + INF
    return output


def test_loss(objective):
    objective(infinite)
    check(
        Run(loss="changed").fault(1), "loss, pairs [0, 1] of the micro-batch; all that loss 'changed' reads is finite"
    )


def test_an_infinite_mask_under_a_finite_loss(objective):
    def finite(output):
        output.loss, output.rejected_rewards = output.loss.nan_to_num(), torch.zeros(2)
        output.chosen_rewards, output.metrics = torch.zeros(2), {}
        return output

    objective(finite)
    run = Run({"layers": "last"}, loss="changed")
    run(1)
    run.masks.kl.bias.data[:] = INF
    check(run.fault(2), "weights of kl mask 'learned', pairs [0, 1]", lasting=True)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="sparsepo_plugin")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_loss_that_is_skipped_has_no_finite_gradient(objective, warnings):
    """Also an infinite one, whose gradient is that of the finite loss; so that the host sees it on every rank."""
    objective(infinite)
    run = Run({"on_nonfinite": "skip"}, loss="changed")
    run(4).loss.backward()
    (message,) = warnings()
    assert "not finite at step 4: loss, pairs [0, 1] of the micro-batch" in message
    gradients = [p.grad for p in run.step.policy.parameters() if p.grad is not None]
    assert len(gradients) > 20 and not any(gradient.isfinite().all() for gradient in gradients)


def test_skipping_does_not_mend_a_weight():
    run = Run({"on_nonfinite": "skip"})
    break_weight(run.policy)
    run.fault(1)


def test_a_host_may_decide_for_itself(objective):
    objective(infinite)
    told = []
    run = Run(loss="changed", on_fault=told.append)
    assert run(4).loss.isnan()
    assert [type(fault) for fault in told] == [NonFinite]


def broken_second_chosen(logps):
    """The identity, with a gradient that is NaN on the tokens of the second chosen response."""
    here = PAIRS.tokens.sequence == 1
    return logps.masked_scatter(here, Broken.apply(logps[here]))


def test_a_gradient_by_statistics(objective):
    objective(of_logps=broken_second_chosen)
    run = Run(loss="changed")
    run(3).loss.backward()
    fault = run.step.gradients.fault()
    check(
        fault, "not finite at step 3: gradient of the loss by log-probabilities of the policy, pairs [1] of the micro-"
    )
    assert str(fault).endswith("the loss is finite: the gradient of loss 'changed' itself is at fault")


def test_a_gradient_by_masks(objective):
    def broken(output):
        output.loss = output.loss + 0 * Broken.apply(seen["kl"]).sum()
        return output

    seen = {}
    objective(broken)
    run = Run(loss="changed")
    forward = run.step.objective.forward
    run.step.objective.forward = lambda stats, masks, tokens: (
        seen.update(kl=masks.kl),
        forward(stats, masks, tokens),
    )[1]
    run(3).loss.backward()
    check(run.step.gradients.fault(), "gradient of the loss by weights of kl mask 'learned', pairs [0, 1]")


def test_gradients_of_earlier_steps_are_let_go(objective):
    objective(of_logps=Broken.apply)
    run = Run(loss="changed")
    run(3).loss.backward()
    run(3).loss.backward()
    assert run.step.gradients.fault() is not None
    run(4)
    assert run.step.gradients.fault() is None


def test_a_gradient_that_is_sound_is_no_fault():
    run = Run({"shared": True})
    run(1).loss.backward()
    assert run.step.gradients.fault() is None


@pytest.mark.parametrize(
    ("name", "dtype", "says", "about"),
    [
        ("masks.kl.bias", torch.float32, "the gradient of kl mask 'learned' itself is at fault", None),
        ("policy.lm_head.weight", torch.float32, SMALLER, "learning rate"),
        ("policy.lm_head.weight", torch.bfloat16, "what overflows in bfloat16 may not in float32", "dtype"),
    ],
)
def test_a_gradient_by_a_parameter(name, dtype, says, about):
    fault = fault_of_gradient(name, Run(dtype=dtype).step.policy, 5)
    part, _, own = name.partition(".")
    head = f"not finite at step 5: gradient of {own} of the {part}, any pair of the step; the loss is finite: "
    check(fault, head + says, about)


@pytest.mark.parametrize(
    ("name", "says", "about"),
    [
        ("masks.kl.bias", "weight kl.bias of the masks, after the update; lower sparsepo.mask_lr", None),
        (
            "policy.lm_head.weight",
            f"weight lm_head.weight of the policy, after the update; {SMALLER}",
            "learning rate",
        ),
    ],
)
def test_a_weight(name, says, about):
    check(fault_of_weight(name, Run().step.policy, 5), f"not finite at step 5: {says}", about, lasting=True)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_first_non_finite(value, dtype):
    """The second of two broken parameters is not named, and neither integers nor what is empty is looked at."""
    model = nn.Module()
    for name in ("one", "two", "three"):
        model.register_parameter(name, nn.Parameter(torch.ones(2, 3, dtype=dtype)))
    model.register_parameter("whole", nn.Parameter(torch.ones(2, dtype=torch.uint8), requires_grad=False))
    model.register_parameter("empty", nn.Parameter(torch.ones(0, dtype=dtype)))
    assert first_non_finite(model) is None
    model.two.data[1, 2] = model.three.data[0, 0] = value
    assert first_non_finite(model) == "two"
    model.two.data[1, 2] = model.three.data[0, 0] = 1
    model.empty.ds_tensor = torch.tensor([1.0, value], dtype=dtype)  # as ZeRO-3 keeps its share of a parameter
    assert first_non_finite(model) == "empty"


def test_sound_numbers_cost_one_copy_from_the_device(monkeypatch):
    """That of the metrics; nothing else asks whether anything is finite."""
    run = Run()
    run(1)
    copies, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: copies.append(tensor) or tolist(tensor))
    for place in (torch, torch.Tensor):
        monkeypatch.setattr(place, "isfinite", None)
    run(2)
    assert len(copies) == 1


class Silent(Objective):
    """Logs nothing and reads no masks."""

    def forward(self, stats, masks, tokens):
        return self.output(tokens.sum(stats.policy_logps - stats.reference_logps))


def test_a_loss_without_metrics(monkeypatch):
    monkeypatch.setitem(OBJECTIVES._classes, "silent", Silent)
    reference = decoder("llama", seed=1)
    step = make_step({}, decoder("llama"), reference, loss="silent")
    take = partial(step, partial(step.policy, **PAIRS.inputs), PAIRS.tokens, runner(reference, PAIRS.inputs))
    assert take().metrics == {}
    step.policy.policy.lm_head.weight.data[0] = NAN
    with pytest.raises(SparsePOError, match="log-probabilities of the policy" + BOTH):
        take()
