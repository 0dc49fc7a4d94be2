"""The dense mask of the paper, read off the reference's activations (§2.3)."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from ..decoder import SITES
from ..errors import SparsePOError
from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask

Site = Literal["attention", "feed_forward", "residual"]


@MASKS.register("activation")
class ActivationMask(TokenMask):
    """Mean activation of the reference, standardised over the response (paper §2.3, SparsePO[dense]).

    ã_g^t = (ā_g^t − mean_t ā_g) / std_t ā_g at each site g, m = mean_g ã_g, then rescaled within the response.

    Args:
        sites: Kinds of site, read in every layer.
        rescale: `minmax` maps each response onto [min, 1]; `none` keeps the standardised mean, negative values too.
        min: ε, where minmax starts.
    """

    needs = frozenset({"activations"})
    zeros_have_gradient = False
    causal = False  # standardised over the whole response

    def __init__(
        self,
        *,
        sites: Annotated[list[Site], Field(min_length=1)] = list(SITES),  # noqa: B006 (never changed)
        rescale: Literal["minmax", "none"] = "minmax",
        min: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        if min and rescale == "none":
            raise SparsePOError("min has no effect with rescale: none")
        self.sites, self.rescale, self.min = tuple(sites), rescale, min
        self.signed = rescale == "none"

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """Mask of each response token. float [N]; 1 throughout a response whose activations do not vary."""
        mask = _standardise(features.activations, tokens).mean(0)
        if self.rescale == "none":
            return mask
        low, high = (extreme[tokens.sequence] for extreme in tokens.extremes(mask))
        # Sites vary by about 1; what is left where they cancel is rounding, which must not become 0 and 1.
        flat = high - low < 1e-4
        scaled = self.min + (1 - self.min) * (mask - low) / (high - low).masked_fill(flat, 1)
        return scaled.masked_fill(flat, 1.0)


def _standardise(values: Tensor, tokens: ResponseTokens) -> Tensor:
    """Zero mean and unit variance in each response; 0 where the variance is 0, as for one token. [G, N]."""
    centred = values - tokens.mean(values)[:, tokens.sequence]
    variance = tokens.mean(centred.square())[:, tokens.sequence]
    return centred * variance.rsqrt().masked_fill(variance == 0, 0)
