"""SparsePO (Christopoulou et al., Findings of EMNLP 2025)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
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

    e_t = −KL(π_ref‖π) is negative, so version 1 pays the policy to raise the KL on chosen tokens, as TDPO v1 does.
    Version 2 has TDPO v2's rule: R = β·Σ_t (m_u·r_t − α·m_d·e_t), the chosen e_t without the policy's gradient; 1 and
    1 is TDPO v2. With `expectation: policy` e_t is positive, and it is the rejected e_t that has none.

    Args:
        beta: β.
        l1_reward: λ_u, weight of the L1 norm of m_u.
        l1_kl: λ_d, weight of the L1 norm of m_d; with a shared mask the two add up.
        label_smoothing: Probability that a preference label is flipped.
        l1_reduction: Norm over a response's tokens: `sum` as in the paper, or `mean`. A pair's two responses add up.
        expectation: Distribution X of e_t; `policy` is Eq. 6–8 of the paper as they are printed.
        version: 1 is the paper's; 2 weighs e_t by α and passes no gradient where the loss would pay for KL.
        alpha: α of version 2.
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
        version: Literal[1, 2] = 1,
        alpha: NonNegativeFloat = 0.5,
    ) -> None:
        super().__init__(label_smoothing)
        self.beta, self.expectation = beta, expectation
        self.l1_reward, self.l1_kl, self.l1_reduction = l1_reward, l1_kl, l1_reduction
        self.version, self.alpha = version, alpha

    @classmethod
    def refuse_idle(cls, given: Mapping[str, Any]) -> None:
        """See `Objective`."""
        if "l1_reduction" in given and not (given.get("l1_reward") or given.get("l1_kl")):
            raise SparsePOError("l1_reduction has no effect without l1_reward or l1_kl")
        if "alpha" in given and given.get("version") != 2:
            raise SparsePOError("alpha has no effect without version: 2")

    def forward(self, stats: TokenStatistics, masks: MaskPair, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        log_ratio = stats.policy_logps - stats.reference_logps
        advantage = masks.reward * log_ratio - masks.kl * self._expected_log_ratio(stats, tokens)
        l1_reward = self.l1_reward * self._l1(masks.reward, tokens)
        l1_kl = self.l1_kl * self._l1(masks.kl, tokens)
        output = self.output(self.beta * tokens.sum(advantage), advantage=advantage)
        output.loss = output.loss + l1_reward + l1_kl
        # What stands in β's place on average: runs of equal β are not alike where their masks differ.
        effective_beta = self.beta * tokens.sum(masks.reward.detach()).sum() / tokens.count().sum().clamp(min=1)
        output.metrics = {"l1_reward": l1_reward.detach(), "l1_kl": l1_kl.detach(), "effective_beta": effective_beta}
        return output

    def _expected_log_ratio(self, stats: TokenStatistics, tokens: ResponseTokens) -> Tensor:
        """e_t, or α·e_t without the gradient that pays for KL. [N]."""
        if self.version == 1:
            return stats.expected_log_ratio
        paid = tokens.chosen if self.expectation == "reference" else ~tokens.chosen
        return self.alpha * torch.where(paid, stats.expected_log_ratio.detach(), stats.expected_log_ratio)

    def _l1(self, mask: Tensor, tokens: ResponseTokens) -> Tensor:
        norms = (tokens.sum if self.l1_reduction == "sum" else tokens.mean)(mask.abs())
        return norms.sum() / tokens.num_pairs
