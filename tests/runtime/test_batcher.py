"""The worker around the batching policy: runs are held at a gate, so that nothing here depends on timing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import math
import queue
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trueport.runtime import batcher as batcher_module
from trueport.runtime.batcher import Batcher
from trueport.runtime.batching import BatchLimits, LatencyCurve
from trueport.runtime.errors import (
    ClosedError,
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    StuckError,
    UsageError,
)
from trueport.runtime.runner import Array

PATIENCE_S = 20.0
"""Before a test that hangs is given up; nothing waits for so long when all is well."""


def rows(*values: int) -> Array:
    return np.array([[value, -value] for value in values], np.int64)


class Gated:
    """A run that doubles its rows, tells when it begins and waits for its gate; it fails for rows that hold 13."""

    def __init__(self, is_open: bool = False) -> None:
        self.gate = threading.Event()
        self.begun: queue.Queue[Array] = queue.Queue()
        if is_open:
            self.gate.set()

    def __call__(self, batch: Array) -> dict[str, Array]:
        self.begun.put(batch)
        if not self.gate.wait(PATIENCE_S):
            raise TimeoutError("the gate stayed closed")
        if (batch == 13).any():
            raise ValueError("thirteen")
        return {"doubled": batch * 2, "total": batch.sum(axis=1)}

    def next_batch(self) -> list[int]:
        """The first value of each row of the next run, as soon as it has begun."""
        return [int(value) for value in self.begun.get(timeout=PATIENCE_S)[:, 0]]

    def all_batches(self) -> list[list[int]]:
        return [self.next_batch() for _ in range(self.begun.qsize())]


@pytest.fixture
def run() -> Gated:
    return Gated()


@pytest.fixture
def make(run: Gated) -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def batcher(**options: Any) -> Batcher:
        made.append(Batcher(options.pop("run", run), **options))
        return made[-1]

    yield batcher
    run.gate.set()
    for each in made:
        each.close()


def doubled(future: concurrent.futures.Future[dict[str, Array]]) -> list[int]:
    return [int(value) for value in future.result(PATIENCE_S)["doubled"][:, 0]]


class TestBatches:
    def test_a_lone_request_is_answered_at_once_and_not_copied(self, make: Callable[..., Batcher], run: Gated) -> None:
        run.gate.set()
        request = rows(1, 2)
        answer = make().submit(request).result(PATIENCE_S)
        assert run.begun.get_nowait() is request
        assert answer.keys() == {"doubled", "total"}
        np.testing.assert_array_equal(answer["doubled"], request * 2)
        np.testing.assert_array_equal(answer["total"], [0, 0])

    def test_what_arrives_while_the_runner_is_busy_is_one_batch(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()
        first = batcher.submit(rows(0))
        assert run.next_batch() == [0]
        others = [batcher.submit(rows(value, value + 100)) for value in range(1, 6)]
        assert batcher.stats().queued_rows == 10
        run.gate.set()
        assert [doubled(future) for future in others] == [[2 * v, 2 * v + 200] for v in range(1, 6)]
        assert doubled(first) == [0]
        assert run.next_batch() == [1, 101, 2, 102, 3, 103, 4, 104, 5, 105]
        assert run.begun.empty()

    def test_answers_of_a_batch_are_views(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()
        batcher.submit(rows(0))
        run.next_batch()
        a, b = batcher.submit(rows(1)), batcher.submit(rows(2))
        run.gate.set()
        assert a.result(PATIENCE_S)["doubled"].base is b.result(PATIENCE_S)["doubled"].base is not None

    def test_a_batch_holds_at_most_its_rows_and_no_request_is_split(
        self, make: Callable[..., Batcher], run: Gated
    ) -> None:
        batcher = make(limits=BatchLimits(max_batch_rows=4))
        futures = [batcher.submit(rows(0))]
        run.next_batch()
        futures += [batcher.submit(rows(*values)) for values in ([1, 2], [3], [4, 5], [6], [7, 8, 9, 10])]
        run.gate.set()
        assert [doubled(future) for future in futures][-1] == [14, 16, 18, 20]
        assert run.all_batches() == [[1, 2, 3], [4, 5, 6], [7, 8, 9, 10]]

    def test_a_request_larger_than_a_batch_runs_alone_in_parts_and_is_answered_whole(
        self, make: Callable[..., Batcher], run: Gated
    ) -> None:
        batcher = make(limits=BatchLimits(max_batch_rows=4, max_request_rows=10))
        futures = [batcher.submit(rows(0))]
        run.next_batch()
        futures += [batcher.submit(rows(*values)) for values in ([1], range(20, 30), [30], [31])]
        with pytest.raises(InvalidRequestError, match="at most 10 rows, found 11"):
            batcher.submit(rows(*range(11)))
        run.gate.set()
        assert [doubled(future) for future in futures] == [[0], [2], [*range(40, 60, 2)], [60], [62]]
        assert run.all_batches() == [[1], [20, 21, 22, 23], [24, 25, 26, 27], [28, 29], [30, 31]]
        batcher.close()
        assert (batcher.stats().batches, batcher.stats().rows) == (6, 14)

    def test_higher_priority_runs_first(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make(limits=BatchLimits(max_batch_rows=1))
        futures = [batcher.submit(rows(0))]
        run.next_batch()
        futures += [batcher.submit(rows(v), priority=p) for v, p in [(1, 0), (2, -1), (3, 7), (4, 0), (5, 7)]]
        run.gate.set()
        concurrent.futures.wait(futures, PATIENCE_S)
        assert run.all_batches() == [[3], [5], [1], [4], [2]]

    def test_workers_run_batches_at_once(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make(workers=2)
        futures = []
        for value in (1, 2):
            futures.append(batcher.submit(rows(value)))
            assert run.next_batch() == [value]  # begins though the gate is closed for the one before
        run.gate.set()
        assert [doubled(future) for future in futures] == [[2], [4]]

    @pytest.mark.parametrize("workers", [1, 3])
    def test_everybody_gets_their_own_answer_under_load(self, make: Callable[..., Batcher], workers: int) -> None:
        batcher = make(run=Gated(is_open=True), limits=BatchLimits(max_batch_rows=8), workers=workers)
        wrong: list[object] = []

        def caller(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(60):
                sent = [
                    rows(*(chance.randrange(14, 10**9) for _ in range(chance.randint(1, 5))))
                    for _ in range(chance.randint(1, 4))
                ]
                futures = [batcher.submit(each, priority=chance.randint(0, 1)) for each in sent]
                for each, future in zip(sent, futures, strict=True):
                    if not np.array_equal(future.result(PATIENCE_S)["doubled"], each * 2):
                        wrong.append(each)

        callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(8)]
        for each in callers:
            each.start()
        for each in callers:
            each.join(PATIENCE_S)
        assert not wrong
        stats = batcher.stats()
        assert stats.queued_rows == stats.failed == stats.cancelled == 0
        assert stats.requests >= 8 * 60

    @pytest.mark.parametrize("other", [np.ones((1, 2), np.float32), np.ones((1, 2), ">i8"), np.ones((2, 3), np.int64)])
    def test_mixed_types_and_shapes_are_run_apart_and_never_cast(
        self, make: Callable[..., Batcher], run: Gated, other: Array
    ) -> None:
        batcher = make()
        batcher.submit(rows(0))
        run.next_batch()
        sent = [rows(1), other, rows(2)]
        futures = [batcher.submit(each) for each in sent]
        run.gate.set()
        for each, future in zip(sent, futures, strict=True):
            np.testing.assert_array_equal(future.result(PATIENCE_S)["doubled"], each * 2)
        ran = [run.begun.get_nowait() for _ in range(run.begun.qsize())]
        assert {(batch.dtype, batch.shape[1:]) for batch in ran} == {(each.dtype, each.shape[1:]) for each in sent}

    def test_no_arrays_are_kept_while_nothing_runs(self, make: Callable[..., Batcher], run: Gated) -> None:
        run.gate.set()
        batcher = make()
        request = rows(1)
        gone = weakref.ref(request)
        gc.disable()  # nothing may depend on the collector of cycles
        try:
            batcher.submit(request).result(PATIENCE_S)
            run.begun.get_nowait()
            del request
            end_s = time.monotonic() + PATIENCE_S
            while gone() is not None and time.monotonic() < end_s:
                time.sleep(0.001)
            assert gone() is None
        finally:
            gc.enable()


class TestCompany:
    patient = BatchLimits(max_batch_rows=3, max_wait_s=3600.0)

    def test_a_free_runner_waits_for_company_and_runs_when_full(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make(limits=self.patient)
        run.gate.set()
        futures = [batcher.submit(rows(value)) for value in (1, 2, 3)]
        assert [doubled(future) for future in futures] == [[2], [4], [6]]
        assert run.all_batches() == [[1, 2, 3]]

    def test_waits_no_longer_than_it_was_told(self, make: Callable[..., Batcher], run: Gated) -> None:
        run.gate.set()
        assert doubled(make(limits=BatchLimits(max_wait_s=0.01)).submit(rows(1))) == [2]

    def test_a_deadline_within_the_wait_is_not_waited_for(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make(limits=self.patient)
        run.gate.set()
        futures = [batcher.submit(rows(1)), batcher.submit(rows(2), deadline_s=60.0)]
        assert [doubled(future) for future in futures] == [[2], [4]]

    def test_what_does_not_fit_wakes_the_next_free_worker(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make(limits=BatchLimits(max_batch_rows=3, max_wait_s=0.2), workers=2)
        run.gate.set()
        doubled(batcher.submit(rows(7, 8, 9)))
        run.next_batch()
        run.gate.clear()
        time.sleep(0.02)  # both workers sleep by now, most likely; they are right if they don't
        batcher.submit(rows(1, 2))
        time.sleep(0.02)
        batcher.submit(rows(3, 4))
        assert sorted(run.next_batch() + run.next_batch()) == [1, 2, 3, 4]  # both begin while the gate is closed

    def test_closing_waits_for_no_company(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make(limits=self.patient)
        run.gate.set()
        future = batcher.submit(rows(1))
        batcher.close()
        assert doubled(future) == [2]


class TestRefusal:
    def test_a_full_queue_refuses_and_tells_the_wait(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make(limits=BatchLimits(max_batch_rows=2, max_queue_rows=3), curve=LatencyCurve(((1, 9e6),)))
        batcher.submit(rows(0))
        run.next_batch()
        batcher.submit(rows(1, 2))
        with pytest.raises(OverloadedError, match="holds 2 rows of at most 3, no room for 2 more") as refused:
            batcher.submit(rows(3, 4))
        assert 8e6 < refused.value.expected_wait_s <= 9e6  # the run in progress has begun a moment ago
        assert batcher.stats().refused == 1
        assert batcher.stats().queued_rows == 2

    def test_a_deadline_that_can_not_be_met_is_refused(
        self, make: Callable[..., Batcher], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batcher_module, "STALE_S", math.inf)
        batcher = make(curve=LatencyCurve(((1, 5.0),)))
        with pytest.raises(OverloadedError, match="1000 ms away and the answer is expected in 5750 ms") as refused:
            batcher.submit(rows(1), deadline_s=1.0)
        assert refused.value.expected_wait_s == pytest.approx(4.75)

    def test_an_old_estimate_keeps_nobody_from_being_run(
        self, make: Callable[..., Batcher], run: Gated, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batcher_module, "STALE_S", -1.0)
        run.gate.set()
        batcher = make(curve=LatencyCurve(((1, 3600.0),)))
        assert doubled(batcher.submit(rows(1), deadline_s=1800.0)) == [2]

    def test_an_old_estimate_does_not_refuse_for_ever(
        self, make: Callable[..., Batcher], run: Gated, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batcher_module, "STALE_S", -1.0)
        batcher = make(curve=LatencyCurve(((1, 3600.0),)))
        future = batcher.submit(rows(1), deadline_s=1800.0)
        with pytest.raises(OverloadedError):  # one at a time is enough to measure
            batcher.submit(rows(2), deadline_s=1800.0)
        run.gate.set()
        assert doubled(future) == [2]
        assert batcher.curve.seconds(1) < 3600.0

    def test_latency_is_learnt_from_what_ran(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()
        future = batcher.submit(rows(1))
        run.next_batch()
        time.sleep(0.01)
        run.gate.set()
        future.result(PATIENCE_S)
        assert 0.01 <= batcher.curve.seconds(1) < PATIENCE_S

    def test_a_deadline_that_passes_in_the_queue_is_told_and_not_run(
        self, make: Callable[..., Batcher], run: Gated
    ) -> None:
        batcher = make()
        batcher.submit(rows(0))
        run.next_batch()
        late, patient = batcher.submit(rows(1), deadline_s=0.001), batcher.submit(rows(2))
        end_s = time.monotonic() + 0.001
        while time.monotonic() <= end_s:
            time.sleep(0.001)
        run.gate.set()
        with pytest.raises(DeadlineError, match="ms in the queue"):
            late.result(PATIENCE_S)
        assert doubled(patient) == [4]
        assert run.all_batches() == [[2]]
        assert batcher.stats().expired == 1

    @pytest.mark.parametrize(
        ("array", "found"),
        [
            (np.zeros((33, 2)), "at most 32 rows, found 33"),
            (np.zeros((0, 2)), r"one or more rows, found shape \(0, 2\)"),
            (np.zeros(()), r"found shape \(\)"),
            ([[1, 2]], "found list"),
        ],
    )
    def test_what_is_not_rows_is_refused(self, make: Callable[..., Batcher], array: Any, found: str) -> None:
        batcher = make()
        with pytest.raises(InvalidRequestError, match=found):
            batcher.submit(array)
        assert batcher.stats().refused == 0

    @pytest.mark.parametrize("deadline_s", [0.0, -1.0, math.nan])
    def test_a_deadline_has_to_be_ahead(self, make: Callable[..., Batcher], deadline_s: float) -> None:
        with pytest.raises(InvalidRequestError, match="deadline_s"):
            make().submit(rows(1), deadline_s=deadline_s)

    def test_a_batcher_needs_workers(self, run: Gated) -> None:
        with pytest.raises(UsageError, match="at least 1 worker"):
            Batcher(run, workers=0)


class TestFailure:
    @pytest.mark.parametrize("culprits", [{0}, {5}, {3, 4}, {0, 2, 5}, set(range(6))])
    def test_only_the_culprits_fail(self, make: Callable[..., Batcher], run: Gated, culprits: set[int]) -> None:
        batcher = make()
        batcher.submit(rows(0))
        run.next_batch()
        futures = [batcher.submit(rows(13) if n in culprits else rows(n, n + 20)) for n in range(6)]
        run.gate.set()
        for number, future in enumerate(futures):
            if number in culprits:
                with pytest.raises(ValueError, match="thirteen"):
                    future.result(PATIENCE_S)
            else:
                assert doubled(future) == [2 * number, 2 * number + 40]
        stats = batcher.stats()
        assert (stats.failed, stats.requests, stats.batches) == (len(culprits), 7 - len(culprits), 2)
        assert stats.rows == 1 + 2 * (6 - len(culprits))

    def test_another_number_of_rows_is_an_error_not_somebody_elses_answer(self, make: Callable[..., Batcher]) -> None:
        batcher = make(run=lambda batch: {"logits": np.zeros((len(batch) + 1, 2))})
        with pytest.raises(RequestError, match="'logits' has 2 rows, expected the 1 that were run"):
            batcher.submit(rows(1)).result(PATIENCE_S)

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), StopIteration(), GeneratorExit()])
    def test_an_exit_inside_a_run_is_told_and_the_worker_lives(
        self, make: Callable[..., Batcher], error: BaseException
    ) -> None:
        failing = True

        def once(batch: Array) -> dict[str, Array]:
            if failing:
                raise error
            return {"doubled": batch * 2}

        batcher = make(run=once)
        with pytest.raises(RequestError, match=type(error).__name__) as raised:
            asyncio.run(asyncio.wait_for(batcher.asubmit(rows(1)), PATIENCE_S))
        assert raised.value.__cause__ is error
        with pytest.raises(RequestError):
            batcher.submit(rows(1)).result(PATIENCE_S)
        failing = False
        assert doubled(batcher.submit(rows(1))) == [2]

    def test_a_callback_that_exits_takes_nobody_with_it(
        self, make: Callable[..., Batcher], run: Gated, caplog: pytest.LogCaptureFixture
    ) -> None:
        def leave(_: object) -> None:
            raise SystemExit("a callback's own affair")

        batcher = make()
        batcher.submit(rows(0))
        run.next_batch()
        futures = [batcher.submit(rows(1)), batcher.submit(rows(2))]
        futures[0].add_done_callback(leave)
        run.gate.set()
        assert [doubled(future) for future in futures] == [[2], [4]]
        assert doubled(batcher.submit(rows(3))) == [6]
        assert "a callback" in caplog.text


class TestCancellation:
    def test_a_future_cancelled_in_the_queue_gives_its_rows_back_and_is_not_run(
        self, make: Callable[..., Batcher], run: Gated
    ) -> None:
        batcher = make(limits=BatchLimits(max_batch_rows=2, max_queue_rows=2))
        batcher.submit(rows(0))
        run.next_batch()
        unwanted = batcher.submit(rows(1, 2))
        assert unwanted.cancel()
        assert unwanted.cancel(), "as often as one likes"
        assert batcher.stats().queued_rows == 0
        assert concurrent.futures.wait([unwanted], PATIENCE_S).done == {unwanted}
        wanted = batcher.submit(rows(3, 4))
        run.gate.set()
        assert doubled(wanted) == [6, 8]
        assert run.all_batches() == [[3, 4]]
        assert batcher.stats().cancelled == 1

    def test_a_future_whose_run_began_can_not_be_cancelled(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()
        future = batcher.submit(rows(1))
        run.next_batch()
        assert not future.cancel()
        run.gate.set()
        assert doubled(future) == [2]
        assert batcher.stats().cancelled == 0

    def test_a_cancelled_task_gives_its_rows_back_at_once(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()

        async def main() -> dict[str, Array]:
            first = asyncio.create_task(batcher.asubmit(rows(0)))
            await asyncio.sleep(0)
            run.next_batch()
            unwanted, wanted = (asyncio.create_task(batcher.asubmit(rows(value, value))) for value in (1, 2))
            await asyncio.sleep(0)
            assert batcher.stats().queued_rows == 4
            unwanted.cancel()
            with pytest.raises(asyncio.CancelledError):
                await unwanted
            assert batcher.stats().queued_rows == 2
            run.gate.set()
            await first
            return await wanted

        np.testing.assert_array_equal(asyncio.run(main())["doubled"], rows(2, 2) * 2)
        assert run.all_batches() == [[2, 2]]
        assert batcher.stats().cancelled == 1

    def test_a_task_cancelled_in_its_run_spoils_nothing(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()

        async def leave() -> None:
            task = asyncio.create_task(batcher.asubmit(rows(0)))
            await asyncio.sleep(0)
            run.next_batch()
            task.cancel()
            await asyncio.wait([task])

        asyncio.run(leave())  # its loop is closed when the answer comes
        run.gate.set()
        assert doubled(batcher.submit(rows(1))) == [2]

    @pytest.mark.parametrize("seed", range(3))
    def test_cancelling_at_any_moment_settles_every_future_once(self, make: Callable[..., Batcher], seed: int) -> None:
        batcher = make(run=Gated(is_open=True), workers=2)
        chance = random.Random(seed)
        futures = []
        for value in range(14, 1014):
            futures.append(batcher.submit(rows(value)))
            if chance.random() < 0.5:
                chance.choice(futures[-10:]).cancel()
        done, pending = concurrent.futures.wait(futures, PATIENCE_S)
        assert not pending
        kept = [(value, future) for value, future in enumerate(futures, 14) if not future.cancelled()]
        assert all(doubled(future) == [2 * value] for value, future in kept)
        batcher.close()
        stats = batcher.stats()
        assert (stats.requests, stats.cancelled) == (len(kept), len(done) - len(kept))


class TestEventLoops:
    def test_several_loops_and_threads_share_a_batcher(self, make: Callable[..., Batcher]) -> None:
        batcher = make(run=Gated(is_open=True), limits=BatchLimits(max_batch_rows=8))

        async def client(value: int) -> bool:
            for step in range(5):
                sent = rows(*range(value, value + 1 + step))
                answer = await batcher.asubmit(sent)
                if not np.array_equal(answer["doubled"], sent * 2):
                    return False
            return True

        async def clients(base: int) -> list[bool]:
            return await asyncio.wait_for(asyncio.gather(*(client(base + 10 * n) for n in range(20))), PATIENCE_S)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda base: asyncio.run(clients(base)), [1000, 2000, 3000, 4000]))
        assert results == [[True] * 20] * 4
        assert batcher.stats().requests == 400

    def test_a_batch_is_one_call_into_each_loop(
        self, make: Callable[..., Batcher], run: Gated, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batcher = make()

        async def main() -> int:
            loop = asyncio.get_running_loop()
            calls = 0
            call_soon_threadsafe = loop.call_soon_threadsafe

            def counted(*arguments: Any, **options: Any) -> asyncio.Handle:
                nonlocal calls
                calls += 1
                return call_soon_threadsafe(*arguments, **options)

            monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
            first = asyncio.create_task(batcher.asubmit(rows(0)))
            await asyncio.sleep(0)
            run.next_batch()
            others = [asyncio.create_task(batcher.asubmit(rows(value))) for value in range(1, 13)]
            await asyncio.sleep(0)
            run.gate.set()
            await asyncio.wait_for(asyncio.gather(first, *others), PATIENCE_S)
            return calls

        assert asyncio.run(main()) == 2

    def test_errors_reach_the_awaiting_task(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()
        run.gate.set()

        async def main() -> list[object]:
            tasks = [batcher.asubmit(rows(13)), batcher.asubmit(np.zeros((33, 1))), batcher.asubmit(rows(1))]
            return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)

        thirteen, too_many, answer = asyncio.run(main())
        assert isinstance(thirteen, ValueError)
        assert isinstance(too_many, InvalidRequestError)
        assert isinstance(answer, dict)

    def test_a_threads_future_can_be_awaited_too(self, make: Callable[..., Batcher], run: Gated) -> None:
        run.gate.set()
        batcher = make()

        async def main() -> dict[str, Array]:
            return await asyncio.wait_for(asyncio.wrap_future(batcher.submit(rows(4))), PATIENCE_S)

        np.testing.assert_array_equal(asyncio.run(main())["doubled"], rows(8))


class TestClosing:
    def test_drains_what_waits_and_accepts_no_more(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()
        futures = [batcher.submit(rows(0))]
        run.next_batch()
        futures += [batcher.submit(rows(value)) for value in (1, 2)]
        closer = threading.Thread(target=batcher.close)
        closer.start()
        with pytest.raises(ClosedError):
            while closer.is_alive():  # until the other thread has come so far; this is refused before that, too
                with suppress(InvalidRequestError):
                    batcher.submit(np.zeros((33, 2)))
        run.gate.set()
        closer.join(PATIENCE_S)
        assert not closer.is_alive()
        assert all(future.done() for future in futures)
        assert [doubled(future) for future in futures] == [[0], [2], [4]]
        with pytest.raises(ClosedError, match="open a new one"):
            asyncio.run(batcher.asubmit(rows(4)))

    def test_without_draining_what_waits_fails(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()
        begun = batcher.submit(rows(0))
        run.next_batch()
        waiting = [batcher.submit(rows(value)) for value in (1, 2)]
        batcher.close(drain=False, timeout_s=0.0)
        for future in waiting:
            assert isinstance(future.exception(0), ClosedError)
        run.gate.set()
        assert doubled(begun) == [0]
        assert batcher.stats().queued_rows == 0
        batcher.close()
        assert run.begun.empty()

    def test_a_drain_that_takes_too_long_fails_the_rest(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()
        begun = batcher.submit(rows(0))
        run.next_batch()
        waiting = batcher.submit(rows(1))
        batcher.close(timeout_s=0.01)
        assert isinstance(waiting.exception(0), ClosedError)
        run.gate.set()
        assert doubled(begun) == [0]

    def test_again_and_again_and_before_anything_was_submitted(self, make: Callable[..., Batcher]) -> None:
        batcher = make()
        batcher.close()
        batcher.close(drain=False, timeout_s=1.0)
        with pytest.raises(ClosedError):
            batcher.submit(rows(1))

    def test_a_callback_may_close(self, make: Callable[..., Batcher], run: Gated) -> None:
        batcher = make()
        closed = threading.Event()

        def close(_: object) -> None:
            batcher.close()
            closed.set()

        batcher.submit(rows(0)).add_done_callback(close)
        run.gate.set()
        assert closed.wait(PATIENCE_S)

    def test_threads_come_with_the_first_request_and_go_with_the_close(self, run: Gated) -> None:
        def ours() -> list[threading.Thread]:
            return [thread for thread in threading.enumerate() if thread.name.startswith("lazily")]

        run.gate.set()
        with Batcher(run, workers=3, name="lazily") as batcher:
            assert not ours()
            batcher.submit(rows(1)).result(PATIENCE_S)
            assert len(ours()) == 3
            assert all(thread.daemon for thread in ours())
        assert not ours()

    def test_leaving_by_an_error_does_not_run_what_waits(self, run: Gated) -> None:
        waiting = None

        def leave() -> None:
            nonlocal waiting
            with Batcher(run) as batcher:
                batcher.submit(rows(0))
                run.next_batch()
                waiting = batcher.submit(rows(1))
                waiting.add_done_callback(lambda _: run.gate.set())
                raise LookupError("the caller's own")

        with pytest.raises(LookupError):
            leave()
        assert waiting is not None
        assert isinstance(waiting.exception(0), ClosedError)

    def test_a_forgotten_close_does_not_keep_the_interpreter(self) -> None:
        program = """
