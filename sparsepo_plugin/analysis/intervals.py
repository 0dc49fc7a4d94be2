"""Means with the interval that resampling gives."""

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
    try:
        from scipy.stats import bootstrap
    except ImportError:
        raise SparsePOError("intervals need scipy: pip install 'sparsepo-plugin[analysis]' brings it") from None
    mean = float(numpy.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    rng, options = numpy.random.default_rng(seed), {"method": "percentile", "batch": 1000}
    found = bootstrap((values,), numpy.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, rng=rng, **options)
    return {"mean": mean, "low": float(found.confidence_interval.low), "high": float(found.confidence_interval.high)}
