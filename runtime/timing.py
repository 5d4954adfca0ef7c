"""Measuring how long a call takes, and how many times faster one call is than another, on machines that are not quiet.

Two calls are compared in ABBA blocks in one process: a drift of the machine meets both alike. Each block gives the log
ratio of its medians; the result is the median over blocks with a bootstrap interval. Within the same run A is compared
with itself, which tells how far from 1 a ratio gets by noise alone.
Percentiles are told only where enough samples stand behind them (percentiles.py).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .percentiles import LEVEL, median_interval, quantiles, samples_needed

Call = Callable[[], object]
Clock = Callable[[], int]
"""Nanoseconds from any origin."""

SEGMENT_S = 0.025
"""Uninterrupted run of one call in a block; less where the time given is short, more where one call takes longer."""
WARM_UP_S = 0.2
"""Longest warm-up of one call; one run at least."""
RESAMPLES = 2000
QUIET_WINDOW_S = 0.01
"""A whole tick of the slowest common kernel (100 Hz): the processor time of other threads is counted in ticks."""


class LatencySummary(msgspec.Struct, frozen=True, kw_only=True):
    """How long one call takes. A percentile is None where too few samples stand behind it."""

    count: int
    rows: int
    """Images in each call."""
    min_ms: float
    median_ms: float
    mean_ms: float
    p90_ms: float | None
    p99_ms: float | None
    images_per_s: float
    """All images over all of the time that the calls took."""
    median_low_ms: float | None = None
    """Lower end of the median's 95 % interval; None where samples are too few."""
    median_high_ms: float | None = None
    quantiles: tuple[tuple[float, float], ...] = ()
    """(probability, milliseconds) of the distribution, as far out as samples allow."""


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """A against B, measured in turns."""

    a: LatencySummary
    b: LatencySummary
    ratio: float
    """Time of A over time of B; above 1, B is faster."""
    ratio_low: float
    """Lower end of the 95 % interval."""
    ratio_high: float
    noise: float
    """How far from 1 the 95 % interval of A against itself reaches; 0.02: two per cent."""
    blocks: int

    @property
    def differs(self) -> bool:
        """Whether one is faster beyond doubt: the interval keeps clear of 1 by more than the noise."""
        return self.ratio_low > 1 + self.noise or self.ratio_high < 1 / (1 + self.noise)


@dataclass(frozen=True, eq=False)
class Samples:
    """Durations of single calls.

    seconds: float64 (count,), in the order they were made
    rows: images in each call
    Raises UsageError where there is no sample.
    """

    seconds: NDArray[np.float64]
    rows: int

    def __post_init__(self) -> None:
        if self.seconds.size == 0:
            raise UsageError("a summary of latencies needs at least one sample, found none: measure for longer")

    def summary(self) -> LatencySummary:
        """Median, mean, and those percentiles that the number of samples allows."""
        total = float(self.seconds.sum())
        interval = median_interval(self.seconds)
        low_ms, high_ms = (end * 1e3 for end in interval) if interval else (None, None)
        return LatencySummary(
            count=self.seconds.size,
            rows=self.rows,
            min_ms=float(self.seconds.min()) * 1e3,
            median_ms=float(np.median(self.seconds)) * 1e3,
            mean_ms=total / self.seconds.size * 1e3,
            p90_ms=self.percentile_ms(0.90),
            p99_ms=self.percentile_ms(0.99),
            images_per_s=self.rows * self.seconds.size / total,
            median_low_ms=low_ms,
            median_high_ms=high_ms,
            quantiles=quantiles(self.seconds),
        )

    def percentile_ms(self, percentile: float) -> float | None:
        """The nearest-rank percentile (a fraction, 0.99) in milliseconds, None where samples are too few for it."""
        if self.seconds.size < samples_needed(percentile):
            return None
        return float(np.quantile(self.seconds, percentile, method="inverted_cdf")) * 1e3


def measure(call: Call, *, seconds: float, rows: int, clock: Clock = time.perf_counter_ns) -> LatencySummary:
    """Time one call alone, for so many seconds after a warm-up. Raises UsageError for a bad argument."""
    _check(seconds, rows)
    with no_collector():
        timed(call, min(WARM_UP_S, seconds / 10), clock)
        durations = timed(call, seconds, clock)
    return Samples(durations, rows).summary()