import threading, numpy as np
from trueport.runtime.batcher import Batcher
begun = threading.Event()
def run(batch):
    begun.set()
    threading.Event().wait()
Batcher(run).submit(np.zeros((1, 1)))
begun.wait()
print("leaving")
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")


def test_totals(make: Callable[..., Batcher], run: Gated) -> None:
    batcher = make()
    futures = [batcher.submit(rows(0))]
    run.next_batch()
    futures += [batcher.submit(rows(1, 2)), batcher.submit(rows(3))]
    run.gate.set()
    concurrent.futures.wait(futures, PATIENCE_S)
    stats = batcher.stats()
    assert (stats.requests, stats.rows, stats.batches) == (3, 4, 2)
    assert stats.queue_s > 0
    assert stats.compute_s > 0
    futures = [batcher.submit(rows(4))]
    concurrent.futures.wait(futures, PATIENCE_S)
    assert stats.requests == 3, "what was handed out does not change any more"
    assert batcher.stats().requests == 4


# Short runs, in the thread of an event loop.


class InLoop:
    """Runs that tell which thread they were in; short as far as the batcher knows."""

    def __init__(self, make: Callable[..., Batcher], seconds: float = 1e-4, **options: Any) -> None:
        self.threads: list[str] = []
        curve = LatencyCurve(((1, seconds),)) if seconds else LatencyCurve()
        self.batcher = make(run=self.run, curve=curve, short_s=1e-3, name="worker", **options)
        if seconds:  # a worker looks at the queue when it starts: here it has done so
            self.batcher.submit(rows(0)).result(PATIENCE_S)
            self.threads.clear()

    def run(self, batch: Array) -> dict[str, Array]:
        self.threads.append(threading.current_thread().name)
        return {"doubled": batch * 2}

    async def answers(self, *requests: Array, wake: bool = False) -> list[Any]:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in requests]
        for request, future in zip(requests, futures, strict=True):
            self.batcher.enqueue(request, future, wake=wake)
        while self.batcher.run_here(loop):
            pass
        return await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), PATIENCE_S)


