"""Tokens on which the policy has yet to learn most, the selection of Selective-DPO."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("log_ratio")
class LogRatioMask(TokenMask):
    """1 on tokens whose score is at least the k-quantile of their response's scores (Dong 2025, Selective-DPO).

    The score is −r_t in chosen and r_t in rejected responses, of the policy as it is at each step, without gradient.
    With linear interpolation of the quantile that keeps the ⌈k·(n − 1)⌉-th lowest, counted from 0, and all above it.
    Where policy and reference are the same, so are all scores, and every token is kept.

    Args:
        k: The quantile; about 1 − k of the tokens are kept.
    """

    needs = frozenset({"logps", "policy_logps"})
    zeros_have_gradient = False
    causal = False  # ranks a whole response, by the tokens themselves

    def __init__(self, *, k: Annotated[float, Field(ge=0, lt=1)] = 0.6) -> None:
        super().__init__()
        self.k = k

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """1 on kept tokens, else 0. float32 [N].

        Raises:
            SparsePOError: under ring attention, where no process sees a whole response.
        """
        log_ratio = features.policy_logps - features.logps
        score = torch.where(tokens.chosen, -log_ratio, log_ratio)
        rank = tokens.rank(score)
        # Rounded, because 0.55 · 100 is a bit more than 55 in floats, and must not become 56.
        least = ((tokens.count().double() - 1) * self.k).round(decimals=6).ceil()
        threshold = tokens.sum(torch.where(rank == least[tokens.sequence], score, 0))
        return (score >= threshold[tokens.sequence]).to(score.dtype)
