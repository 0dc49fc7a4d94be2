"""Tokens selected by an oracle's reward, the weight of SePO."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..errors import SparsePOError
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
        if tokens.group is not None:
            raise SparsePOError(
                "mask 'selected' ranks the tokens of whole responses, which must not be sharded over processes",
                about="sharded sequences",
            )
        rewards = features.oracle_logps - features.logps
        score = torch.where(tokens.chosen, rewards, -rewards)
        # Sorted by sequence and, within it, by falling score; both sorts are stable.
        order = score.argsort(descending=True, stable=True)
        order = order[tokens.sequence[order].argsort(stable=True)]
        counts = tokens.count().long()
        rank = torch.arange(len(tokens), device=order.device) - (counts.cumsum(0) - counts)[tokens.sequence[order]]
        # A hair more, so that 0.3 of 10 tokens is 3 and not 2.
        keep = (counts.double() * self.k + 1e-6).floor().clamp(min=1)
        return torch.zeros_like(score).scatter(0, order, (rank < keep[tokens.sequence[order]]).to(score.dtype))