def test_what_is_short_runs_in_the_loop_s_own_thread_as_one_batch(make: Callable[..., Batcher]) -> None:
    short = InLoop(make)
    answers = asyncio.run(short.answers(rows(1), rows(2, 3)))
    assert [answer["doubled"][:, 0].tolist() for answer in answers] == [[2], [4, 6]]
    assert short.threads == ["MainThread"]
    assert (short.batcher.stats().requests, short.batcher.stats().batches) == (3, 2)


def test_what_waits_beyond_a_batch_runs_in_the_next(make: Callable[..., Batcher]) -> None:
    short = InLoop(make, limits=BatchLimits(max_batch_rows=2))
    asyncio.run(short.answers(*[rows(value) for value in range(5)]))
    assert short.threads == ["MainThread"] * 3


@pytest.mark.parametrize("seconds", [0.5, 0])
def test_what_is_long_or_not_known_is_left_to_a_worker(make: Callable[..., Batcher], seconds: float) -> None:
    long = InLoop(make, seconds)
    answers = asyncio.run(long.answers(rows(1)))
    assert answers[0]["doubled"][0, 0] == 2
    assert long.threads == ["worker-0"]


def test_a_deadline_that_passed_and_a_run_that_fails_are_told_from_the_loop_too(make: Callable[..., Batcher]) -> None:
    async def use() -> list[Any]:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in range(2)]
        short.batcher.enqueue(rows(1), futures[0], deadline_s=1e-9 + 2e-4, wake=False)
        time.sleep(0.001)
        short.batcher.enqueue(np.array([["a"]]), futures[1], wake=False)
        short.batcher.run_here(loop)
        return await asyncio.gather(*futures, return_exceptions=True)

    short = InLoop(make)
    late, failed = asyncio.run(use())
    assert isinstance(late, DeadlineError)
    assert isinstance(failed, TypeError)


