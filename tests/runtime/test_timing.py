"""Everything here runs on a clock of its own: a call costs what the test says."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from trueport.runtime import timing
from trueport.runtime.errors import UsageError
from trueport.runtime.timing import LatencySummary, Paired, Samples, compare, measure, ratio_interval

MS = 1_000_000


class Clock:
    """Time goes on only while a call runs."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def call(self, cost_ms: Callable[[], float] | float) -> Callable[[], None]:
        def run() -> None:
            self.ns += round((cost_ms if isinstance(cost_ms, (int, float)) else cost_ms()) * MS)

        return run


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "wait_until_quiet", lambda: None)


def paired(a: Callable[[], None], b: Callable[[], None], clock: Clock, seconds: float = 2.0) -> Paired:
    return compare(a, b, seconds=seconds, min_blocks=5, rows=4, clock=clock)


# Summaries


def test_a_percentile_is_told_only_with_enough_samples() -> None:
    def told(count: int) -> tuple[bool, bool]:
        summary = Samples(np.arange(1, count + 1) / 1e3, rows=1).summary()
        return summary.p90_ms is not None, summary.p99_ms is not None

    assert [told(count) for count in (63, 64, 661, 662)] == [(False, False), (True, False), (True, False), (True, True)]


def test_summary_of_known_durations() -> None:
    summary = Samples(np.arange(1, 101) / 1e3, rows=8).summary()
    assert (summary.count, summary.rows) == (100, 8)
    assert summary.min_ms == pytest.approx(1)
    assert summary.median_ms == pytest.approx(50.5)
    assert summary.mean_ms == pytest.approx(50.5)
    assert summary.p90_ms == pytest.approx(90)
    assert summary.images_per_s == pytest.approx(8 * 1000 / 50.5)


def test_a_summary_keeps_the_distribution_and_the_interval_of_the_median() -> None:
    few = Samples(np.arange(1, 6) / 1e3, rows=1).summary()
    assert (few.median_low_ms, few.median_high_ms, few.quantiles) == (None, None, ())
    many = Samples(np.random.default_rng(0).permutation(np.arange(1, 1001)) / 1e3, rows=1).summary()
    assert many.median_low_ms is not None
    assert many.median_high_ms is not None
    assert 400 < many.median_low_ms < many.median_ms < many.median_high_ms < 600
    assert dict(many.quantiles)[0.9] == pytest.approx(900)
    assert 0.999 not in dict(many.quantiles)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(UsageError, match="at least one sample"):
        Samples(np.empty(0), rows=1)


# One call


def test_measure_times_the_call_and_leaves_the_warm_up_out() -> None:
    clock, costs = Clock(), iter([500.0])
    summary = measure(clock.call(lambda: next(costs, 2.0)), seconds=1.0, rows=3, clock=clock)
    assert (summary.count, summary.median_ms, summary.mean_ms) == pytest.approx((500, 2, 2))
    assert summary.images_per_s == pytest.approx(1500)


def test_measure_times_a_call_longer_than_the_time_given() -> None:
    clock = Clock()
    assert measure(clock.call(5000), seconds=0.1, rows=1, clock=clock).count == 1


# Two calls


def test_steady_calls_have_the_exact_ratio_and_no_noise() -> None:
    clock = Clock()
    result = paired(clock.call(3.0), clock.call(1.0), clock)
    assert (result.ratio, result.ratio_low, result.ratio_high) == pytest.approx((3, 3, 3))
    assert result.noise == pytest.approx(0)
    assert result.differs
    assert (result.a.median_ms, result.b.median_ms) == (3.0, 1.0)
    assert result.a.rows == result.b.rows == 4


def test_equal_calls_do_not_differ() -> None:
    clock = Clock()
    result = paired(clock.call(1.0), clock.call(1.0), clock)
    assert result.ratio == pytest.approx(1)
    assert not result.differs


def test_calls_take_turns_as_abba() -> None:
    clock, order = Clock(), []

    def named(name: str) -> Callable[[], None]:
        advance = clock.call(25.0)

        def run() -> None:
            order.append(name)
            advance()

        return run

    result = compare(named("a"), named("b"), seconds=0.5, min_blocks=3, rows=1, clock=clock)
    warm_up = "baa"
    block = "a" + "b" + "bb" + "a" + "a"  # the first of a changed call is not timed
    assert "".join(order) == warm_up + block * result.blocks
    assert result.a.count == result.b.count == 2 * result.blocks


def test_a_steady_drift_of_the_machine_cancels() -> None:
    clock = Clock()

    def slowing(cost: float) -> Callable[[], float]:
        return lambda: cost * math.exp(clock.ns / 2e9)

    result = paired(clock.call(slowing(0.2)), clock.call(slowing(0.1)), clock)
    drift = result.a.p99_ms / result.a.min_ms if result.a.p99_ms else 0
    assert drift > 2, "the machine of this test must really slow down"
    assert result.ratio == pytest.approx(2, rel=0.005)


