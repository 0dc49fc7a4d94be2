"""AlphaPO (Gupta et al., ICML 2025)."""

import torch
from pydantic import NonNegativeFloat, PositiveFloat

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("alphapo")
class AlphaPO(Objective):
    """SimPO whose reward is another function of the mean log-probability, no reference model (Gupta et al. 2025).

    R = β·(1 − p^(−α))/α, p = exp(1/|y|·Σ_t log π(y_t)), loss = −log σ(R_chosen − R_rejected − γ); α → 0 is SimPO. As
    TRL's `loss_type: alphapo` computes it; the defaults are the paper's for Mistral-7B-Instruct, second hand.

    Args:
        label_smoothing: Probability that a preference label is flipped.
        beta: β, the scale of the reward.
        gamma: γ, the margin.
        alpha: α, the shape of the reward; 0 is SimPO.
    """

    needs_reference = False
    from_host = ("label_smoothing",)

    def __init__(
        self,
        label_smoothing: float = 0.0,
        beta: PositiveFloat = 2.5,
        gamma: NonNegativeFloat = 0.1,
        alpha: float = 0.25,
    ) -> None:
        super().__init__(label_smoothing)
        self.beta, self.gamma, self.alpha = beta, gamma, alpha

    def forward(self, stats: TokenStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        mean = tokens.mean(stats.policy_logps)
        # 1 − exp(−α·mean) by itself would lose the digits of a small α.
        reward = mean if self.alpha == 0 else -torch.expm1(-self.alpha * mean) / self.alpha
        return self.output(self.beta * reward, margin=self.gamma)