def test_nothing_runs_in_the_loop_beside_a_worker(make: Callable[..., Batcher], run: Gated) -> None:
    batcher = make(curve=LatencyCurve(((1, 1e-4),)), short_s=1e-3)
    held = batcher.submit(rows(1))
    run.next_batch()

    async def use() -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        batcher.enqueue(rows(2), future, wake=False)
        assert not batcher.run_here(loop)
        assert run.begun.empty()
        run.gate.set()
        return await asyncio.wait_for(future, PATIENCE_S)

    assert asyncio.run(use())["doubled"][0, 0] == 4
    assert held.result(PATIENCE_S)


# Runs that do not end.


def test_a_run_that_does_not_end_is_given_up_with_all_that_waits(make: Callable[..., Batcher], run: Gated) -> None:
    batcher = make()
    running = batcher.submit(rows(1))
    run.next_batch()
    waiting = batcher.submit(rows(2))
    assert not batcher.give_up(PATIENCE_S)
    assert batcher.give_up(0.0)
    for future in (running, waiting):
        with pytest.raises(StuckError, match=r"has not come to the end of a run in \S+ s"):
            future.result(PATIENCE_S)
    assert batcher.give_up(0.0)  # it still runs
    run.gate.set()
    assert batcher.submit(rows(3)).result(PATIENCE_S)["doubled"][0, 0] == 6
    assert not batcher.give_up(0.0)
    assert (batcher.stats().failed, batcher.stats().cancelled, batcher.stats().requests) == (1, 1, 1)


