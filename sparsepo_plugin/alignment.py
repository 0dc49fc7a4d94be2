"""Which tokens two sequences share, and which of each are edits of the other."""

import numpy as np
import torch
from torch import Tensor


def edited(first: list[int], second: list[int]) -> tuple[Tensor, Tensor]:
    """The tokens of each of two sequences that the other lacks.

    What they share is a longest common subsequence, so that as few tokens as can be are edited; of several, one that
    stands late in `second`. Time and memory grow with n·m: 10 ms and 4 MB for two sequences of a thousand tokens.

    Args:
        first: Token ids.
        second: Token ids.

    Returns:
        True on edited tokens; without them both sequences are the same. bool [n] and bool [m].
    """
    shared = _shared_lengths(np.array(first, dtype=np.int64), np.array(second, dtype=np.int64))
    edits = [True] * len(first), [True] * len(second)
    row, column = len(first), len(second)
    while row and column:
        if first[row - 1] == second[column - 1]:
            row, column = row - 1, column - 1
            edits[0][row] = edits[1][column] = False
        elif shared[row - 1, column] >= shared[row, column - 1]:
            row -= 1
        else:
            column -= 1
    return torch.tensor(edits[0], dtype=torch.bool), torch.tensor(edits[1], dtype=torch.bool)


def _shared_lengths(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How long a common subsequence the first i and the first j tokens have. int32 [n + 1, m + 1]."""
    shared = np.zeros((len(first) + 1, len(second) + 1), dtype=np.int32)
    for row, token in enumerate(first):
        best = np.maximum(shared[row, 1:], shared[row, :-1] + (second == token))
        np.maximum.accumulate(best, out=shared[row + 1, 1:])
    return shared
