"""DPO (Rafailov et al., NeurIPS 2023)."""

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("dpo")
class DPO(Objective):
    """Every token of a response counts the same (Rafailov et al. 2023, Eq. 7).

    R = β·Σ_t r_t, loss = −log σ(R_chosen − R_rejected): what a host's own DPO computes.

    Args:
        beta: β.
        label_smoothing: Probability that a preference label is flipped.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        self.beta = beta

    def forward(self, stats: TokenStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        advantage = stats.policy_logps - stats.reference_logps
        return self.output(self.beta * tokens.sum(advantage), advantage=advantage)
