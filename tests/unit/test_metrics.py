"""Metrics against hand-worked numbers; float32, relative tolerance of pytest.approx (1e-6)."""

import pytest
import torch

from sparsepo_plugin import MaskPair, ResponseTokens, TokenStatistics
from sparsepo_plugin.metrics import token_metrics

TOKENS = ResponseTokens(
    labels=torch.tensor([3, 4, 5, 6, 7]),
    rows=torch.arange(5),
    sequence=torch.tensor([0, 0, 1, 2, 3]),
    position=torch.tensor([0, 1, 0, 0, 0]),
    num_pairs=2,
)
KL = torch.tensor([1.0, 2.0, 3.0, 0.5, 3.5])
MASKS = MaskPair(torch.tensor([0.0, 0.6, 0.3, 0.0, 0.0]), torch.tensor([2.0, 0.0, 0.0, 1.0, 0.0]))
EXPECTED = {
    "sparsity_reward_chosen": 100 / 3,
    "sparsity_reward_rejected": 100.0,
    "sparsity_kl_chosen": 200 / 3,
    "sparsity_kl_rejected": 50.0,
    "mask_reward_mean_chosen": 0.3,
    "mask_reward_mean_rejected": 0.0,
    "mask_kl_mean_chosen": 2 / 3,
    "mask_kl_mean_rejected": 0.5,
    "token_kl_chosen": 2.0,
    "token_kl_rejected": 2.0,
    "masked_kl_chosen": 2 / 3,
    "masked_kl_rejected": 0.25,
    # Pairs are (sequence 0, 2) and (1, 3): |3 - 0.5| and |3 - 3.5|; after masking |2 - 0.5| and |0 - 0|.
    "token_kl_margin": (2.5 + 0.5) / 2,
    "masked_kl_margin": 0.75,
}


@pytest.mark.parametrize("expectation", ["reference", "policy"])
def test_by_hand(expectation):
    """The KL logged is never negative, whichever sign the expectation has."""
    zeros = torch.zeros(5)
    stats = TokenStatistics(zeros, zeros, -KL if expectation == "reference" else KL)
    metrics = token_metrics(stats, MASKS, TOKENS, expectation)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(EXPECTED)


def test_detached():
    stats = TokenStatistics(*torch.randn(3, 5, requires_grad=True))
    assert not any(value.requires_grad for value in token_metrics(stats, MASKS, TOKENS).values())


def test_a_side_without_tokens_is_zero_and_not_nan():
    tokens = ResponseTokens(torch.tensor([3]), torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), num_pairs=1)
    one = torch.ones(1)
    metrics = token_metrics(TokenStatistics(one, one, -one), MaskPair(one, one), tokens)
    assert metrics["token_kl_rejected"] == 0
    assert all(torch.isfinite(value) for value in metrics.values())
