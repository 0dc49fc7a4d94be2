"""ConfPO (Yoon et al., ICML 2025)."""

from pydantic import NonNegativeFloat, PositiveFloat

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("confpo")
class ConfPO(Objective):
    """SimPO on the tokens of which the policy is unsure, through the `confidence` mask (Yoon et al. 2025).

    R = β·Σ_t s(t)·log π(y_t) / Σ_t s(t), s the selection, loss = −log σ(R_chosen − R_rejected − γ). The loss of a pair
    is 0 where nothing of one of its responses is selected. Defaults are those of the run that the authors released.

    Args:
        label_smoothing: Probability that a preference label is flipped.
        beta: β, the scale of the length-normalised reward.
        gamma: γ, the margin.
    """

    needs_reference = False
    mask = "confidence"
    from_host = ("label_smoothing",)

    def __init__(self, label_smoothing: float = 0.0, beta: PositiveFloat = 1.5, gamma: NonNegativeFloat = 1.6) -> None:
        super().__init__(label_smoothing)
        self.beta, self.gamma = beta, gamma

    def forward(self, stats: TokenStatistics, masks: MaskPair, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        selected = tokens.sum(masks.reward)
        advantage = masks.reward * stats.policy_logps / selected.clamp(min=1)[tokens.sequence]
        weights = (selected > 0).view(2, -1).all(0).to(advantage.dtype)
        rewards = self.beta * tokens.sum(advantage)
        return self.output(rewards, margin=self.gamma, advantage=advantage, pair_weights=weights)
