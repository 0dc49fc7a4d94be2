"""TDPO (Zeng et al., ICML 2024)."""

from typing import Annotated, Literal

import torch
from pydantic import Field

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
        version: 1 or 2.
        alpha: α of v2; 0.5 by default.
    """

    expectation = "reference"

    def __init__(
        self,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        version: Literal[1, 2] = 2,
        alpha: Annotated[float, Field(ge=0)] | None = None,
    ) -> None:
        super().__init__(label_smoothing)
        if version == 1 and alpha is not None:
            raise SparsePOError("tdpo.alpha has no effect with tdpo.version: 1")
        self.beta, self.version = beta, version
        self.alpha = 0.5 if alpha is None else alpha

    def forward(self, stats: TokenStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        columns = [stats.policy_logps - stats.reference_logps, -stats.expected_log_ratio]
        log_ratio, kl = tokens.sum(torch.stack(columns))
        if self.version == 1:
            return self.output(self.beta * (log_ratio + kl))
        chosen, rejected = kl.chunk(2)
        return self.output(self.beta * (log_ratio + self.alpha * torch.cat([chosen.detach(), rejected])))
