"""TDPO (Zeng et al., ICML 2024)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat

from ..divergence import TokenStatistics
from ..errors import SparsePOError
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("tdpo")
class TDPO(Objective):
    """DPO with the sequential KL to the reference as a regulariser (Zeng et al. 2024, losses TDPO₁ and TDPO₂).

    With D = Σ_t KL(π_ref‖π) of a response, v1 has R = β·(Σ_t r_t + D) and v2 R = β·(Σ_t r_t + α·D), the chosen D of v2
    without gradient.

    Args:
        beta: β.
        label_smoothing: Probability that a preference label is flipped.
        version: 2 weighs the KL by α, and passes no gradient through that of chosen responses.
        alpha: α of version 2.
    """

    expectation = "reference"

    def __init__(
        self,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        version: Literal[1, 2] = 2,
        alpha: NonNegativeFloat = 0.5,
    ) -> None:
        super().__init__(label_smoothing)
        self.beta, self.version, self.alpha = beta, version, alpha

    @classmethod
    def refuse_idle(cls, given: Mapping[str, Any]) -> None:
        """See `Objective`."""
        if given.get("version") == 1 and "alpha" in given:
            raise SparsePOError("alpha has no effect with tdpo.version: 1")

    def forward(self, stats: TokenStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        log_ratio, kl = stats.policy_logps - stats.reference_logps, -stats.expected_log_ratio
        if self.version == 2:
            kl = self.alpha * torch.where(tokens.chosen, kl.detach(), kl)
        advantage = log_ratio + kl
        return self.output(self.beta * tokens.sum(advantage), advantage=advantage)
