"""Less weight on what makes a response the longer one, as in LD-DPO."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("length")
class LengthMask(TokenMask):
    """α on the tokens of the longer response past the length of the shorter one, else 1 (Liu et al. 2024, LD-DPO).

    As a weight of r_t it acts on log π and on log π_ref, as in TRL from 0.29 on. Implementations in which it acts on
    log π alone add −β·(1 − α)·Σ log π_ref of those tokens to the longer response's reward, which is a margin.

    Args:
        alpha: α; 1 is DPO, 0 cuts the longer response.
    """

    zeros_have_gradient = False
    causal = False  # by how long both responses become

    def __init__(self, *, alpha: Annotated[float, Field(ge=0, le=1)] = 0.5) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """1 or α for each response token. float32 [N]."""
        shorter = tokens.count().view(2, -1).amin(0).repeat(2)
        return torch.where(tokens.position < shorter[tokens.sequence], 1.0, self.alpha)
