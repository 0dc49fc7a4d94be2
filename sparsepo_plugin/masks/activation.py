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

    ã_g^t = (ā_g^t − mean_t ā_g) / std_t ā_g at each site g, m = mean_g ã_g. The weights need a range, which the paper
    does not give.

    Args:
        sites: Kinds of site, read in every layer.
        rescale: Within each response, `site` maps every ã_g onto [min, 1] before the mean, as the authors' release
            does; `minmax` maps the mean; `none` keeps the paper's mean, negative values too.
        min: ε, where the range starts.
    """

    needs = frozenset({"activations"})
    zeros_have_gradient = False
    causal = False  # standardised over the whole response

    def __init__(
        self,
        *,
        sites: Annotated[list[Site], Field(min_length=1)] = list(SITES),  # noqa: B006 (never changed)
        rescale: Literal["site", "minmax", "none"] = "site",
        min: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        if min and rescale == "none":
            raise SparsePOError("min has no effect with rescale: none")
        self.sites, self.rescale, self.min = tuple(sites), rescale, min
        self.signed = rescale == "none"

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """Mask of each response token. float [N]; what does not vary within a response is 1 throughout."""
        # The release takes the mean of each kind first; here all kinds have one site a layer, so it is the same.
        standardised = _standardise(features.activations, tokens)
        if self.rescale == "site":
            return self._rescale(standardised, tokens).mean(0)
        mask = standardised.mean(0)
        return self._rescale(mask, tokens) if self.rescale == "minmax" else mask

    def _rescale(self, values: Tensor, tokens: ResponseTokens) -> Tensor:
        """Each response onto [min, 1]. [..., N]."""
        low, high = (extreme[..., tokens.sequence] for extreme in tokens.extremes(values))
        # Values vary by about 1; what is left where sites cancel is rounding, which must not become 0 and 1.
        flat = high - low < 1e-4
        scaled = self.min + (1 - self.min) * (values - low) / (high - low).masked_fill(flat, 1)
        return scaled.masked_fill(flat, 1.0)


def _standardise(values: Tensor, tokens: ResponseTokens) -> Tensor:
    """Zero mean and unit variance in each response; 0 where the variance is 0, as for one token. [G, N]."""
    centred = values - tokens.mean(values)[:, tokens.sequence]
    variance = tokens.mean(centred.square())[:, tokens.sequence]
    return centred * variance.rsqrt().masked_fill(variance == 0, 0)