def test_a_neighbour_in_a_few_blocks_does_not_move_the_ratio() -> None:
    clock = Clock()
    calm, disturbed = clock.call(1.0), clock.call(10.0)

    def b() -> None:
        (disturbed if 0.5e9 < clock.ns < 0.7e9 else calm)()

    result = paired(clock.call(2.0), b, clock)
    assert result.b.mean_ms > 1.05
    assert result.ratio == pytest.approx(2)


def test_jitter_between_segments_widens_the_interval_and_is_told_as_noise() -> None:
    clock, random = Clock(), np.random.default_rng(3)

    def jittery() -> float:
        phase = clock.ns // (10 * MS)
        return float(np.random.default_rng(phase).lognormal(sigma=0.3) * random.uniform(0.99, 1.01))

    result = paired(clock.call(jittery), clock.call(jittery), clock)
    assert result.ratio_low < 1 < result.ratio_high
    assert result.ratio_high / result.ratio_low > 1.05
    assert result.noise > 0.02
    assert not result.differs


def test_what_one_call_does_to_the_next_shows_as_noise() -> None:
    clock, b_ended = Clock(), [-1]
    run_b = clock.call(1.0)

    def b() -> None:
        run_b()
        b_ended[0] = clock.ns

    result = paired(clock.call(lambda: 1.5 if clock.ns - b_ended[0] < 40 * MS else 1.0), b, clock)
    assert result.noise == pytest.approx(0.5)
    assert not result.differs


def test_a_fast_pair_keeps_to_its_time_and_a_slow_one_to_its_blocks() -> None:
    clock = Clock()
    fast = paired(clock.call(0.1), clock.call(0.05), clock)
    assert fast.blocks > 5
    assert 2.0 <= clock.ns / 1e9 < 2.5
    assert paired(clock.call(700), clock.call(300), clock).blocks == 5


def test_a_call_below_the_clocks_step_still_has_a_ratio() -> None:
    clock, ticks = Clock(), [0]

    def tiny() -> None:
        ticks[0] += 1
        clock.ns += 100 if ticks[0] % 4 == 0 else 0

    result = compare(clock.call(0.001), tiny, seconds=0.001, min_blocks=2, rows=1, clock=clock)
    assert math.isfinite(result.ratio)
    assert result.ratio > 1


def test_the_same_seed_gives_the_same_interval_and_more_blocks_a_narrower_one() -> None:
    logs = np.random.default_rng(0).normal(0.5, 0.1, 400)
    assert ratio_interval(logs, seed=1) == ratio_interval(logs, seed=1)

    def width(count: int) -> float:
        _, low, high = ratio_interval(logs[:count], seed=0)
        return high - low

    assert width(400) < width(25) / 2


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        _, low, high = ratio_interval(random.normal(0, 0.1, 30), seed=0)
        covered += low <= 1 <= high
    assert 180 <= covered <= 199


def test_the_garbage_collector_rests_while_timing_and_is_restored() -> None:
    clock, seen = Clock(), []
    advance = clock.call(10)

    def watched() -> None:
        seen.append(gc.isenabled())
        advance()

    def broken() -> None:
        raise ArithmeticError

    paired(watched, watched, clock, seconds=0.1)
    assert seen
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(ArithmeticError):
        paired(watched, broken, clock)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": 0.0}, "positive number of seconds, found 0.0"),
        ({"seconds": math.nan}, "found nan"),
        ({"min_blocks": 1}, "at least 2 of them, found min_blocks = 1"),
        ({"rows": 0}, "at least one row, found 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(changes: dict[str, float], message: str) -> None:
    def never() -> None:
        pytest.fail("ran")

    with pytest.raises(UsageError, match=message):
        compare(never, never, **({"seconds": 1.0, "min_blocks": 5, "rows": 1} | changes))  # type: ignore[arg-type]


def test_results_go_to_json_and_back() -> None:
    clock = Clock()
    result = paired(clock.call(1.5), clock.call(1.0), clock)
    assert msgspec.json.decode(msgspec.json.encode(result), type=Paired) == result
    assert isinstance(result.a, LatencySummary)


# Coming to rest


class Process:
    """A process whose threads stay busy for a while; sleeping is what lets time pass."""

    def __init__(self, busy_s: float) -> None:
        self.now, self.busy_s = 0.0, busy_s

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return min(self.now, self.busy_s)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("busy_s", "waited_s"), [(0.0, 0.01), (0.05, 0.06), (9.0, 0.2)])
def test_waiting_ends_when_threads_rest_or_patience_does(
    monkeypatch: pytest.MonkeyPatch, busy_s: float, waited_s: float
) -> None:
    monkeypatch.undo()
    process = Process(busy_s)
    monkeypatch.setattr(timing, "time", process)
    timing.wait_until_quiet(limit_s=0.2)
    assert process.now == pytest.approx(waited_s, abs=0.011)