def test_each_part_of_a_large_request_is_a_run_of_its_own(
    make: Callable[..., Batcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    permits, begun, now_s = threading.Semaphore(0), queue.Queue[int](), [1e6]
    monkeypatch.setattr("trueport.runtime.batcher.time", SimpleNamespace(monotonic=lambda: now_s[0]))

    def run(batch: Array) -> dict[str, Array]:
        begun.put(int(batch[0, 0]))
        assert permits.acquire(timeout=PATIENCE_S)
        return {"doubled": batch * 2}

    batcher = make(run=run, limits=BatchLimits(max_batch_rows=1, max_request_rows=3))
    large, other = batcher.submit(rows(1, 2, 3)), batcher.submit(rows(9))
    assert begun.get(timeout=PATIENCE_S) == 1
    now_s[0] += 8
    permits.release()
    assert begun.get(timeout=PATIENCE_S) == 2
    now_s[0] += 8
    assert not batcher.give_up(10), "two runs of 8 s are none of 16 s"
    now_s[0] += 8
    assert batcher.give_up(10)
    for future in (large, other):
        with pytest.raises(StuckError):
            future.result(PATIENCE_S)
    last = batcher.submit(rows(7))
    permits.release(2)
    assert doubled(last) == [14]
    assert begun.get(timeout=PATIENCE_S) == 7, "the third part has nobody to answer"


def test_other_workers_go_on_beside_a_run_that_does_not_end(make: Callable[..., Batcher], run: Gated) -> None:
    batcher = make(workers=2)
    stuck = batcher.submit(rows(1))
    run.next_batch()
    assert not batcher.give_up(0.0)
    with pytest.raises(StuckError):
        stuck.result(PATIENCE_S)
    run.gate.set()
    assert batcher.submit(rows(2)).result(PATIENCE_S)["doubled"][0, 0] == 4


def test_a_request_knows_when_it_ran_and_with_how_many(make: Callable[..., Batcher]) -> None:
    short = InLoop(make)

    async def use() -> list[Any]:
        loop = asyncio.get_running_loop()
        requests = [short.batcher.enqueue(rows(1, 2), loop.create_future(), wake=False) for _ in range(2)]
        short.batcher.run_here(loop)
        return requests

    for request in asyncio.run(use()):
        assert request.batch_rows == 4
        assert request.arrived_s <= request.began_s <= request.ended_s
