"""Scenarios: the arithmetic, the search, and a session that answers at once."""

from __future__ import annotations

import math
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from trueport.pipeline.bench import BenchReport, bench_scenarios, scenarios_table
from trueport.pipeline.scenarios import (
    CLOSE,
    SCENARIOS,
    TRIALS,
    Offline,
    Scenarios,
    Server,
    Trial,
    check_scenarios,
    confirmed,
    highest_rate,
    poisson_trial,
    run_scenarios,
    scenario_table,
    served,
    too_few,
    trial_of,
)
from trueport.runtime.errors import OutputError, OverloadedError, UsageError

PICTURES = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1)


class FakeSession:
    """Answers at once; refuses or breaks where it is told to."""

    def __init__(self, error: Exception | None = None, refuses: bool = False) -> None:
        self.error, self.refuses = error, refuses
        self.rows: list[Any] = []
        self.batcher = SimpleNamespace(limits=SimpleNamespace(max_batch_rows=4), submit=self.submit)

    def run(self, rows: Any) -> None:
        self.rows.append(rows)

    def submit(self, rows: Any) -> Future[dict[str, Any]]:
        if self.refuses:
            raise OverloadedError("the queue is full", 1.0)
        self.rows.append(rows)
        future: Future[dict[str, Any]] = Future()
        if self.error:
            future.set_exception(self.error)
        else:
            future.set_result({})
        return future


def trial(rate: float, met: bool | None) -> Trial:
    return Trial(rate=rate, queries=1000, refused=0, late=0, p99_ms=1.0, met=met)


@pytest.mark.parametrize("truth", [150.0, 1000.0, 9000.0])
def test_the_search_closes_in_on_the_highest_rate(truth: float) -> None:
    trials = highest_rate(lambda rate: trial(rate, rate <= truth), 100, 10_000)
    best = max((t.rate for t in trials if t.met), default=100)
    worst = min((t.rate for t in trials if not t.met), default=10_000)
    assert best <= truth < worst
    assert len(trials) <= TRIALS
    assert worst / best < 1.03 * CLOSE


def test_a_trial_without_an_answer_counts_as_not_met() -> None:
    assert not any(t.met for t in highest_rate(lambda rate: trial(rate, None), 100, 200))


def test_a_rate_counts_where_it_meets_the_bound_twice() -> None:
    once = [trial(100, True), trial(400, True), trial(200, True), trial(800, False)]
    again = confirmed(lambda rate: trial(rate, rate < 300), once)
    assert [(t.rate, t.met) for t in again] == [(400, False), (200, True)]
    assert [t.met for t in confirmed(lambda rate: trial(rate, False), once)] == [False] * 3
    assert confirmed(lambda rate: trial(rate, True), [trial(800, False)]) == []


@pytest.mark.parametrize(("late", "met"), [(0, True), (1, True), (2, False)])
def test_one_in_662_may_be_late(late: int, met: bool) -> None:
    latencies = np.full(662, 0.001)
    latencies[:late] = 0.1
    found = trial_of(latencies, 100.0, 662, 0, 0.015)
    assert (found.met, found.late) == (met, late)
    assert found.p99_ms is not None
    assert (found.p99_ms <= 15) == met


def test_too_few_queries_are_told_and_never_decided() -> None:
    found = trial_of(np.full(458, 0.001), 100.0, 458, 0, 0.015)
    assert (found.met, found.p99_ms) == (None, None)


def test_refused_queries_are_late_and_have_no_percentile() -> None:
    found = trial_of(np.full(662, math.inf), 100.0, 662, 662, 0.015)
    assert (found.met, found.late, found.p99_ms) == (False, 662, None)
    shown = scenario_table(Scenarios(server=Server(bound_ms=None, rate=None, trials=(found,))), "x")
    assert "662 refused by a full queue" in shown.rows[0][2]


