"""PreferenceStep: what it computes around the objective, and what it says when something goes wrong."""

import logging
from functools import partial

import pytest
import torch
from tiny import TWO_PAIRS, VOCABULARY, Pairs, decoder, make_step, runner

from sparsepo_plugin import MASKS, OBJECTIVES, LossConfig, Objective, SparsePOError, TokenMask

PAIRS = Pairs(TWO_PAIRS)


class Run:
    """A step on tiny Llamas that can be taken again and again."""

    def __init__(self, section=None, pairs=PAIRS, **options):
        self.pairs = pairs
        self.policy, self.reference = decoder("llama"), decoder("llama", seed=1)
        self.step = make_step(section, self.policy, self.reference, **options)
        self.wrapped = self.step.policy

    def __call__(self, number=1):
        inputs = self.pairs.inputs
        return self.step(
            partial(self.wrapped, **inputs), self.pairs.tokens, runner(self.reference, inputs), number=number
        )


def test_output():
    out = Run({"l1_reward": 0.01})(number=10)  # one of those with every metric
    assert out.loss.dim() == 0
    assert out.loss.requires_grad
    assert out.chosen_rewards.shape == out.rejected_rewards.shape == (2,)
    assert not out.chosen_rewards.requires_grad
    assert not any(x.requires_grad for x in (*out.masks, *out.statistics, out.advantage))
    assert out.masks.reward.shape == (len(PAIRS.tokens),)
    assert out.aux_loss is None
    assert all(isinstance(value, float) for value in out.metrics.values())
    assert {
        *("sparsity_reward_chosen", "sparsity_kl_rejected", "mask_reward_mean_chosen", "token_kl_chosen"),
        *("masked_kl_rejected", "token_kl_margin", "masked_kl_margin", "l1_reward", "l1_kl", "effective_beta"),
    } <= out.metrics.keys()


def test_nll_loss_is_that_of_the_chosen_responses():
    """Mean over pairs of each response's mean, as OpenRLHF's."""
    run = Run(nll_loss=True)
    with torch.no_grad():
        logps = run.policy(**PAIRS.inputs).logits.log_softmax(-1)
    expected = []
    for s in range(2):
        sequence, prompt = PAIRS.sequences[s], PAIRS.prompt_lens[s]
        rows = logps[s, prompt - 1 : len(sequence) - 1]
        expected.append(-rows.gather(1, sequence[prompt:, None]).mean())
    out = run()
    torch.testing.assert_close(out.nll_loss, torch.stack(expected).mean(), atol=1e-5, rtol=1e-5)
    assert out.nll_loss.requires_grad
    assert Run()().nll_loss is None


@pytest.mark.parametrize("expectation", ["reference", "policy"])
def test_token_kl_is_logged_with_its_sign(expectation):
    metrics = Run({"expectation": expectation})(number=10).metrics
    assert min(metrics["token_kl_chosen"], metrics["token_kl_rejected"]) > 0


@pytest.mark.parametrize("layers", ["all", "last"])
@pytest.mark.parametrize("lens", [[(2, 1), (3, 1)], [(1, 1), (1, 1)], [(5, 9), (1, 1)]], ids=str)
def test_one_pair(lens, layers):
    out = Run({"layers": layers}, Pairs(lens))()
    out.loss.backward()
    assert torch.isfinite(out.loss)


def test_label_smoothing_reaches_the_objective():
    assert Run(label_smoothing=0.3)().loss.item() != Run()().loss.item()


def test_unknown_objective():
    with pytest.raises(SparsePOError, match="unknown objective 'nope'"):
        LossConfig.from_section({}, loss="nope")


def test_vocabularies_must_agree():
    reference = decoder("llama", vocab_size=VOCABULARY + 1)
    with pytest.raises(SparsePOError, match="the reference's vocabulary has 38 entries, the policy's 37") as caught:
        make_step({}, decoder("llama"), reference)
    assert caught.value.about == "reference"


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="sparsepo_plugin")
    return lambda: [record.getMessage() for record in caplog.records]


def test_dead_mask_is_warned_of_once(warnings):
    run = Run()
    run(1)
    assert warnings() == []
    bias = run.wrapped.masks.reward.bias.data
    bias[:] = -100
    run(2)
    run(3)
    (message,) = warnings()
    assert "step 2: the reward mask is zero on every response token" in message
    assert "sparsepo.l1_reward" in message
    assert "sparsepo.mask_lr" in message
    assert "sparsepo.min" in message
    bias[:] = 0.5
    run(4)
    bias[:] = -100
    run(5)
    assert len(warnings()) == 2
    assert "step 5" in warnings()[1]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_mask_that_is_zero_on_one_side_is_alive(side, warnings):
    """It still gets a gradient from the other."""
    run = Run()
    forward = run.wrapped.masks.reward.forward
    zero = lambda tokens: tokens.chosen if side == "chosen" else ~tokens.chosen  # noqa: E731
    run.wrapped.masks.reward.forward = lambda features, tokens: forward(features, tokens).masked_fill(
        zero(tokens), 0.0
    )
    metrics = run(1).metrics
    assert metrics[f"sparsity_reward_{side}"] == 100.0
    assert warnings() == []


def test_asking_warns_of_nothing(warnings):
    """One text says little of a mask."""
    run = Run()
    run.wrapped.masks.reward.bias.data[:] = -100
    with torch.no_grad():
        run(1)
    assert warnings() == []


def test_advice_names_the_keys_that_there_are(warnings):
    """In the section of the loss; a mask without a floor is not told to have one."""
    run = Run({"kl": {"mask": "uniform"}, "layers": "last"})
    run.wrapped.masks.reward.bias.data[:] = -100
    run(1)
    assert warnings()[0].endswith("lower sparsepo.l1_reward or sparsepo.mask_lr, or set sparsepo.min above 0")


