"""One weight for all tokens."""

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("uniform")
class UniformMask(TokenMask):
    """The same weight for every token: 1 and 1 is TDPO v1, reward 1 and KL 0 is DPO.

    Args:
        value: The weight.
    """

    zeros_have_gradient = False

    def __init__(self, *, value: NonNegativeFloat = 1.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """`value` for each response token. float32 [N]."""
        return torch.full((len(tokens),), self.value, device=tokens.labels.device)
