"""Percentiles of latencies, told only where enough samples stand behind them, and what else describes a distribution.

The rule is MLPerf LoadGen's early stopping
(https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc, "Early Stopping Criterion"): were a
limit exceeded by just 1 - percentile of all calls, so few exceedances would be seen with a probability of at most
1 - confidence. That holds for calls that are independent of each other; disturbances that last make neighbours alike.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError

CONFIDENCE = 0.99
"""With which a percentile is claimed; LoadGen's."""
LEVEL = 0.95
"""Of intervals."""
PROBABILITIES = (0.01, 0.05, *(step / 10 for step in range(1, 10)), 0.95, 0.99, 0.999)
"""Of the quantiles that describe a distribution."""
RUNS = 20
"""Stretches of calls one after another, which are drawn anew in a bootstrap: neighbours are alike."""
FEWEST_RUNS = 6
RESAMPLES = 400


@functools.cache
def samples_needed(percentile: float, over: int = 1, confidence: float = CONFIDENCE) -> int:
    """The fewest samples with `over` of them above a limit that still show the percentile to be below that limit.

    Were the limit exceeded by just 1 - percentile of all calls, so few exceedances would be seen with a probability of
    at most 1 - confidence: sum over k <= over of C(n, k) (1 - percentile)^k percentile^(n - k).
    """
    if not (0 < percentile < 1 and 0 < confidence < 1 and over >= 0):
        raise UsageError(
            f"percentile and confidence must be between 0 and 1 and over at least 0, "
            f"found {percentile}, {confidence} and {over}"
        )
    enough = over + 1
    while _luck(enough, over, percentile) > 1 - confidence:
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if middle > over and _luck(middle, over, percentile) <= 1 - confidence:
            enough = middle
        else:
            too_few = middle
    return enough


def _luck(count: int, over: int, percentile: float) -> float:
    """Probability of at most `over` exceedances in `count` samples when each has one of 1 - percentile."""
    return math.fsum(
        math.exp(
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            + k * math.log1p(-percentile) + (count - k) * math.log(percentile)
        )
        for k in range(over + 1)
    )  # fmt: skip


def allowed_over(percentile: float, count: int, confidence: float = CONFIDENCE) -> int | None:
    """The most of `count` samples that may exceed a limit and still show the percentile below it; None: too few."""
    if count < samples_needed(percentile, 0, confidence):
        return None
    enough, too_many = 0, count
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if _luck(count, middle, percentile) <= 1 - confidence:
            enough = middle
        else:
            too_many = middle
    return enough


def percentile_bound(seconds: NDArray[np.float64], percentile: float) -> float | None:
    """The least limit that the percentile is below with LoadGen's confidence; None where samples are too few.

    With few samples it is well above the plain percentile: that is the price for their being few.
    """
    over = allowed_over(percentile, seconds.size)
    return None if over is None else float(np.partition(seconds, -1 - over)[-1 - over])


def quantiles(seconds: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """(probability, milliseconds) for those of `PROBABILITIES` that have enough samples beyond them."""
    told = [p for p in PROBABILITIES if seconds.size >= samples_needed(max(p, 1 - p))]
    values = np.quantile(seconds, told, method="inverted_cdf") * 1e3
    return tuple((p, float(value)) for p, value in zip(told, values, strict=True))


def median_interval(seconds: NDArray[np.float64], seed: int = 0) -> tuple[float, float] | None:
    """The 95 % interval of the median of calls in the order they were made, by a bootstrap over stretches of them."""
    runs = min(RUNS, seconds.size)
    if runs < FEWEST_RUNS:
        return None
    order = np.argsort(seconds)
    run_of = (np.arange(seconds.size) * runs // seconds.size)[order]
    random = np.random.default_rng(seed)
    medians = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = np.bincount(random.integers(0, runs, runs), minlength=runs)
        below = np.cumsum(drawn[run_of])
        medians[number] = seconds[order[np.searchsorted(below, below[-1] / 2)]]
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
