"""Tokens whose masks are both exactly zero cost no vocabulary projection, and training is the same."""

from functools import partial

import pytest
import torch
from tiny import TWO_PAIRS, Pairs, decoder

from sparsepo_plugin import MASKS, PreferenceStep, SparsePOConfig, SparsePOError, TokenMask, divergence

PAIRS = Pairs(TWO_PAIRS)
LEARNED = {"l1_reward": 0.01, "l1_kl": 0.01}


class Half(TokenMask):
    """Zero on every second token."""

    def forward(self, features, tokens):
        return (tokens.position % 2).float()


def take(section, every_row):
    """One step on fresh tiny models."""
    step = PreferenceStep(SparsePOConfig.from_section(section), beta=0.5)
    policy, reference = decoder("llama"), decoder("llama", seed=1)
    wrapped = step.wrap(policy, reference)
    arguments = (partial(wrapped, **PAIRS.inputs), partial(reference, **PAIRS.inputs), PAIRS.tokens)
    for head in filter(None, (step.masks.reward, step.masks.kl)):
        if hasattr(head, "weight"):
            torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
            torch.nn.init.constant_(head.bias, 0.0)
            torch.nn.init.normal_(head.merge, generator=torch.Generator().manual_seed(3))
    output = step(*arguments, every_row=every_row)
    output.loss.backward()
    grads = {name: p.grad for name, p in wrapped.named_parameters() if p.grad is not None}
    return output, grads


@pytest.fixture
def projected(monkeypatch):
    """Rows that each call of the statistics projected."""
    counts = []
    original = divergence._TokenStatistics.apply

    def count(hidden, *rest):
        counts.append(len(hidden))
        return original(hidden, *rest)

    monkeypatch.setattr(divergence._TokenStatistics, "apply", count)
    return counts


@pytest.mark.parametrize("shared", [True, False])
def test_training_is_the_same(shared, projected):
    """To a float32 rounding of sums in another order."""
    full, grads = take({**LEARNED, "shared": shared}, every_row=True)
    spare, sparse_grads = take({**LEARNED, "shared": shared}, every_row=False)
    active = int((full.masks.reward.bool() | full.masks.kl.bool()).sum())
    assert 0 < active < len(PAIRS.tokens)
    assert projected == [len(PAIRS.tokens), active]
    torch.testing.assert_close(spare.loss, full.loss)
    torch.testing.assert_close(spare.chosen_rewards, full.chosen_rewards)
    assert sparse_grads.keys() == grads.keys()
    for name in grads:
        torch.testing.assert_close(sparse_grads[name], grads[name], atol=1e-6, rtol=1e-4, msg=name)


def test_metrics_of_every_token_are_left_out():
    full, _ = take(LEARNED, every_row=True)
    spare, _ = take(LEARNED, every_row=False)
    left_out = full.metrics.keys() - spare.metrics.keys()
    assert left_out == {"token_kl_chosen", "token_kl_rejected", "token_kl_margin"}
    for name, value in spare.metrics.items():
        assert value == pytest.approx(full.metrics[name], abs=1e-5), name


def test_a_mask_with_a_gradient_at_zero_does_not_skip(projected):
    """Binary: what the straight-through estimator passes at zero needs the token's statistics."""
    _, grads = take({"activation": "binary"}, every_row=True)
    output, sparse_grads = take({"activation": "binary"}, every_row=False)
    assert (output.masks.reward == 0).any()
    assert projected == [len(PAIRS.tokens)] * 2
    torch.testing.assert_close(sparse_grads["mask_head.reward.weight"], grads["mask_head.reward.weight"])


def test_a_mask_of_ones_own_skips_only_if_it_says_so(projected, monkeypatch):
    monkeypatch.setattr(MASKS, "_classes", {**MASKS._classes, "half": Half})
    take({"mask": "half"}, every_row=False)
    monkeypatch.setattr(Half, "zeros_have_gradient", False)
    take({"mask": "half"}, every_row=False)
    assert projected == [len(PAIRS.tokens), int((PAIRS.tokens.position % 2).sum())]


def test_no_row_left_still_trains_the_rest(projected):
    output, grads = take({"mask": "uniform", "value": 0.0}, every_row=False)
    assert projected == [0]
    assert output.loss.item() == pytest.approx(0.6931472)
    assert all((grad == 0).all() for grad in grads.values())


def test_offloaded_features_train_the_same():
    _, grads = take(LEARNED, every_row=True)
    _, offloaded = take({**LEARNED, "offload_features": True}, every_row=True)
    for name in grads:
        assert torch.equal(offloaded[name], grads[name]), name


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"activation": "binary", "metrics_every": 5}, "sparsepo.metrics_every has no effect"),
        ({"layers": "last", "offload_features": True}, "sparsepo.offload_features has no effect"),
    ],
)
def test_keys_without_effect(section, says):
    with pytest.raises(SparsePOError, match=says):
        take(section, every_row=True)
