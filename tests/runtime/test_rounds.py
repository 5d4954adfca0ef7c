"""Rounds against a yardstick, on a clock of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest

from trueport.runtime.errors import UsageError
from trueport.runtime.rounds import ROUNDS, difference, log_ratios, student_quantile


@pytest.fixture(autouse=True)
def no_collecting() -> Iterator[None]:
    """Nothing is really timed here, and collecting all the garbage of a test run takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trueport.runtime.rounds.no_collector", nullcontext)
        yield


MS = 1_000_000


class Machine:
    """Time goes on only while a call runs, and faster where the machine is slower."""

    def __init__(self, slowness: Callable[[float], float] = lambda _: 1.0) -> None:
        self.ns, self.opened, self.closed = 0, 0, 0
        self.slowness = slowness

    def __call__(self) -> int:
        return self.ns

    def call(self, cost_ms: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            self.ns += round(cost_ms() * self.slowness(self.ns / 1e9) * MS)

        return run

    @contextmanager
    def pair(
        self, port_ms: Callable[[], float], yardstick_ms: Callable[[], float] = lambda: 1.0
    ) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
        self.opened += 1
        yield self.call(port_ms), self.call(yardstick_ms)
        self.closed += 1


def ratio(machine: Machine, port_ms: Callable[[], float], seconds: float = 1.0) -> float:
    logs = log_ratios(lambda: machine.pair(port_ms), seconds=seconds, clock=machine)
    return math.exp(np.mean(logs))


def test_steady_calls_have_the_exact_ratio_in_every_round() -> None:
    machine = Machine()
    logs = log_ratios(lambda: machine.pair(lambda: 0.25), seconds=1.0, clock=machine)
    np.testing.assert_allclose(np.exp(logs), 0.25)
    assert len(logs) == machine.opened == machine.closed == ROUNDS
    assert 1.0 <= machine.ns / 1e9 < 2.0


def test_a_machine_that_gets_twice_as_slow_leaves_the_ratio() -> None:
    machine = Machine(lambda now_s: 1 + now_s)
    assert ratio(machine, lambda: 0.5) == pytest.approx(0.5, rel=0.005)
    assert machine.slowness(machine.ns / 1e9) > 2


def test_one_call_in_ten_that_is_made_twice_counts() -> None:
    numbers = iter(range(10**9))
    assert ratio(Machine(), lambda: 0.1 * (2 if next(numbers) % 10 == 0 else 1)) == pytest.approx(0.11, rel=0.02)


def test_a_call_longer_than_the_time_given_is_measured_in_every_round() -> None:
    machine = Machine()
    assert ratio(machine, lambda: 300.0, seconds=0.1) == pytest.approx(300)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_nothing_can_be_measured_in_is_refused(seconds: float) -> None:
    machine = Machine()
    with pytest.raises(UsageError, match="positive number of seconds"):
        log_ratios(lambda: machine.pair(lambda: 1.0), seconds=seconds, clock=machine)
    assert machine.opened == 0


def test_too_few_rounds_are_refused() -> None:
    machine = Machine()
    with pytest.raises(UsageError, match="at least 8 of them, found 7"):
        log_ratios(lambda: machine.pair(lambda: 1.0), seconds=1.0, rounds=7, clock=machine)


@pytest.mark.parametrize(
    ("probability", "freedom", "value"),
    [
        (0.975, 5, 2.5706),
        (0.975, 10, 2.2281),
        (0.95, 8, 1.8595),
        (0.995, 5, 4.0321),
        (0.995, 10, 3.1693),
        (0.975, math.inf, 1.96),
    ],
)
def test_students_quantiles_are_those_of_the_tables(probability: float, freedom: float, value: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(value, rel=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random, covered = np.random.default_rng(1), 0
    for _ in range(500):
        found = difference(random.normal(0.3, 0.02, 10), random.normal(0.2, 0.05, 20), 0.95)
        covered += found.low <= math.exp(0.1) <= found.high
    assert 460 <= covered <= 495


def test_a_burst_in_a_few_rounds_moves_the_centre_but_little() -> None:
    random = np.random.default_rng(0)
    then, now = random.normal(0, 0.01, 20), random.normal(0, 0.01, 20)
    now[[3, 11, 17]] += 1.0
    assert difference(now, then, 0.95).ratio == pytest.approx(1, abs=0.02)


def test_rounds_without_any_spread_have_an_interval_without_width() -> None:
    found = difference(np.full(10, 0.1), np.zeros(10), 0.95)
    assert found.low == found.ratio == found.high == pytest.approx(math.exp(0.1))


def test_the_error_of_now_is_its_part_of_the_whole() -> None:
    random = np.random.default_rng(0)
    found = difference(random.normal(0, 0.05, 10), np.zeros(10), 0.95)
    assert found.error_now == pytest.approx(found.error)
    assert difference(np.zeros(10), random.normal(0, 0.05, 10), 0.95).error_now == 0
