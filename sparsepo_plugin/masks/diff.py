"""Where the two responses of a pair differ."""

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from ..alignment import edited
from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("diff")
class DiffMask(TokenMask):
    """1 on tokens that the other response of the pair lacks, by a longest common subsequence of their tokens.

    The plain baseline for pairs whose responses are edits of each other. Where a response equals the beginning of the
    other one, or the other one itself, all of its tokens are outside.

    Args:
        outside: Weight of the tokens that both responses have.
    """

    zeros_have_gradient = False
    causal = False  # whether the other response has a token is no matter of what comes before it

    def __init__(self, *, outside: NonNegativeFloat = 0.0) -> None:
        super().__init__()
        self.outside = outside

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """1 on edited tokens, else `outside`. float32 [N].

        Raises:
            SparsePOError: under ring attention, where no process sees a whole response.
        """
        tokens.refuse_shards("whole responses are compared")
        responses = [labels.tolist() for labels in tokens.labels.split(tokens.count().int().tolist())]
        pairs = zip(responses[: tokens.num_pairs], responses[tokens.num_pairs :], strict=True)
        chosen, rejected = zip(*(edited(*pair) for pair in pairs), strict=True)
        edits = torch.cat([*chosen, *rejected]).to(tokens.labels.device)
        return torch.where(edits, 1.0, self.outside)
