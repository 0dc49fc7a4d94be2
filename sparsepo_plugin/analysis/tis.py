"""Weights of TIS-DPO (Liu et al. 2025) from the scores of a response's tokens, as the authors' release makes them.

A token's score is log π₁(y_t) − log π₂(y_t) in chosen responses and its negative in rejected ones, π₁ trained with DPO
and π₂ with DPO on swapped pairs. The weight of the paper itself, with four constants, is in no released code.
"""

from collections.abc import Callable, Sequence

from ..errors import SparsePOError

_LEAST, _MOST = 0.7, 1.3  # of the weights
_CLAMP = 1.5  # of the scores, both ways

DEFAULT = "rank_based"


def rank_based(scores: Sequence[float]) -> list[float]:
    """Linear in the rank, from 0.7 for the lowest to 1.3; of equal ones the earlier is lower; 1 for a lone token."""
    if len(scores) == 1:
        return [1.0]
    weights = [0.0] * len(scores)
    for rank, place in enumerate(sorted(range(len(scores)), key=scores.__getitem__)):
        weights[place] = _LEAST + rank / (len(scores) - 1) * (_MOST - _LEAST)
    return weights


def threshold_and_scale(scores: Sequence[float]) -> list[float]:
    """Linear in the score, from 0.7 at −1.5 and below to 1.3 at 1.5 and above."""
    clamped = [max(-_CLAMP, min(_CLAMP, score)) for score in scores]
    return [_LEAST + (score + _CLAMP) * (_MOST - _LEAST) / (2 * _CLAMP) for score in clamped]


def origin(scores: Sequence[float]) -> list[float]:
    """The scores themselves, which may be negative."""
    return list(scores)


TRANSFORMS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    transform.__name__: transform for transform in (rank_based, threshold_and_scale, origin)
}


def transform_of(name: str | None) -> Callable[[Sequence[float]], list[float]]:
    """The transform that `--transform` names; the release's README runs the default.

    Raises:
        SparsePOError: there is none of that name.
    """
    if (name or DEFAULT) not in TRANSFORMS:
        raise SparsePOError(f"--transform {name}: allowed are {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name or DEFAULT]
