"""ADPO, autoregressive DPO (Oi et al. 2026)."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from ..divergence import TokenStatistics
from ..registry import OBJECTIVES
from ..tokens import MaskPair, ResponseTokens
from .base import Objective, ObjectiveOutput, preference_loss


@OBJECTIVES.register("adpo")
class ADPO(Objective):
    """DPO's loss for each token, or each segment, of a pair, the sum outside log σ (Oi et al. 2026).

    loss = Σ_i −log σ(β·S_i(chosen) − β·S_i(rejected)), S_i the sum of r_t over segment i; one segment is DPO. With m
    segments token t of n, from 0, is in segment ⌊t·m/n⌋: the paper's adaptive family. `token` compares token by token.
    Label smoothing is that of each term; the reward that is logged is β·Σ_t r_t.

    That the sum stands outside log σ was read in the paper; the equations of the segments were not, and no code of the
    authors was found, so two rules are this project's. A pair has no more segments than its shorter response has
    tokens. With `token`, what a response lacks of the longer one's tokens has r_t = 0; the paper pads such a response
    with end-of-sequence tokens.

    Args:
        beta: β.
        label_smoothing: Probability that a preference label is flipped.
        segments: `token`, or m, into how many segments each response is divided, as even as can be.
    """

    def __init__(
        self, beta: float = 0.1, label_smoothing: float = 0.0, segments: PositiveInt | Literal["token"] = "token"
    ) -> None:
        super().__init__(label_smoothing)
        self.beta, self.segments = beta, segments

    def forward(self, stats: TokenStatistics, masks: MaskPair | None, tokens: ResponseTokens) -> ObjectiveOutput:
        """Loss of a batch; see `Objective`."""
        advantage = stats.policy_logps - stats.reference_logps
        segment, number = self._segments(tokens)
        most = int(number.max())
        # Segments as sequences of their own, the chosen ones first as they were.
        parts = replace(
            tokens, sequence=tokens.sequence * most + segment, num_pairs=tokens.num_pairs * most, context=None
        )
        rewards = self.beta * parts.sum(advantage)
        losses = preference_loss(rewards, self.label_smoothing).view(tokens.num_pairs, most)
        real = torch.arange(most, device=losses.device) < number[:, None]
        chosen_rewards, rejected_rewards = rewards.detach().view(tokens.num_sequences, most).sum(-1).chunk(2)
        return ObjectiveOutput(
            loss=torch.where(real, losses, 0.0).sum(-1).mean(),
            chosen_rewards=chosen_rewards,
            rejected_rewards=rejected_rewards,
            advantage=advantage.detach(),
        )

    def _segments(self, tokens: ResponseTokens) -> tuple[Tensor, Tensor]:
        """Segment of each token, int64 [N], and how many each pair has, int64 [P]."""
        count = tokens.count().long()
        chosen, rejected = count.chunk(2)
        if self.segments == "token":
            return tokens.position, chosen.maximum(rejected)
        number = chosen.minimum(rejected).clamp(min=1, max=self.segments)
        return tokens.position * number.repeat(2)[tokens.sequence] // count[tokens.sequence], number
