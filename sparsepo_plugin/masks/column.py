"""Weights that the data bring: a list of spans in a column of each response."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat
from torch import Tensor

from ..errors import SparsePOError
from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("column")
class ColumnMask(TokenMask):
    """What the pairs themselves say that each token weighs, in columns such as `chosen_weights` (docs/weights.md).

    Args:
        suffix: What the column of a response is called after the response's own key.
        default: Weight of characters in no span.
        end: Weight of the end-of-sequence token, and of what a chat template puts around the response.
        reduce: What a token gets whose characters have several weights.
        signed: Whether weights may be below 0.
        scale: Factor of all weights.
    """

    needs = frozenset({"weights"})
    zeros_have_gradient = False
    causal = False  # whoever wrote the weights saw the whole response

    def __init__(
        self,
        *,
        suffix: Annotated[str, Field(min_length=1)] = "_weights",
        default: float = 1.0,
        end: float = 1.0,
        reduce: Literal["mean", "max", "min"] = "mean",
        signed: bool = False,
        scale: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        for key, value in {"default": default, "end": end}.items():
            if value < 0 and not signed:
                raise SparsePOError(f"{key}: {value:g} is below 0, which needs signed: true")
        self.signed, self.scale = signed, scale

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """`scale` times the weights that came with the tokens. float32 [N].

        Raises:
            SparsePOError: the host gives none.
        """
        if tokens.weights is None:
            raise SparsePOError("mask 'column' reads weights of the data, and this host gives none")
        return tokens.weights * self.scale