class Weighed(Objective):
    """Weighs something else than a KL by the KL mask, and has no norm of either."""

    chooses_mask = True

    def forward(self, stats, masks, tokens):
        ratio = stats.policy_logps - stats.reference_logps
        return self.output(tokens.sum(masks.reward * ratio + masks.kl))


class Dead(TokenMask):
    """Learns, and has no option."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, features, tokens):
        return self.weight.relu().expand(len(tokens))


def test_advice_names_no_key_that_is_not_there(warnings, monkeypatch):
    monkeypatch.setitem(OBJECTIVES._classes, "weighed", Weighed)
    monkeypatch.setitem(MASKS._classes, "dead", Dead)
    Run({"mask": "dead"}, loss="weighed")(1)
    assert warnings()[0].endswith("; lower weighed.mask_lr")


def test_metrics_of_a_kl_mask_without_a_kl(monkeypatch):
    """It is reported, and watched, all the same."""
    monkeypatch.setitem(OBJECTIVES._classes, "weighed", Weighed)
    run = Run({"shared": False}, loss="weighed")
    assert {"sparsity_kl_chosen", "mask_kl_mean_rejected"} <= run().metrics.keys()
    assert "sparsity_kl_chosen" not in Run({}, loss="weighed")().metrics


def test_each_dead_mask_is_named(warnings):
    run = Run({"shared": False})
    run.wrapped.masks.kl.bias.data[:] = -100
    run(1)
    (message,) = warnings()
    assert "the kl mask" in message
    assert "sparsepo.l1_kl" in message


def dead_steps(run, number):
    return [run(number).metrics[f"dead_steps_{role}"] for role in run.wrapped.masks.names]


def test_dead_steps_are_counted_until_a_mask_comes_back(warnings):
    """Steps in a row, not micro-batches: one that is alive makes its step so, whichever it is."""
    run = Run({"shared": False})
    bias = run.wrapped.masks.kl.bias.data
    counts = []
    for number, dead in [(5, False), (6, True), (7, True), (7, True), (8, True), (8, False), (8, True), (9, True)]:
        bias[:] = -100 if dead else 0.5
        counts.append(dead_steps(run, number))
    assert counts == [[0, count] for count in (0, 1, 2, 2, 3, 0, 0, 1)]


def test_a_mask_that_is_dead_from_the_start_is_counted_from_there(warnings):
    """Also in a run that goes on from a checkpoint."""
    run = Run()
    run.wrapped.masks.reward.bias.data[:] = -100
    assert [dead_steps(run, number) for number in (41, 42)] == [[1], [2]]


@pytest.mark.parametrize("on_dead_mask", ["warn", "stop"])
def test_ten_dead_steps_stop_a_run_that_says_so(on_dead_mask, warnings):
    run = Run({"on_dead_mask": on_dead_mask, "layers": "last"})
    run(1)
    run.wrapped.masks.reward.bias.data[:] = -100
    for number in range(2, 11):
        run(number)
    (message,) = warnings()
    assert message.startswith("step 2: the reward mask is zero on every response token")
    if on_dead_mask == "warn":
        assert dead_steps(run, 11) == [10]
    else:
        with pytest.raises(
            SparsePOError, match=r"step 11, the last of 10 in a row: the reward mask is zero .*mask_lr"
        ):
            run(11)


def test_only_masks_that_learn_can_die():
    metrics = Run({"kl": {"mask": "uniform", "value": 0.0}})().metrics
    assert "dead_steps_reward" in metrics
    assert "dead_steps_kl" not in metrics


def test_dead_steps_are_those_of_training():
    run = Run()
    with torch.no_grad():
        assert "dead_steps_reward" not in run(1).metrics


def test_uniform_zero_is_not_a_dead_mask(warnings):
    Run({"mask": "uniform", "value": 0.0})()
    assert warnings() == []


@pytest.mark.parametrize("mask", ["learned", "activation", "uniform", "random"])
def test_collects_what_the_mask_reads_and_no_more(mask, monkeypatch):
    seen = []
    run = Run({"mask": mask})
    forward = run.wrapped.masks.forward
    monkeypatch.setattr(run.wrapped.masks, "forward", lambda f, tokens: (seen.append(f), forward(f, tokens))[1])
    run()
    assert (seen[0].hidden_states is not None) == (mask == "learned")
    assert (seen[0].activations is not None) == (mask == "activation")


def test_the_batches_of_an_optimizer_step_share_the_masks_step():
    """With accumulated gradients a step has several; evaluation between two steps is part of neither."""
    run, plain = Run({"mask": "random"}), Run({"mask": "random"})
    draws = [run(number).masks.reward for number in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.isclose(draws[0], draws[2]).any()
    plain(1)
    with torch.no_grad():
        plain.wrapped.eval()
        plain(2)
    plain.wrapped.train()
    assert torch.equal(plain(2).masks.reward, draws[2])


def test_learns():
    """A few steps of Adam on one batch: the loss falls, and policy and masks both move."""
    run = Run({"l1_reward": 1e-3})
    optimizer = torch.optim.AdamW([{"params": run.policy.parameters(), "lr": 1e-3}, run.wrapped.mask_group()])
    before = {name: parameter.detach().clone() for name, parameter in run.wrapped.named_parameters()}
    losses = []
    for number in range(10):
        out = run(number)
        losses.append(out.loss.item())
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    for part in ("policy.", "masks."):
        moved = [not torch.equal(before[n], p) for n, p in run.wrapped.named_parameters() if n.startswith(part)]
        assert any(moved)
