"""SimPO (Meng et al., NeurIPS 2024)."""

from pydantic import NonNegativeFloat, PositiveFloat

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("simpo")
class SimPO(Objective):
    """Length-normalised log-probability with a target margin, no reference model (Meng et al. 2024).

    R = β/|y|·Σ_t log π(y_t), loss = −log σ(R_chosen − R_rejected − γ).

    Args:
        label_smoothing: Probability that a preference label is flipped.
        beta: β, the scale of the length-normalised reward.
        gamma: γ, the margin; β/4 in the authors' release.
    """

    needs_reference = False
    from_host = ("label_smoothing",)

    def __init__(self, label_smoothing: float = 0.0, beta: PositiveFloat = 2.0, gamma: NonNegativeFloat = 0.5) -> None:
        super().__init__(label_smoothing)
        self.beta, self.gamma = beta, gamma

    def forward(self, stats: TokenStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        advantage = stats.policy_logps / tokens.count()[tokens.sequence]
        return self.output(self.beta * tokens.sum(advantage), margin=self.gamma, advantage=advantage)
