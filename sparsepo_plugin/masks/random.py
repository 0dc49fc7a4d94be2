"""Random weights: the control of the paper's Table 9."""

import torch
from torch import Tensor

from ..reference import ReferenceFeatures
from ..registry import MASKS
from ..tokens import ResponseTokens, scramble
from .base import TokenMask


@MASKS.register("random")
class RandomMask(TokenMask):
    """Uniform in [0, 1], drawn anew for every step from the host's seed (paper Table 9).

    A weight is a hash of the seed, the step and the text before the token, of chosen and rejected responses apart. So
    it is the same in whatever batch, process or layout the token comes.

    Args:
        seed: Start of the sequence of draws.
    """

    zeros_have_gradient = False

    def __init__(self, seed: int = 42) -> None:
        super().__init__()
        self.seed = seed
        # A buffer, so that a run that is asked draws as it did at its end.
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def at_step(self, number: int) -> None:
        """Draw what belongs to the step."""
        self.draws.fill_(number)

    def forward(self, features: ReferenceFeatures, tokens: ResponseTokens) -> Tensor:
        """Weights of the batch's response tokens; while training, the next call draws anew. float32 [N]."""
        text = tokens.sequence if tokens.context is None else tokens.context
        numbers = torch.zeros_like(tokens.labels)
        for part in (self.seed % 2**32, self.draws, tokens.chosen, tokens.position, text):
            numbers = scramble(numbers + part)
        if self.training:
            self.draws += 1
        return numbers.float() / 2**32
