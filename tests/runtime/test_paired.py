"""Paired proportions and scores: the exact test, intervals that cover, and how many samples would tell."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trueport.runtime.paired import flips, log_mcnemar_p, mcnemar_p, score_differences


@pytest.mark.parametrize(
    ("lost", "won", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (8, 2, 0.109375), (10, 10, 1.0), (2, 8, 0.109375)],
)
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int, p: float) -> None:
    assert mcnemar_p(lost, won) == pytest.approx(p)


def test_the_interval_of_the_difference_covers_what_it_should() -> None:
    """Of simulated pairs with a known difference, the 95 % interval holds it in 93 % or more."""
    random = np.random.default_rng(3)
    count, p_lost, p_won = 300, 0.03, 0.01
    flipped = random.multinomial(count, [p_lost, p_won, 1 - p_lost - p_won], size=2000)
    covered = [low <= p_lost - p_won <= high for low, high in (flips(a, b, count).interval() for a, b, _ in flipped)]
    assert np.mean(covered) >= 0.93


def test_the_interval_of_scores_is_that_of_flips_where_scores_are_right_or_wrong() -> None:
    ours, theirs = np.zeros(50), np.zeros(50)
    theirs[:7], ours[10:13] = 1, 1
    differences = score_differences(ours, theirs)
    assert differences.interval() == flips(7, 3, 50).interval()
    assert differences == flips(7, 3, 50)


def test_the_interval_of_scores_covers_what_it_should() -> None:
    """Most samples keep their score, few lose a fifth of it, and fewer all of it."""
    random = np.random.default_rng(5)
    shares, losses = np.array([0.9, 0.07, 0.03]), np.array([0.0, 0.2, 1.0])
    lost = random.choice(losses, p=shares, size=(2000, 200))
    covered = [
        low <= shares @ losses <= high
        for low, high in (score_differences(1 - one, np.ones(200)).interval() for one in lost)
    ]
    assert np.mean(covered) >= 0.93


def test_no_flips_leave_an_interval_around_zero_that_shrinks() -> None:
    few, many = flips(0, 0, 30).interval(), flips(0, 0, 3000).interval()
    assert few[0] < many[0] < 0 < many[1] < few[1]


def test_a_probability_too_small_for_a_float_has_a_logarithm() -> None:
    assert mcnemar_p(3000, 0) == 0
    assert log_mcnemar_p(3000, 0) == pytest.approx(math.log(2) - 3000 * math.log(2))


@pytest.mark.parametrize(("lost", "won", "count", "margin"), [(0, 0, 100, 0.01), (2, 1, 200, 0.02), (9, 0, 100, 0.05)])
def test_the_samples_needed_are_the_fewest_that_decide(lost: int, won: int, count: int, margin: float) -> None:
    needed = flips(lost, won, count).needed(margin)
    assert needed is not None
    assert needed > count

    def decisive(samples: int) -> bool:
        low, high = flips(lost * samples / count, won * samples / count, samples).interval()
        return high <= margin or low > margin

    assert decisive(needed)
    assert not decisive(needed - 1)


def test_no_number_of_samples_decides_where_the_drop_is_the_margin() -> None:
    assert flips(1, 0, 100).needed(0.01) is None
