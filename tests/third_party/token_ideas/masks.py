"""A mask with nothing to learn, and one with a plain layer."""

import torch

from sparsepo_plugin import TokenMask


class Opening(TokenMask):
    """1 on the first tokens of a response, 0 on the rest.

    Args:
        length: How many.
    """

    zeros_have_gradient = False

    def __init__(self, *, length: int = 3):
        super().__init__()
        self.length = length

    def forward(self, features, tokens):
        return (tokens.position < self.length).float()


class Probe(TokenMask):
    """A logistic probe on the reference's last state.

    Args:
        scale: Of the weights, which are up to twice as large.
    """

    needs = frozenset({"last_hidden"})

    def __init__(self, hidden_size: int, *, scale: float = 1.0):
        super().__init__()
        self.linear = torch.nn.Linear(hidden_size, 1)
        self.scale = scale

    def forward(self, features, tokens):
        return 2 * self.scale * self.linear(features.last_hidden)[:, 0].sigmoid()
