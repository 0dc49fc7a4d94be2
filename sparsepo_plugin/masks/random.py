"""Random weights: the control of the paper's Table 9."""

import torch
import torch.distributed as dist
from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens
from .base import TokenMask


@MASKS.register("random")
class RandomMask(TokenMask):
    """Uniform in [0, 1], drawn anew for every batch from the host's seed (paper Table 9).

    Args:
        seed: Start of the sequence of draws; processes draw differently.
    """

    zeros_have_gradient = False

    def __init__(self, seed: int = 42) -> None:
        super().__init__()
        self.seed = seed
        # A buffer, so that checkpoints carry it and a resumed run goes on drawing where it stopped.
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """Weights of the batch's response tokens. float32 [N]."""
        rank = dist.get_rank() if dist.is_initialized() else 0
        generator = torch.Generator().manual_seed(hash((self.seed, rank, int(self.draws))))
        if self.training:
            self.draws += 1
        return torch.rand(len(tokens), generator=generator).to(tokens.labels.device)
