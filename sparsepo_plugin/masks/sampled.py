"""As many tokens of the longer response as the shorter one has, as in SamPO."""

from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .random import RandomMask


@MASKS.register("sampled")
class SampledMask(RandomMask):
    """1 on as many tokens of both responses as the shorter one has, drawn from the longer (Lu et al. 2024, SamPO).

    Drawn uniformly and anew for every step, as `random` draws, for log π and log π_ref alike; the authors' release
    draws for each apart.

    Args:
        seed: Start of the sequence of draws.
    """

    causal = False  # by how long both responses become

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """1 on drawn tokens, else 0; while training, the next call draws anew. float32 [N].

        Raises:
            SparsePOError: under ring attention, where no process sees a whole response.
        """
        rank = tokens.rank(super().forward(features, tokens))
        shorter = tokens.count().view(2, -1).amin(0).repeat(2)
        return (rank < shorter[tokens.sequence]).float()
