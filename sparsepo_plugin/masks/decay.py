"""Temporal decay, the weight of D²PO."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("decay")
class DecayMask(TokenMask):
    """γ^t, t counted from 0 in each response; from 1, as in its authors' release, is one γ on β (Shao et al. 2025).

    Args:
        gamma: γ, by which each token counts less than the one before it.
    """

    zeros_have_gradient = False

    def __init__(self, *, gamma: Annotated[float, Field(gt=0, le=1)] = 0.98) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """γ^position of each response token. float32 [N]."""
        return self.gamma ** tokens.position.float()
