"""Selective-DPO (Dong 2025)."""

from ..registry import OBJECTIVES
from .weighted_dpo import WeightedDPO


@OBJECTIVES.register("selective")
class Selective(WeightedDPO):
    """DPO on the tokens on which the policy has yet to learn most, through the `log_ratio` mask (Dong 2025).

    R = β·Σ_t s(t)·r_t, s the selection.

    Args:
        beta: β.
        label_smoothing: Probability that a preference label is flipped.
    """

    chooses_mask = False
    mask = "log_ratio"
