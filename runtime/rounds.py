"""How many times longer one call takes than a yardstick, as a number that can be kept and held against a later one.

Times drift twofold within minutes on a shared machine, and so does the yardstick beside them: turns of a few
milliseconds, ABBA, meet a drift alike. A network is faster or slower by a per cent for where its memory and its threads
happened to come to lie, for as long as it is open; so both are opened anew in each of several rounds, and the spread
over rounds is also that between processes.
The centre of the rounds is a trimmed mean, which a neighbour's burst in a few of them does not move; the interval of
the difference of two is Yuen's (The two-sample trimmed t for unequal population variances, Biometrika 61:165, 1974).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .timing import Call, Clock, check_seconds, no_collector, timed

OpenPair = Callable[[], AbstractContextManager[tuple[Call, Call]]]
"""Opens what is timed and the yardstick, both anew; the context closes them."""

ROUNDS = 10
FEWEST_ROUNDS = 8
"""Six are left when both ends are trimmed: with fewer the interval is too wide to be of use."""
TURN_S = 0.002
"""One turn of one call: much shorter than what neighbours do, much longer than what a change of call costs."""
WARM_UP_S = 0.02
CLEAR = 0.02
"""An interval keeps so far from 1 where a difference is told of what was opened once, or in one process: by about a per
cent openings and processes differ in what nothing within them shows."""
TRIMMED = 0.2
"""Share of the rounds that is left out at either end."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """How many times longer it takes now than then; each side's rounds by their ratio to the same yardstick."""

    ratio: float
    low: float
    """Lower end of the interval."""
    high: float
    error: float
    """Standard error of the logarithm of the ratio."""
    error_now: float
    """The part of it that more rounds now would reduce."""
    quantile: float
    """Of Student's distribution: the interval reaches so many standard errors to either side."""


def log_ratios(
    open_pair: OpenPair, *, seconds: float, rounds: int = ROUNDS, clock: Clock = time.perf_counter_ns
) -> NDArray[np.float64]:
    """Logarithm of the ratio of the two calls' times, by round: (rounds,).

    seconds: of all rounds together, opening not counted; a slow call takes longer, as each round has a block of ABBA.
    Raises UsageError for a bad argument; what opening or calling raises passes through.
    """
    check_seconds(seconds)
    if rounds < FEWEST_ROUNDS:
        raise UsageError(f"an interval over rounds needs at least {FEWEST_ROUNDS} of them, found {rounds}")
    with no_collector():
        return np.array([_round(open_pair, seconds / rounds, clock) for _ in range(rounds)])


def difference(now: NDArray[np.float64], then: NDArray[np.float64], level: float) -> Difference:
    """The ratio of the yardstick's ratios with its interval at `level`, from the rounds' logarithms."""
    (centre_now, variance_now, freedom_now), (centre_then, variance_then, freedom_then) = _trimmed(now), _trimmed(then)
    log, variance = centre_now - centre_then, variance_now + variance_then
    spread = variance_now**2 / freedom_now + variance_then**2 / freedom_then
    quantile = student_quantile((1 + level) / 2, variance**2 / spread if spread else math.inf)
    error = math.sqrt(variance)
    return Difference(
        ratio=math.exp(log),
        low=math.exp(log - quantile * error),
        high=math.exp(log + quantile * error),
        error=error,
        error_now=math.sqrt(variance_now),
        quantile=quantile,
    )


def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t, to a hundredth of itself from 5 degrees of freedom on.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _round(open_pair: OpenPair, seconds: float, clock: Clock) -> float:
    """Median over the blocks of one round."""
    with open_pair() as (a, b):
        for call in (a, b):
            timed(call, min(WARM_UP_S, seconds / 4), clock)
        end = clock() + int(seconds * 1e9)
        blocks: list[float] = []
        while not blocks or clock() < end:
            first, *both, last = (_turn(call, clock) for call in (a, b, b, a))
            blocks.append((first + last - sum(both)) / 2)
    return float(np.median(blocks))


def _turn(call: Call, clock: Clock) -> float:
    """Logarithm of the mean of a turn: what befalls one call in ten counts too, which a median would not see."""
    begun = clock()
    call()  # the caches are the other call's still
    took = clock() - begun
    return math.log(took / 1e9 if took >= TURN_S * 1e9 else float(timed(call, TURN_S, clock).mean()))


def _trimmed(logs: NDArray[np.float64]) -> tuple[float, float, int]:
    """Trimmed mean, its variance from the winsorised rounds, and the degrees of freedom."""
    ordered, cut = np.sort(logs), int(TRIMMED * logs.size)
    kept = ordered[cut : ordered.size - cut]
    winsorised = np.clip(ordered, kept[0], kept[-1])
    variance = (logs.size - 1) * float(winsorised.var(ddof=1)) / (kept.size * (kept.size - 1))
    return float(kept.mean()), variance, kept.size - 1
