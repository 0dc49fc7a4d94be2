"""Means with their intervals."""

from types import ModuleType

import numpy

from ..errors import SparsePOError

RESAMPLES, LEVEL = 9999, 0.95


def mean_with_interval(values: list[float], seed: int) -> dict[str, float | None]:
    """Mean of independent values and its 95 % interval, of the percentile bootstrap.

    Args:
        values: One of each thing that could have been another, such as a prompt.
        seed: Of the resampling.

    Returns:
        `mean`, `low` and `high`; no interval of a single value.

    Raises:
        SparsePOError: scipy is not installed.
    """
    stats, mean = _scipy_stats(), float(numpy.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    rng, options = numpy.random.default_rng(seed), {"method": "percentile", "batch": 1000}
    found = stats.bootstrap((values,), numpy.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, rng=rng, **options)
    return {"mean": mean, "low": float(found.confidence_interval.low), "high": float(found.confidence_interval.high)}


def mean_over_seeds(values: list[float]) -> dict[str, float | None]:
    """Mean of independent values and its 95 % interval by Student's t, as a few seeds are too few to resample.

    Returns:
        `mean`, `low` and `high`; no interval of a single value.

    Raises:
        SparsePOError: scipy is not installed.
    """
    stats, mean = _scipy_stats(), float(numpy.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * numpy.std(values, ddof=1) / len(values) ** 0.5)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _scipy_stats() -> ModuleType:
    try:
        from scipy import stats
    except ImportError:
        raise SparsePOError("intervals need scipy: pip install 'sparsepo-plugin[analysis]' brings it") from None
    return stats