def compare(
    a: Call,
    b: Call,
    *,
    seconds: float,
    min_blocks: int,
    rows: int,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
) -> Paired:
    """Time A and B in ABBA blocks for about so many seconds in all, and for at least so many blocks.

    rows: images in each call of either. seed: of the bootstrap.
    Raises UsageError for a bad argument; what A or B raises passes through.
    """
    _check(seconds, rows)
    if min_blocks < 2:
        raise UsageError(f"an interval over blocks needs at least 2 of them, found min_blocks = {min_blocks}")
    segment_s = min(SEGMENT_S, seconds / (4 * min_blocks))
    blocks = _Blocks()
    with no_collector():
        end = clock() + int(seconds * 1e9)
        for call in (b, a):
            timed(call, min(WARM_UP_S, seconds / 20), clock)
        _settle(a, segment_s, clock)
        while len(blocks.a) < min_blocks or clock() < end:
            first = timed(a, segment_s, clock)
            _settle(b, segment_s, clock)
            both = timed(b, segment_s, clock), timed(b, segment_s, clock)
            _settle(a, segment_s, clock)
            blocks.add((first, timed(a, segment_s, clock)), both)
    return blocks.paired(rows, seed)


Segments = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class _Blocks:
    """Durations in seconds by block: A's first and last segment, B's two between them."""

    a: list[Segments] = field(default_factory=list)
    b: list[Segments] = field(default_factory=list)

    def add(self, a: Segments, b: Segments) -> None:
        self.a.append(a)
        self.b.append(b)

    def paired(self, rows: int, seed: int) -> Paired:
        log_a, log_b = _log_medians(self.a), _log_medians(self.b)
        # The mean of a block's two segments: what drifts steadily cancels.
        ratio, low, high = ratio_interval(log_a.mean(axis=1) - log_b.mean(axis=1), seed)
        # The first A follows A, the last follows B: what one call does to the next shows here too.
        _, control_low, control_high = ratio_interval(log_a[:, 1] - log_a[:, 0], seed)
        return Paired(
            a=Samples(_pooled(self.a), rows).summary(),
            b=Samples(_pooled(self.b), rows).summary(),
            ratio=ratio,
            ratio_low=low,
            ratio_high=high,
            noise=max(control_high, 1 / control_low) - 1,
            blocks=len(self.a),
        )


def ratio_interval(log_ratios: NDArray[np.float64], seed: int) -> tuple[float, float, float]:
    """Median ratio of the blocks' log ratios (blocks,) and the ends of its 95 % bootstrap interval."""
    picks = np.random.default_rng(seed).integers(0, log_ratios.size, (RESAMPLES, log_ratios.size))
    medians = np.median(log_ratios[picks], axis=1)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return math.exp(np.median(log_ratios)), math.exp(low), math.exp(high)


def wait_until_quiet(limit_s: float = 0.2) -> None:
    """Wait until this process is idle: thread pools of onnxruntime and OpenMP spin on for up to 50 ms after a call.

    Without it a pool takes the cores from whatever is measured next; on two cores that made eager torch look four times
    slower after onnxruntime than it is.
    """
    give_up = time.perf_counter() + limit_s
    busy = 1.0
    while busy > 0.2 and time.perf_counter() < give_up:
        wall, used = time.perf_counter(), time.process_time()
        time.sleep(QUIET_WINDOW_S)
        busy = (time.process_time() - used) / (time.perf_counter() - wall)


def _settle(call: Call, segment_s: float, clock: Clock) -> None:
    """After a change of call: let the other one's threads come to rest, then warm this one up again."""
    wait_until_quiet()
    timed(call, segment_s / 8, clock)


def timed(call: Call, seconds: float, clock: Clock) -> NDArray[np.float64]:
    """Durations in seconds of calls one after another until so much time has passed, one call at least.

    The end is set by time and not by a count, so that a neighbour who takes the processor can't make it last longer.
    """
    stamps = [clock()]
    end = stamps[0] + int(seconds * 1e9)
    while len(stamps) == 1 or stamps[-1] < end:
        call()
        stamps.append(clock())
    # A call shorter than the clock's step took at least some of it.
    durations: NDArray[np.float64] = np.maximum(np.diff(np.array(stamps, np.int64)), 1) / 1e9
    return durations


@contextmanager
def no_collector() -> Iterator[None]:
    """Keep the garbage collector out of what is timed."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def check_seconds(seconds: float) -> None:
    """Raise UsageError for a time that nothing can be measured in."""
    if not (0 < seconds < math.inf):
        raise UsageError(f"the time to measure must be a positive number of seconds, found {seconds}")


def _check(seconds: float, rows: int) -> None:
    check_seconds(seconds)
    if rows < 1:
        raise UsageError(f"a call must have at least one row, found {rows}")


def _log_medians(segments: list[Segments]) -> NDArray[np.float64]:
    """(blocks, 2)"""
    return np.log([[np.median(first), np.median(last)] for first, last in segments])


def _pooled(segments: list[Segments]) -> NDArray[np.float64]:
    return np.concatenate([part for pair in segments for part in pair])
