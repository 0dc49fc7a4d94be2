"""SePO (Yang et al. 2024), the second stage."""

from pydantic import PositiveFloat

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("sepo")
class SePO(Objective):
    """Tokens selected by an oracle's token reward, through the `selected` mask (Yang et al. 2024).

    R = γ·Σ_t s(t)·log π(y_t) / Σ_t s(t), s the selection. The first stage is an oracle trained with `loss: dpo`; the
    model given as reference is what that oracle started from, and only serves the selection.

    Args:
        label_smoothing: Probability that a preference label is flipped.
        gamma: γ, the scale of the length-normalised reward; the authors' release has none.
    """

    needs_reference = False
    mask = "selected"
    from_host = ("label_smoothing",)

    def __init__(self, label_smoothing: float = 0.0, gamma: PositiveFloat = 1.0) -> None:
        super().__init__(label_smoothing)
        self.gamma = gamma

    def forward(self, stats: TokenStatistics, masks: MaskPair, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        selected = tokens.sum(masks.reward).clamp(min=1)
        advantage = masks.reward * stats.policy_logps / selected[tokens.sequence]
        return self.output(self.gamma * tokens.sum(advantage), advantage=advantage)
