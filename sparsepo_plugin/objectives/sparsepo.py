"""SparsePO (Christopoulou et al., Findings of EMNLP 2025)."""

from typing import Literal

from torch import Tensor, nn

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import ObjectiveOutput, preference_loss


@OBJECTIVES.register("sparsepo")
class SparsePO(nn.Module):
    """Every token has a weight on its reward and on its KL (paper Eq. 6–8).

    R = β·Σ_t (m_u(t)·r_t − m_d(t)·e_t), r_t = log π(y_t) − log π_ref(y_t), and
    loss = −log σ(R_chosen − R_rejected) + λ_u‖m_u‖₁ + λ_d‖m_d‖₁. m_u = 1, m_d = 0 is DPO; 1 and 1 is TDPO v1.

    Args:
        beta: β.
        l1_reward: λ_u.
        l1_kl: λ_d.
        label_smoothing: Probability that a preference label is flipped.
        l1_reduction: Norm over a response's tokens: `sum` as in the paper, or `mean`. A pair's two responses add up.
    """

    def __init__(
        self,
        beta: float = 0.1,
        l1_reward: float = 0.0,
        l1_kl: float = 0.0,
        label_smoothing: float = 0.0,
        l1_reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        self.beta, self.label_smoothing = beta, label_smoothing
        self.l1_reward, self.l1_kl, self.l1_reduction = l1_reward, l1_kl, l1_reduction

    def forward(self, stats: TokenStatistics, masks: MaskPair, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch.

        Args:
            stats: Statistics of the N response tokens, [N] each.
            masks: Their two weights, [N] each.
            tokens: Their index.
        """
        log_ratio = stats.policy_logps - stats.reference_logps
        rewards = self.beta * tokens.sum(masks.reward * log_ratio - masks.kl * stats.expected_log_ratio)
        l1_reward = self.l1_reward * self._l1(masks.reward, tokens)
        l1_kl = self.l1_kl * self._l1(masks.kl, tokens)
        chosen_rewards, rejected_rewards = rewards.detach().chunk(2)
        return ObjectiveOutput(
            loss=preference_loss(rewards, self.label_smoothing).mean() + l1_reward + l1_kl,
            chosen_rewards=chosen_rewards,
            rejected_rewards=rejected_rewards,
            metrics={"l1_reward": l1_reward.detach(), "l1_kl": l1_kl.detach()},
        )

    def _l1(self, mask: Tensor, tokens: ResponseTokens) -> Tensor:
        norms = (tokens.sum if self.l1_reduction == "sum" else tokens.mean)(mask.abs())
        return norms.sum() / tokens.num_pairs
