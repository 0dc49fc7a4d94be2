"""DPO-Positive (Pal et al. 2024, Smaug)."""

import torch
from pydantic import NonNegativeFloat

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("dpop")
class DPOPositive(Objective):
    """DPO that keeps the chosen response at least as likely as under the reference (Pal et al. 2024, Eq. 3).

    R_chosen = β·(Σr − λ·max(0, −Σr)), R_rejected = β·Σr.

    Args:
        beta: β.
        label_smoothing: Probability that a preference label is flipped.
        lambda_: λ, weight of the penalty; the YAML's key is `lambda`.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0, lambda_: NonNegativeFloat = 50.0) -> None:
        super().__init__(label_smoothing)
        self.beta, self.lambda_ = beta, lambda_

    def forward(self, stats: TokenStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        log_ratio = stats.policy_logps - stats.reference_logps
        # −λ·max(0, −Σr) is λ·Σr where Σr is negative.
        penalised = tokens.chosen & (tokens.sum(log_ratio.detach()) < 0)[tokens.sequence]
        advantage = torch.where(penalised, 1 + self.lambda_, 1.0).to(log_ratio) * log_ratio
        return self.output(self.beta * tokens.sum(advantage), advantage=advantage)
