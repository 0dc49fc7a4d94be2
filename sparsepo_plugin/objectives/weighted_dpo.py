"""DPO on weighted tokens, the body of every method that differs from DPO by a mask alone."""

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("weighted_dpo")
class WeightedDPO(Objective):
    """DPO whose tokens count as much as the mask of the YAML says.

    R = β·Σ_t m_u(t)·r_t: SparsePO without m_d and without L1 (paper Eq. 7).

    Args:
        beta: β.
        label_smoothing: Probability that a preference label is flipped.
    """

    chooses_mask = True
    reads_kl_mask = False

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        self.beta = beta

    def forward(self, stats: TokenStatistics, masks: MaskPair, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        advantage = masks.reward * (stats.policy_logps - stats.reference_logps)
        return self.output(self.beta * tokens.sum(advantage), advantage=advantage)
