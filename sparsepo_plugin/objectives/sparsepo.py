"""SparsePO (Christopoulou et al., Findings of EMNLP 2025)."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import NonNegativeFloat
from torch import Tensor

from ..divergence import Expectation, TokenStatistics
from ..errors import SparsePOError
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput


@OBJECTIVES.register("sparsepo")
class SparsePO(Objective):
    """Every token has a weight on its reward and on its KL (paper Eq. 6–8).

    R = β·Σ_t (m_u(t)·r_t − m_d(t)·e_t), r_t = log π(y_t) − log π_ref(y_t), and
    loss = −log σ(R_chosen − R_rejected) + λ_u‖m_u‖₁ + λ_d‖m_d‖₁. m_u = 1, m_d = 0 is DPO; 1 and 1 is TDPO v1.

    Args:
        beta: β.
        l1_reward: λ_u, weight of the L1 norm of m_u.
        l1_kl: λ_d, weight of the L1 norm of m_d; with a shared mask the two add up.
        label_smoothing: Probability that a preference label is flipped.
        l1_reduction: Norm over a response's tokens: `sum` as in the paper, or `mean`. A pair's two responses add up.
        expectation: Distribution X of e_t; `policy` is Eq. 6–8 of the paper as they are printed.
    """

    expectation: Expectation = "reference"
    chooses_mask = True
    regularises = {"reward": "l1_reward", "kl": "l1_kl"}  # noqa: RUF012 (never changed)

    def __init__(
        self,
        beta: float = 0.1,
        l1_reward: NonNegativeFloat = 0.0,
        l1_kl: NonNegativeFloat = 0.0,
        label_smoothing: float = 0.0,
        l1_reduction: Literal["sum", "mean"] = "sum",
        expectation: Expectation = "reference",
    ) -> None:
        super().__init__(label_smoothing)
        self.beta, self.expectation = beta, expectation
        self.l1_reward, self.l1_kl, self.l1_reduction = l1_reward, l1_kl, l1_reduction

    @classmethod
    def refuse_idle(cls, given: Mapping[str, Any]) -> None:
        """See `Objective`."""
        if "l1_reduction" in given and not (given.get("l1_reward") or given.get("l1_kl")):
            raise SparsePOError("l1_reduction has no effect without l1_reward or l1_kl")

    def forward(self, stats: TokenStatistics, masks: MaskPair, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        log_ratio = stats.policy_logps - stats.reference_logps
        advantage = masks.reward * log_ratio - masks.kl * stats.expected_log_ratio
        l1_reward = self.l1_reward * self._l1(masks.reward, tokens)
        l1_kl = self.l1_kl * self._l1(masks.kl, tokens)
        output = self.output(self.beta * tokens.sum(advantage), advantage=advantage)
        output.loss = output.loss + l1_reward + l1_kl
        output.metrics = {"l1_reward": l1_reward.detach(), "l1_kl": l1_kl.detach()}
        return output

    def _l1(self, mask: Tensor, tokens: ResponseTokens) -> Tensor:
        norms = (tokens.sum if self.l1_reduction == "sum" else tokens.mean)(mask.abs())
        return norms.sum() / tokens.num_pairs
