"""Tokens selected by an oracle's reward, the weight of SePO."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("selected")
class SelectedMask(TokenMask):
    """1 on tokens of highest oracle reward in chosen, of lowest in rejected responses (Yang et al. 2024, SePO).

    A token's reward is log π_oracle(y_t) − log π_ref(y_t).

    Args:
        oracle: Folder or hub name of the oracle model.
        k: Share of each response's tokens, rounded down as in the authors' release, but one at least.
    """

    needs = frozenset({"logps", "oracle_logps"})
    zeros_have_gradient = False
    causal = False  # ranks a whole response, by rewards of the tokens themselves

    def __init__(self, *, oracle: str, k: Annotated[float, Field(gt=0, le=1)] = 0.3) -> None:
        super().__init__()
        self.oracle, self.k = oracle, k

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """1 on selected tokens, else 0. float32 [N].

        Raises:
            SparsePOError: under ring attention, where no process sees a whole response.
        """
        rewards = features.oracle_logps - features.logps
        rank = tokens.rank(torch.where(tokens.chosen, -rewards, rewards))
        # A hair more, so that 0.3 of 10 tokens is 3 and not 2.
        keep = (tokens.count().double() * self.k + 1e-6).floor().clamp(min=1)
        return (rank < keep[tokens.sequence]).to(rewards.dtype)