def test_arrivals_are_the_same_for_a_seed_and_of_the_rate_asked_for() -> None:
    def sent(seed: int) -> list[int]:
        session = FakeSession()
        found = poisson_trial(session, PICTURES, 5000.0, 0.1, None, seed)  # type: ignore[arg-type]
        assert found.queries == len(session.rows) == 500
        assert all(rows.shape == (1, 2, 2, 1) for rows in session.rows)
        return [int(rows[0, 0, 0, 0]) for rows in session.rows]

    assert sent(1) == sent(1) != sent(2)


def test_a_trial_ends_as_soon_as_it_is_lost() -> None:
    session = FakeSession(refuses=True)
    found = poisson_trial(session, PICTURES, 20_000.0, 1.0, 15.0)  # type: ignore[arg-type]
    assert found.met is False
    assert found.queries < 500, "of 20,000"


def test_what_an_answer_holds_as_its_error_is_raised() -> None:
    with pytest.raises(OutputError, match="NaN"):
        poisson_trial(FakeSession(OutputError("NaN")), PICTURES, 1000.0, 0.05, None)  # type: ignore[arg-type]


def test_a_model_too_slow_for_a_percentile_is_told_the_seconds() -> None:
    slow = Offline(samples=10, batch=1, seconds=1.0, images_per_s=20.0)
    found = served(FakeSession(), PICTURES, 2.0, 15.0, None, slow, 0, lambda _: None)  # type: ignore[arg-type]
    assert (found.rate, found.trials) == (None, ())
    assert "--seconds 73 bring enough" in found.untold
    assert "needs 662 queries" in too_few(10, 1.0)


def test_offline_runs_full_batches_and_single_one_picture() -> None:
    session = FakeSession()
    found = run_scenarios(session, PICTURES, ["single", "offline"], seconds=0.02)  # type: ignore[arg-type]
    assert found.server is None
    assert found.single
    assert found.offline
    assert {len(rows) for rows in session.rows} == {1, 4}
    assert found.offline.samples % 4 == 0


def test_the_table_has_a_row_for_each_and_says_what_is_not_told() -> None:
    server = Server(bound_ms=15.0, rate=900.0, trials=(trial(900, True), trial(1000, False)))
    offline = Offline(samples=1000, batch=32, seconds=1.0, images_per_s=1234.0)
    table = scenario_table(Scenarios(offline=offline, server=server), "digits")
    assert table.rows == (
        ("offline", "1,000 samples, batches of 32", "1,234 images/s"),
        ("server", "2 rates tried, Poisson arrivals", "900 queries/s, p99 within 15 ms"),
    )
    untold = Server(bound_ms=15.0, rate=None, trials=(), untold="too few")
    assert scenario_table(Scenarios(server=untold), "digits").notes[0] == "too few"


@pytest.mark.parametrize(
    ("names", "options", "told"),
    [
        (["sinlge"], {}, "did you mean single"),
        ([""], {}, "unknown scenario"),
        (["server"], {"p99_ms": 0.0}, "p99_ms must be a number above 0, found 0.0"),
        (["server"], {"rate": math.nan}, "rate must be a number above 0, found nan"),
        (["single"], {"rate": 5.0}, "rate is of the server scenario"),
    ],
)
def test_bad_arguments_are_refused(names: list[str], options: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_scenarios(names, options.get("p99_ms"), options.get("rate"))


def test_all_of_them_run_on_a_real_session_and_go_to_json(bundle_path: Path) -> None:
    report = bench_scenarios(bundle_path, SCENARIOS, seconds=0.1, rate=200.0, threads=1)
    assert report.scenarios
    assert report.scenarios.single
    assert report.scenarios.offline
    assert report.scenarios.server
    assert report.scenarios.server.trials[0].queries == 20
    assert "bring enough" in report.scenarios.server.untold
    assert report.batches == ()
    assert len(scenarios_table(report).rows) == 3
    assert msgspec.json.decode(msgspec.json.encode(report), type=BenchReport) == report
