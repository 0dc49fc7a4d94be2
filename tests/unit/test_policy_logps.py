"""Masks of the policy's own log-probabilities: which numbers they see, that no gradient passes, and on which roads.

Tolerances as in test_policy.py: 1e-6 where the same kernels run, 1e-5 against whole logits.
"""

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import LAYERS, TWO_PAIRS, WIDTH, Pairs, decoder, make_step, row_stats, runner

from sparsepo_plugin import MASKS, LossConfig, Masks, SparsePOError, TokenMask
from sparsepo_plugin.causality import first_leak
from sparsepo_plugin.divergence import _TokenStatistics
from sparsepo_plugin.masks import build_masks

PAIRS = Pairs(TWO_PAIRS)
BESIDE = {"reward": {"mask": "likely"}, "kl": {"mask": "learned"}}


class Likely(TokenMask):
    """π(y_t), zero in every second place; with what it is given noted down."""

    needs = frozenset({"policy_logps", "logps"})
    causal = False
    zeros_have_gradient = False

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def forward(self, features, tokens):
        self.seen.append(features)
        return features.policy_logps.exp() * (tokens.position % 2)


@pytest.fixture(autouse=True)
def likely(monkeypatch):
    monkeypatch.setattr(MASKS, "_classes", {**MASKS._classes, "likely": Likely})


def take(section=None, policy=None, reference=True, loss="weighted_dpo", number=1, **options):
    """One step: its output, the step, and gradients by name."""
    policy, reference = policy or decoder("llama").train(), decoder("llama", seed=1) if reference else None
    step = make_step(section or {"mask": "likely"}, policy, reference, loss=loss, **options)
    output = step(partial(step.policy, **PAIRS.inputs), PAIRS.tokens, runner(reference, PAIRS.inputs), number=number)
    output.loss.backward()
    return output, step, {name: p.grad for name, p in step.policy.named_parameters() if p.grad is not None}


def test_it_sees_the_numbers_of_the_loss_without_their_gradient():
    """And the reference's that were computed beside them."""
    output, step, _ = take()
    (seen,) = step.masks.reward.seen
    assert torch.equal(seen.policy_logps, output.statistics.policy_logps) and not seen.policy_logps.requires_grad
    assert torch.equal(seen.logps, output.statistics.reference_logps) and not seen.logps.requires_grad
    assert seen.policy_logps.dtype == torch.float32


def test_it_sees_the_rows_that_reach_the_head(monkeypatch):
    monkeypatch.setattr(Likely, "needs", frozenset({"policy_logps", "policy_hidden"}))
    policy = decoder("llama").train()
    output, step, _ = take(policy=policy)
    (seen,) = step.masks.reward.seen
    assert not seen.policy_hidden.requires_grad
    logps = policy.lm_head(seen.policy_hidden).log_softmax(-1).gather(1, PAIRS.tokens.labels[:, None])[:, 0]
    torch.testing.assert_close(logps, output.statistics.policy_logps, atol=1e-6, rtol=1e-6)


def test_gradients_are_those_of_constant_weights():
    """Whole logits of both models; the weights are numbers."""
    output, _, gradients = take()
    policy, tokens = decoder("llama").train(), PAIRS.tokens
    logits = [policy(**PAIRS.inputs).logits, decoder("llama", seed=1)(**PAIRS.inputs).logits.detach()]
    logps, ref_logps = (row_stats(each, tokens).gather(1, tokens.labels[:, None])[:, 0] for each in logits)
    advantage = logps.detach().exp() * (tokens.position % 2) * (logps - ref_logps)
    rewards = torch.stack([0.5 * advantage[tokens.sequence == s].sum() for s in range(4)])
    loss = -(rewards[:2] - rewards[2:]).sigmoid().log().mean()
    loss.backward()
    torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=1e-5)
    for name, parameter in policy.named_parameters():
        scale = max(1.0, parameter.grad.abs().max().item())
        torch.testing.assert_close(gradients[f"policy.{name}"], parameter.grad, atol=1e-5 * scale, rtol=0, msg=name)


def test_beside_a_mask_of_the_reference_alone():
    """Which learns as it does beside any other mask: the one that is constant here has the same numbers."""
    output, step, gradients = take(BESIDE, loss="sparsepo")
    assert torch.equal(output.masks.reward, output.statistics.policy_logps.exp() * (PAIRS.tokens.position % 2))
    assert step.masks.reward.seen[0].logps is not None and step.masks.request.needs > {"hidden_states", "policy_logps"}
    weights = output.masks.reward.clone()

    class Constant(TokenMask):
        def forward(self, features, tokens):
            return weights

    MASKS._classes["constant"] = Constant
    other, _, expected = take({**BESIDE, "reward": {"mask": "constant"}}, loss="sparsepo")
    assert torch.equal(output.masks.kl, other.masks.kl)
    torch.testing.assert_close(output.loss, other.loss, atol=1e-6, rtol=1e-6)
    assert gradients.keys() == expected.keys() and any(name.startswith("masks.kl") for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("section", "loss"), [({"mask": "likely"}, "weighted_dpo"), (BESIDE, "sparsepo")])
def test_no_token_is_left_out(section, loss, monkeypatch):
    """On a step at which nothing is logged, and though the mask says that it gets no gradient at zero."""
    rows, apply = [], _TokenStatistics.apply

    def count(hidden, *rest):
        rows.append(len(hidden))
        return apply(hidden, *rest)

    monkeypatch.setattr(_TokenStatistics, "apply", count)
    output, *_ = take(section, loss=loss, number=9, logging_steps=10)
    assert (output.masks.reward == 0).any() and output.full_statistics
    assert rows == [len(PAIRS.tokens)]


def test_metrics_every_has_no_effect():
    with pytest.raises(SparsePOError, match=r"weighted_dpo\.metrics_every has no effect: tokens of these masks are"):
        take({"mask": "likely", "metrics_every": 5})


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    checkpointed = decoder("llama").train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    _, step, gradients = take(policy=checkpointed)
    *_, expected = take()
    assert len(step.masks.reward.seen) == 1
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_a_new_adapter_is_its_own_reference_to_the_last_bit():
    """Both log-probabilities are of the same chunk, so that what compares them finds no difference of rounding."""
    policy = get_peft_model(decoder("llama"), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    _, step, _ = take(policy=policy.train(), reference=False)
    (seen,) = step.masks.reward.seen
    assert torch.equal(seen.policy_logps, seen.logps)
    assert "logps" not in step.policy.request.needs


def test_without_a_gradient_it_is_the_same():
    """As in an evaluation."""
    output, step, _ = take()
    reads = runner(decoder("llama", seed=1), PAIRS.inputs)
    with torch.no_grad():
        again = step(partial(step.policy, **PAIRS.inputs), PAIRS.tokens, reads)
    assert torch.equal(again.masks.reward, output.masks.reward) and again.loss.item() == output.loss.item()


def test_the_look_for_leaks_takes_the_model_for_the_policy():
    """A mask that says nothing is looked at, and found to see its own token; one that says so is passed over."""
    sequences, prompts = ([values[index] for index in (0, 2)] for values in (PAIRS.sequences, PAIRS.prompt_lens))
    masks = Masks(Likely(), build_masks(LossConfig.from_section({"layers": "last"}), WIDTH, LAYERS, seed=0).reward)
    look = partial(first_leak, masks.eval(), decoder("llama"), sequences, prompts)
    assert look() == {"kl": None}
    masks.reward.causal = True
    assert look() == {"reward": 1, "kl": None}
