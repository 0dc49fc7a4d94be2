"""WPO (Zhou et al., EMNLP 2024)."""

from ..divergence import CollisionStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("wpo")
class WPO(Objective):
    """DPO whose pairs count the more, the likelier the policy is to write them itself (Zhou et al. 2024).

    A pair's loss is weighted by w = min(1, exp(u_chosen + u_rejected)), u = mean_t [log π(y_t) − log Σ_v π(v)²],
    without gradient; the rest is DPO, label smoothing included. The authors' runs have β = 0.01.

    Args:
        beta: β.
        label_smoothing: Probability that a preference label is flipped.
    """

    needs_collision = True

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__(label_smoothing)
        self.beta = beta

    def forward(self, stats: CollisionStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        advantage = stats.policy_logps - stats.reference_logps
        certainty = tokens.mean((stats.policy_logps - stats.log_collision).detach())
        weights = certainty.view(2, -1).sum(0).exp().clamp(max=1)
        output = self.output(self.beta * tokens.sum(advantage), advantage=advantage, pair_weights=weights)
        output.metrics = {"pair_weight": weights.mean()}
        return output
