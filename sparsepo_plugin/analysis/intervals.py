"""Means, and other numbers of many things, with their 95 % intervals."""

import math
import warnings
from collections.abc import Callable

import numpy

from ..errors import SparsePOError

try:
    from scipy.stats import DegenerateDataWarning, bootstrap, t
except ImportError as error:
    raise SparsePOError(
        f"intervals need scipy ({error}): pip install 'sparsepo-plugin[analysis]', or pip install scipy"
    ) from error

RESAMPLES, LEVEL = 9999, 0.95


def resampled(statistic: Callable[..., numpy.ndarray], *columns: numpy.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of a number by the percentile bootstrap, which a constant does not trouble.

    Args:
        statistic: The number, of the columns, along their last axis.
        columns: A value of each of N independent things, such as prompts or pairs. [N] each.
        seed: Of the resampling.

    Returns:
        Its ends; not a number where there is a single thing.
    """
    if len(columns[0]) < 2:
        return math.nan, math.nan
    options = {"n_resamples": RESAMPLES, "confidence_level": LEVEL, "batch": 1000, "method": "percentile"}
    with warnings.catch_warnings(action="ignore", category=DegenerateDataWarning):
        found = bootstrap(columns, statistic, paired=True, rng=numpy.random.default_rng(seed), **options)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def mean_with_interval(values: list[float], seed: int) -> dict[str, float | None]:
    """Mean of independent values and its interval, by resampling.

    Args:
        values: One of each thing that could have been another, such as a prompt.
        seed: Of the resampling.

    Returns:
        `mean`, `low` and `high`; no interval of a single value.
    """
    low, high = resampled(numpy.mean, numpy.array(values), seed=seed)
    return _described(values, low, high)


def mean_over_seeds(values: list[float]) -> dict[str, float | None]:
    """Mean of independent values and its interval by Student's t, as a few seeds are too few to resample.

    Returns:
        `mean`, `low` and `high`; no interval of a single value.
    """
    if len(values) < 2:
        return _described(values, math.nan, math.nan)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * numpy.std(values, ddof=1) / len(values) ** 0.5)
    mean = float(numpy.mean(values))
    return _described(values, mean - half, mean + half)


def _described(values: list[float], low: float, high: float) -> dict[str, float | None]:
    """As JSON has it, in which nothing is not a number."""
    known = not math.isnan(low)
    return {"mean": float(numpy.mean(values)), "low": low if known else None, "high": high if known else None}
