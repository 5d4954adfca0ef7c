"""The rule of the latency gate: on rounds that are made up, and on simulated machines that are far from quiet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from random import Random

import numpy as np
import pytest

from trueport.pipeline.slowdown import LOOKS, Logs, Setting, latency_table, level_of, looked, verdict_of
from trueport.runtime.rounds import log_ratios
from trueport.runtime.verdict import Verdict


@pytest.fixture(autouse=True)
def no_collecting() -> Iterator[None]:
    """Nothing is really timed here, and collecting all the garbage of a test run takes long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trueport.runtime.rounds.no_collector", nullcontext)
        yield


SETTING = Setting(variant="fp32", runner="onnxruntime:cpu", batch=8, verdicts=1, seconds=2.0)
WORSE = 0.10
MS = 1_000_000


def rounds(slowdown: float, spread: float, count: int = 10) -> Logs:
    """With exactly that centre."""
    steps = np.linspace(-1, 1, count)
    return math.log1p(slowdown) + spread * steps


@pytest.mark.parametrize(
    ("slowdown", "spread", "status"),
    [
        (0.0, 0.01, "passed"),
        (-0.3, 0.01, "passed"),
        (0.04, 0.002, "passed"),
        (0.10, 0.01, "failed"),
        (0.07, 0.002, "failed"),
        (0.0, 0.1, "undecided"),
        (0.10, 0.2, "undecided"),
        (0.045, 0.02, "undecided"),
    ],
)
def test_a_verdict_is_what_the_interval_says(slowdown: float, spread: float, status: str) -> None:
    verdict = verdict_of(rounds(slowdown, spread), rounds(0, spread), SETTING)
    assert verdict.status == status
    assert verdict.gate == "latency"
    assert verdict.measured["slowdown"] == pytest.approx(slowdown, abs=1e-9)
    assert bool(verdict) == (status == "passed")


def test_a_failure_says_what_would_have_passed_and_a_pass_what_would_be_seen() -> None:
    failed = verdict_of(rounds(0.1, 0.01), rounds(0, 0.01), SETTING)
    assert failed.would_pass == {"slowdown": pytest.approx(0.1)}
    assert "batch 8: 1.100 times the baseline's time" in failed.detail
    passed = verdict_of(rounds(0, 0.01), rounds(0, 0.01), SETTING)
    assert f"a slowdown of {passed.measured['visible']:.1%} would be seen" in passed.detail
    noisier = verdict_of(rounds(0, 0.02), rounds(0, 0.02), SETTING)
    assert 0.05 < (passed.measured["visible"] or 0) < (noisier.measured["visible"] or 0)


def test_undecided_says_how_many_seconds_would_tell_and_they_do() -> None:
    then = rounds(0, 0.005)
    noisy = verdict_of(rounds(0, 0.06), then, SETTING)
    assert noisy.status == "undecided"
    assert noisy.needed is not None
    assert noisy.needed > 10
    assert f"--seconds {math.ceil(2 * noisy.needed / 10)}" in noisy.detail or "--seconds" in noisy.detail
    assert verdict_of(rounds(0, 0.06, 2 * noisy.needed), then, SETTING).status == "passed"


def test_a_noisy_baseline_is_told_apart_from_noise_now() -> None:
    verdict = verdict_of(rounds(0, 0.005), rounds(0, 0.2), SETTING)
    assert (verdict.status, verdict.needed) == ("undecided", None)
    assert "make it anew with --update-baseline" in verdict.detail


def test_what_lies_on_the_margin_is_not_asked_for_ever() -> None:
    verdict = verdict_of(rounds(0.0499, 0.05), rounds(0, 0.001), SETTING)
    assert (verdict.status, verdict.needed) == ("undecided", None)
    assert "too close to what is allowed" in verdict.detail


def test_more_verdicts_in_a_run_make_each_of_them_more_careful() -> None:
    assert 0.9 < level_of(1) < level_of(3) < 1


@pytest.mark.parametrize(("spread", "measured"), [(0.005, 1), (0.5, sum(LOOKS))])
def test_it_measures_until_it_is_decided(spread: float, measured: int) -> None:
    calls = []

    def measure() -> Logs:
        calls.append(1)
        return rounds(0, spread)

    looked(measure, rounds(0, 0.005), SETTING)
    assert len(calls) == measured


def test_the_table_shows_each_batch_and_why_it_did_not_pass() -> None:
    verdicts = tuple(verdict_of(rounds(s, 0.01), rounds(0, 0.01), SETTING) for s in (0.0, 0.1))
    table = latency_table(verdicts, "speed.json")
    assert [row[:3] for row in table.rows] == [("8", "passed", "+0.0%"), ("8", "failed", "+10.0%")]
    assert table.notes == (verdicts[1].detail,)
    assert "speed.json" in table.title


# Simulated machines


class SharedMachine:
    """Two calls on a machine that drifts twofold, with neighbours' bursts, stolen slices and luck at each opening."""

    def __init__(self, seed: int, slowdown: float) -> None:
        self.random = Random(seed)
        self.ns, self.slowdown = 0, slowdown
        self.burst_ends = self.next_burst = 0
        self.phase = self.random.uniform(0, 2 * math.pi)

    def __call__(self) -> int:
        return self.ns

    def call(self, cost_ms: float) -> Callable[[], None]:
        luck = math.exp(self.random.gauss(0, 0.01))

        def run() -> None:
            if self.ns > self.next_burst:
                self.burst_ends = self.ns + int(60 * self.random.expovariate(1) * MS)
                self.next_burst = self.burst_ends + int(500 * self.random.expovariate(1) * MS)
            drift = math.sqrt(2) ** math.sin(self.phase + self.ns / 3e8)
            busy = self.random.uniform(1, 3) if self.ns < self.burst_ends else self.random.uniform(1, 1.1)
            stolen = 4 * self.random.expovariate(1) if self.random.random() < 0.01 else 0.0
            self.ns += round((cost_ms * luck * drift * busy + stolen) * MS)

        return run

    @contextmanager
    def pair(self) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
        yield self.call(1 + self.slowdown), self.call(1.0)

    def rounds(self, seconds: float = 0.6) -> Logs:
        return log_ratios(self.pair, seconds=seconds, clock=self)


RUNS = 100


@cache
def statuses(slowdown: float) -> Counter[str]:
    """What gates say whose baseline was measured on the same kind of machine."""

    def gated(seed: int) -> Verdict:
        before, after = SharedMachine(2 * seed, 0.0), SharedMachine(2 * seed + 1, slowdown)
        baseline = np.concatenate([before.rounds() for _ in range(4)])
        return looked(after.rounds, baseline, SETTING)

    return Counter(gated(seed).status for seed in range(RUNS))


def test_nothing_but_noise_is_hardly_ever_a_regression() -> None:
    assert statuses(0.0)["failed"] <= 0.05 * RUNS
    assert statuses(0.0)["passed"] >= 0.7 * RUNS, "a gate that never passes is no gate"


def test_a_slowdown_of_ten_per_cent_is_nearly_always_found_and_never_passes() -> None:
    assert statuses(WORSE)["failed"] >= 0.95 * RUNS
    assert statuses(WORSE)["passed"] == 0


def test_pure_noise_without_any_centre_keeps_to_the_false_alarms_that_are_allowed() -> None:
    random, failed = np.random.default_rng(4), 0
    for _ in range(400):
        then = random.standard_t(4, 20) * 0.15
        failed += looked(lambda: random.standard_t(4, 10) * 0.15, then, SETTING).status == "failed"
    assert failed <= 0.05 * 400
