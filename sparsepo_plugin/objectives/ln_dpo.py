"""Length-normalised DPO (Lambert et al. 2024, Tülu 3)."""

from pydantic import PositiveFloat

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("ln_dpo")
class LengthNormalisedDPO(Objective):
    """DPO on the mean, and not the sum, of a response's log-ratios (Lambert et al. 2024, Tülu 3).

    R = β/|y|·Σ_t r_t, each response by its own length; TRL's `loss_type: sigmoid_norm`.

    Args:
        label_smoothing: Probability that a preference label is flipped.
        beta: β, the scale of the mean; 5 in the authors' configurations.
    """

    from_host = ("label_smoothing",)

    def __init__(self, label_smoothing: float = 0.0, beta: PositiveFloat = 5.0) -> None:
        super().__init__(label_smoothing)
        self.beta = beta

    def forward(self, stats: TokenStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        advantage = (stats.policy_logps - stats.reference_logps) / tokens.count()[tokens.sequence]
        return self.output(self.beta * tokens.sum(advantage), advantage=advantage)
