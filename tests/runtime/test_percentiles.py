"""Percentiles: how many samples they need, the limits that hold, and the interval of a median."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from trueport.runtime.errors import UsageError
from trueport.runtime.percentiles import (
    PROBABILITIES,
    allowed_over,
    median_interval,
    percentile_bound,
    quantiles,
    samples_needed,
)


@pytest.mark.parametrize(("percentile", "count"), [(0.90, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_samples_needed_are_loadgens(percentile: float, count: int) -> None:
    assert samples_needed(percentile) == count


@pytest.mark.parametrize("over", [0, 1, 2, 5])
@pytest.mark.parametrize("percent", [50, 90, 97])
def test_samples_needed_is_the_least_number_by_exact_arithmetic(percent: int, over: int) -> None:
    good = Fraction(percent, 100)

    def chance(count: int) -> Fraction:
        return sum(
            (math.comb(count, k) * (1 - good) ** k * good ** (count - k) for k in range(over + 1)), start=Fraction(0)
        )

    count = samples_needed(percent / 100, over)
    assert chance(count) <= Fraction(1, 100) < chance(count - 1)


@pytest.mark.parametrize(
    ("percentile", "confidence", "over"), [(1.0, 0.99, 1), (0.0, 0.99, 1), (0.9, 1.0, 1), (0.9, 0.9, -1)]
)
def test_samples_needed_refuses_what_has_no_answer(percentile: float, confidence: float, over: int) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        samples_needed(percentile, over, confidence)


@pytest.mark.parametrize("percentile", [0.9, 0.99])
@pytest.mark.parametrize("over", [0, 1, 7, 40])
def test_so_many_may_be_over_as_the_samples_are_enough_for(percentile: float, over: int) -> None:
    count = samples_needed(percentile, over)
    assert allowed_over(percentile, count) == over
    assert allowed_over(percentile, count - 1) == (over - 1 if over else None)


def test_a_limit_is_told_from_as_many_samples_as_show_it() -> None:
    seconds = np.random.default_rng(0).permutation(np.arange(1.0, 65.0))
    assert percentile_bound(seconds, 0.9) == 63.0  # one of 64 may be over it
    assert percentile_bound(seconds[:44], 0.9) == seconds[:44].max()
    assert percentile_bound(seconds[:43], 0.9) is None


def test_the_limit_holds_about_as_often_as_it_says() -> None:
    random, wrong = np.random.default_rng(5), 0
    truth = -math.log(0.1)  # the 90th percentile of an exponential
    for _ in range(600):
        bound = percentile_bound(random.exponential(size=300), 0.9)
        wrong += bound is not None and bound < truth
    assert 0 < wrong <= 14, "one in a hundred"


@pytest.mark.parametrize(("count", "told"), [(1, 0), (63, 7), (64, 9), (130, 11), (662, 13), (6636, 14)])
def test_quantiles_reach_as_far_out_as_samples_allow(count: int, told: int) -> None:
    found = quantiles(np.arange(1, count + 1) / 1e3)
    assert len(found) == told
    assert {p for p, _ in found} <= set(PROBABILITIES)
    assert all(ms == pytest.approx(math.ceil(p * count - 1e-9)) for p, ms in found)


def test_the_interval_of_a_median_knows_that_neighbours_are_alike() -> None:
    random = np.random.default_rng(2)
    alone = random.normal(10, 1, 2000)
    alike = 10 + np.repeat(random.normal(0, 1, 20), 100) + random.normal(0, 0.1, 2000)

    def width(samples: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        interval = median_interval(samples)
        assert interval is not None
        assert interval[0] <= np.median(samples) <= interval[1]
        return interval[1] - interval[0]

    assert width(alike) > 4 * width(alone)
    assert median_interval(alone[:5]) is None
    assert median_interval(alone, seed=1) == median_interval(alone, seed=1)


def test_the_interval_of_a_median_covers_the_truth_about_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(3), 0
    for _ in range(200):
        interval = median_interval(random.lognormal(size=400))
        covered += interval is not None and interval[0] <= 1 <= interval[1]
    assert 178 <= covered <= 199
