"""D²PO (Shao et al., ICLR 2025)."""

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("d2po")
class D2PO(Objective):
    """DPO whose tokens count less the later they come, through the `decay` mask (Shao et al. 2025).

    R = β·Σ_t γ^t·r_t with t from 0.

    Args:
        beta: β.
        label_smoothing: Probability that a preference label is flipped.
    """

    mask = "decay"

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        self.beta = beta

    def forward(self, stats: TokenStatistics, masks: MaskPair, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        advantage = masks.reward * (stats.policy_logps - stats.reference_logps)
        return self.output(self.beta * tokens.sum(advantage), advantage=advantage)
