"""Tokens whose masks are both exactly zero cost no vocabulary projection, and training is the same."""

from functools import partial

import pytest
import torch
from tiny import Pairs, decoder, make_step, runner

from sparsepo_plugin import MASKS, SparsePOError, TokenMask, divergence

PAIRS = Pairs([(3, 9), (2, 6), (3, 7), (2, 11)])
LEARNED = {"l1_reward": 0.01, "l1_kl": 0.01}


class Half(TokenMask):
    """Zero on every second token."""

    def forward(self, features, tokens):
        return (tokens.position % 2).float()


def take(section, full, **options):
    """One step on fresh tiny models, one at which the host logs or the one before."""
    reference = decoder("llama", seed=1)
    step = make_step(section, decoder("llama"), reference, **{"logging_steps": 10, **options})
    wrapped = step.policy
    for number, mask in enumerate(step.masks.children()):
        if hasattr(mask, "weight"):
            torch.nn.init.normal_(mask.weight, generator=torch.Generator().manual_seed(number))
            torch.nn.init.constant_(mask.bias, -1.0)
            torch.nn.init.normal_(mask.merge, generator=torch.Generator().manual_seed(3))
    reads = runner(reference, PAIRS.inputs)
    output = step(partial(wrapped, **PAIRS.inputs), PAIRS.tokens, reads, number=10 if full else 9)
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
    full, grads = take({**LEARNED, "shared": shared}, full=True)
    spare, sparse_grads = take({**LEARNED, "shared": shared}, full=False)
    one, other = full.masks.reward.bool(), full.masks.kl.bool()
    assert torch.equal(one, other) == shared, "two masks that are zero in different places"
    active = int((one | other).sum())
    assert 0 < int((one & other).sum()) <= active < len(PAIRS.tokens)
    assert projected == [len(PAIRS.tokens), active]
    assert (torch.stack(spare.statistics).any(0) == (one | other)).all(), "of the others nothing is said"
    torch.testing.assert_close(spare.loss, full.loss)
    torch.testing.assert_close(spare.chosen_rewards, full.chosen_rewards)
    assert sparse_grads.keys() == grads.keys()
    for name in grads:
        torch.testing.assert_close(sparse_grads[name], grads[name], atol=1e-6, rtol=1e-4, msg=name)


def test_metrics_of_every_token_are_left_out():
    full, _ = take(LEARNED, full=True)
    spare, _ = take(LEARNED, full=False)
    left_out = full.metrics.keys() - spare.metrics.keys()
    assert left_out == {"token_kl_chosen", "token_kl_rejected", "token_kl_margin"}
    for name, value in spare.metrics.items():
        assert value == pytest.approx(full.metrics[name], abs=1e-5), name


def test_a_mask_with_a_gradient_at_zero_does_not_skip(projected):
    """Binary: what the straight-through estimator passes at zero needs the token's statistics."""
    _, grads = take({"activation": "binary"}, full=True)
    output, sparse_grads = take({"activation": "binary"}, full=False)
    assert (output.masks.reward == 0).any()
    assert projected == [len(PAIRS.tokens)] * 2
    torch.testing.assert_close(sparse_grads["masks.reward.weight"], grads["masks.reward.weight"])


def test_a_mask_of_ones_own_skips_only_if_it_says_so(projected, monkeypatch):
    monkeypatch.setattr(MASKS, "_classes", {**MASKS._classes, "half": Half})
    take({"mask": "half"}, full=False)
    monkeypatch.setattr(Half, "zeros_have_gradient", False)
    take({"mask": "half"}, full=False)
    assert projected == [len(PAIRS.tokens), int((PAIRS.tokens.position % 2).sum())]


def test_no_row_left_still_trains_the_rest(projected):
    output, grads = take({"mask": "uniform", "value": 0.0}, full=False)
    assert projected == [0]
    assert output.loss.item() == pytest.approx(0.6931472)
    assert all((grad == 0).all() for grad in grads.values())


def test_offloaded_features_train_the_same():
    _, grads = take(LEARNED, full=True)
    _, offloaded = take({**LEARNED, "offload_features": True}, full=True)
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
        take(section, full=True)


@pytest.mark.parametrize(
    "activation", [{"reward": "relu", "kl": "binary"}, {"reward": "binary", "kl": "relu"}], ids=str
)
def test_one_mask_with_a_gradient_at_zero_is_enough_to_keep_all(activation, projected):
    halves = {role: {"activation": name} for role, name in activation.items()}
    output, _ = take(halves, full=False)
    assert not (output.masks.reward.bool() | output.masks.kl.bool()).all()
    assert projected == [len(PAIRS.tokens)]


def test_the_likelihood_of_the_chosen_needs_every_token(projected):
    """It is added to the loss by the host, and knows of no mask."""
    spare, _ = take(LEARNED, full=False, nll_loss=True)
    full, _ = take(LEARNED, full=True, nll_loss=True)
    assert projected == [len(PAIRS.tokens)] * 2
    assert spare.nll_loss.item() == full.nll_loss.item()


@pytest.mark.parametrize(
    ("keys", "logging_steps", "full"),
    [
        *(({}, 1, [10, 20]), ({}, 5, [10, 20]), ({}, 20, [20]), ({"metrics_every": 1}, 1, [*range(1, 25)])),
        *(({"metrics_every": 1}, 8, [8, 16, 24]), ({"metrics_every": 100}, 1, []), ({"metrics_every": 100}, 9, [])),
        # 10 and 20 are not logged, but 14 and 21; 4, 8, 12, 16, 20 and 24 are not logged or are, at 6, 12, 18, 24.
        *(({}, 7, [14, 21]), ({"metrics_every": 4}, 6, [6, 12, 18, 24])),
    ],
)
def test_steps_that_need_every_token(keys, logging_steps, full, projected):
    """Every so many, or the first of them that the host logs; evaluation always."""
    reference = decoder("llama", seed=1)
    section = {**LEARNED, **keys, "init": "linear", "layers": "last"}
    step = make_step(section, decoder("llama"), reference, logging_steps=logging_steps)
    reads = runner(reference, PAIRS.inputs)
    for number in range(1, 25):
        step(partial(step.policy, **PAIRS.inputs), PAIRS.tokens, reads, number=number)
    assert [number for number, rows in enumerate(projected, start=1) if rows == len(PAIRS.tokens)] == full
    projected.clear()
    with torch.no_grad():
        step(partial(step.policy, **PAIRS.inputs), PAIRS.tokens, reads, number=1)
    step(partial(step.policy, **PAIRS.inputs), PAIRS.tokens, reads)  # a loop that does not count
    assert projected == [len(PAIRS.tokens)] * 2
