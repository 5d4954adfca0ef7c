"""The worker around the batching policy: threads that turn waiting requests into runs, for callers and event loops.

One lock, held for microseconds and never during a run; one wake-up for a free worker, one call into each event loop
for a batch.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from .answering import (
    Answer,
    Outputs,
    Receiver,
    Request,
    RowsFuture,
    closed,
    deliver,
    fail,
    late,
    refusal,
    storable,
    stuck_for,
)
from .batching import Batch, BatchLimits, LatencyCurve, WaitingQueue, admit, next_batch
from .errors import InvalidRequestError, RequestError, UsageError
from .runner import Array

if TYPE_CHECKING:
    import asyncio

UNKNOWN = LatencyCurve()
# While nothing runs, an older measurement refuses nobody: refusing on it for ever would keep it from being corrected.
STALE_S = 1.0


class BatcherStats(msgspec.Struct):
    """Totals up to the moment that it was asked for; requests and rows are those that were answered with outputs."""

    requests: int = 0
    rows: int = 0
    batches: int = 0
    """Batches formed, and parts of requests that are larger than one; what was split after a failure counts once."""
    refused: int = 0
    """At admission, for the queue or the deadline."""
    expired: int = 0
    """Admitted, but the deadline passed in the queue."""
    failed: int = 0
    """Answered with an error of the run."""
    cancelled: int = 0
    """Left the queue before they started, by the caller's will or because the batcher was closed."""
    queued_rows: int = 0
    """Waiting now."""
    queued_requests: int = 0
    """Waiting now."""
    queue_s: float = 0.0
    """Sum over the requests that ran of the time from arrival to start."""
    compute_s: float = 0.0
    """Sum over batches of the time that they ran."""
    run_s: float = 0.0
    """Sum over the requests that ran of the time that their batch ran."""


class Batcher:
    """Runs requests of any threads and event loops in batches.

    run: takes the rows (N, ...) of one or more requests, answers new outputs of N rows each; called from `workers`
    threads at once. It gets a lone request's own array: leave what is submitted unchanged until it is answered.
    A run that raises, or answers another number of rows, is split until only the requests that cause it fail. A request
    of more rows than a batch is run in parts, one after the other, and answered whole.
    curve: what is known of its latency beforehand; it is learnt on from every batch.
    short_s: runs that are expected to take at most so long may happen in an event loop's own thread, by `run_here`.
    Requests whose shapes beyond the rows, or types, differ are never cast: they end up in separate runs.
    Raises UsageError for a number of workers below 1.
    """

    def __init__(
        self,
        run: Callable[[Array], Mapping[str, Array]],
        limits: BatchLimits = BatchLimits(),  # noqa: B008 (frozen)
        *,
        workers: int = 1,
        curve: LatencyCurve = UNKNOWN,
        short_s: float = 0.0,
        name: str = "trueport",
    ) -> None:
        if workers < 1:
            raise UsageError(f"a batcher needs at least 1 worker, found {workers}")
        self._run = run
        self._limits = limits
        self._workers = workers
        self._curve = curve
        self._short_s = short_s
        self._measured_s = time.monotonic()
        self._name = name
        self._lock = threading.Lock()
        self._queue: WaitingQueue[Request] = WaitingQueue()
        self._threads: list[threading.Thread] = []
        self._idle: list[threading.Lock] = []
        """A bell for each sleeping worker: a held lock; releasing it rings."""
        self._here = threading.Lock()
        """Stands in `_running` for the caller of `run_here`, as its bell does for a worker."""
        self._running: dict[threading.Lock, tuple[float, int]] = {}
        self._taken: dict[threading.Lock, list[Request]] = {}
        """What runs, until it is answered or given up."""
        self._closed = False
        self._totals = BatcherStats()

    @property
    def limits(self) -> BatchLimits:
        """What it was made with."""
        return self._limits

    @property
    def curve(self) -> LatencyCurve:
        """What is known of the latency by now."""
        return self._curve

    def submit(self, rows: Array, *, deadline_s: float | None = None, priority: int = 0) -> Future[Outputs]:
        """Queue rows (N, ...); the future holds this request's N rows of every output, views of the batch's.

        deadline_s: seconds from now; a request that is not expected to be answered by then is refused, or later not
        run. Higher `priority` runs first. Cancelling the future before it starts takes it out of the queue.
        Raises at once OverloadedError, InvalidRequestError, ClosedError; the future may hold DeadlineError,
        ClosedError and what `run` raised for this request.
        """
        future = RowsFuture()
        self._enqueue(rows, deadline_s, priority, future)
        return future

    async def asubmit(self, rows: Array, *, deadline_s: float | None = None, priority: int = 0) -> Outputs:
        """Like `submit` in an event loop: the answer itself, or the error.

        A task that is cancelled while it awaits this takes its request out of the queue.
        """
        import asyncio

        future: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        request = self._enqueue(rows, deadline_s, priority, future)
        try:
            return await future
        except (asyncio.CancelledError, GeneratorExit):
            self._leave_queue(request)
            raise

    def enqueue(
        self,
        rows: Array,
        receiver: Receiver,
        *,
        deadline_s: float | None = None,
        priority: int = 0,
        wake: bool = True,
    ) -> Request:
        """`asubmit` without a task: the receiver gets the answer, in its loop. `withdraw` takes the request back.

        wake: let a sleeping worker begin; False where the caller calls `run_here` soon.
        """
        return self._enqueue(rows, deadline_s, priority, receiver, wake=wake)

    def run_here(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Run what waits in this thread, which is `loop`'s, where that is expected to take at most `short_s`.

        Spares short runs two changes of thread, which would take longer than they do. What is not run here, since it
        would take longer or nothing is known of it yet, is left to a worker. True: call it again, more is waiting.
        """
        with self._lock:
            if len(self._running) >= self._workers:
                return False  # whoever runs takes what waits when it has done
            now_s = time.monotonic()
            batch, curve = next_batch(self._queue, now_s, self._limits, self._trusted(now_s)), self._curve
            rows = sum([request.rows for request in batch.take])
            if self._closed or not rows or not curve.points or self._limits.run_s(rows, curve) > self._short_s:
                if self._queue and self._idle:
                    self._idle.pop().release()
                return False
            self._remove(batch, self._here, now_s)
            more = bool(self._queue)
        if batch.expired:
            fail(batch.expired, late, loop)
        self._answer(batch.take, self._here, loop)
        return more

    def withdraw(self, request: Request) -> bool:
        """Take a request of `enqueue` out of the queue; False where it is not in it any more."""
        return self._leave_queue(request)

    def give_up(self, after_s: float) -> bool:
        """Fail each run that has lasted longer, with StuckError; and all that waits, where no worker is left for it.

        Whether that is so: until one of those runs ends, nothing that is queued will run. What it then answers is
        dropped.
        """
        with self._lock:
            now_s = time.monotonic()
            stuck = [bell for bell, (began_s, _) in self._running.items() if began_s < now_s - after_s]
            longest_s = max((now_s - self._running[bell][0] for bell in stuck), default=0.0)
            lost = [request for bell in stuck for request in self._taken.pop(bell, ())]
            self._totals.failed += len(lost)
            if len(stuck) >= self._workers:
                lost += self._drop_waiting()
        # those that ran are told without `begin`, which each request is asked once
        deliver((request, stuck_for(longest_s)) for request in lost if request.began_s or request.begin())
        return len(stuck) >= self._workers

    def stats(self) -> BatcherStats:
        """The totals so far."""
        with self._lock:
            now = {"queued_rows": self._queue.rows, "queued_requests": len(self._queue)}
            return msgspec.structs.replace(self._totals, **now)

    def close(self, drain: bool = True, timeout_s: float | None = None) -> None:
        """Accept nothing more; answer what waits (drain) or fail it with ClosedError; wait for the threads to end.

        After `timeout_s` what still waits fails with ClosedError; a run in progress is left to end by itself.
        """
        with self._lock:
            self._closed = True
            for bell in self._idle:
                bell.release()
            self._idle.clear()
            waiting = [] if drain else self._drop_waiting()
        fail(waiting, closed)
        end_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            # A callback of a future may close the batcher from inside the worker that it would wait for.
            if thread is not threading.current_thread():
                thread.join(None if end_s == math.inf else max(0.0, end_s - time.monotonic()))
        if timeout_s is not None:
            with self._lock:
                waiting = self._drop_waiting()
            fail(waiting, closed)

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(drain=error is None)

    # Callers' side.

    def _enqueue(
        self,
        array: Array,
        deadline_s: float | None,
        priority: int,
        future: RowsFuture | Receiver,
        *,
        wake: bool = True,
    ) -> Request:
        if not isinstance(array, np.ndarray) or not array.ndim or not len(array):
            raise InvalidRequestError(f"a request is an array of one or more rows, found {_described(array)}")
        now_s = time.monotonic()
        end_s = math.inf
        if deadline_s is not None:
            if not deadline_s > 0:
                raise InvalidRequestError(f"deadline_s must be seconds from now, above 0, found {deadline_s}")
            end_s = now_s + deadline_s
        request = Request(len(array), now_s, end_s, priority, array, future)
        with self._lock:
            if self._closed:
                raise closed()
            curve = self._curve if self._running or self._queue else self._trusted(now_s)
            refused = admit(request, self._queue, self._running.values(), now_s, self._limits, curve, self._workers)
            if refused is None:
                if len(self._threads) < self._workers:
                    self._start_threads()
                first = not self._queue
                self._queue.add(request)
                if isinstance(future, RowsFuture):
                    future.leave_queue = partial(self._leave_queue, request)
                if wake and self._idle and (first or self._changes_wait(request)):
                    self._idle.pop().release()
                return request
            self._totals.refused += refused.reason != "too many rows"
            queued_rows = self._queue.rows
        raise refusal(refused, request, queued_rows, self._limits)

    def _trusted(self, now_s: float) -> LatencyCurve:
        """The curve; where its last measurement is old, one that keeps nobody from being measured."""
        return self._curve if now_s - self._measured_s < STALE_S else UNKNOWN

    def _changes_wait(self, request: Request) -> bool:
        """Whether a worker that waits for company has to look again."""
        limits = self._limits
        return limits.max_wait_s > 0 and (request.deadline_s < math.inf or self._queue.rows >= limits.max_batch_rows)

    def _leave_queue(self, request: Request) -> bool:
        with self._lock:
            left = self._queue.discard(request)
            self._totals.cancelled += left
            return left

    def _drop_waiting(self) -> list[Request]:
        waiting = list(self._queue)
        for request in waiting:
            self._queue.discard(request)
        self._totals.cancelled += len(waiting)
        return waiting

    def _start_threads(self) -> None:
        for number in range(len(self._threads), self._workers):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    # Workers' side.

    def _work(self) -> None:
        bell = threading.Lock()
        bell.acquire()
        while (batch := self._next(bell)) is not None:
            if batch.expired:
                fail(batch.expired, late)
            if batch.take:
                self._answer(batch.take, bell)
            del batch  # its arrays would be kept for as long as this worker sleeps

    def _next(self, bell: threading.Lock) -> Batch[Request] | None:
        """Wait for the next batch and take it out of the queue; None: closed, and nothing is left."""
        with self._lock:
            while True:
                now_s = time.monotonic()
                limits = replace(self._limits, max_wait_s=0.0) if self._closed else self._limits
                batch = next_batch(self._queue, now_s, limits, self._trusted(now_s))
                if batch.take or batch.expired:
                    self._remove(batch, bell, now_s)
                    if self._queue and self._idle:
                        self._idle.pop().release()
                    return batch
                if self._closed:
                    return None
                self._sleep(bell, batch.wait_until_s - now_s)

    def _remove(self, batch: Batch[Request], bell: threading.Lock, now_s: float) -> None:
        for request in batch.expired:
            self._queue.discard(request)
        self._totals.expired += len(batch.expired)
        if batch.take:
            waited_s, rows = 0.0, 0
            for request in batch.take:
                self._queue.discard(request)
                waited_s += now_s - request.arrived_s
                rows += request.rows
            self._totals.queue_s += waited_s
            self._running[bell] = (now_s, rows)
            self._taken[bell] = batch.take
            for request in batch.take:
                request.began_s, request.batch_rows = now_s, rows

    def _sleep(self, bell: threading.Lock, seconds: float) -> None:
        """Give the lock away until the bell rings or the time is over."""
        self._idle.append(bell)
        self._lock.release()
        try:
            rung = bell.acquire(timeout=-1 if seconds == math.inf else min(max(0.0, seconds), threading.TIMEOUT_MAX))
        finally:
            self._lock.acquire()
        if not rung:
            if bell in self._idle:
                self._idle.remove(bell)
            else:  # rung between the end of the time and here
                bell.acquire()

    def _answer(
        self, taken: list[Request], bell: threading.Lock, here: asyncio.AbstractEventLoop | None = None
    ) -> None:
        requests = [request for request in taken if request.begin()]
        began_s = time.monotonic()
        answers = self._answers(requests, bell) if requests else []
        ended_s = time.monotonic()
        failed = rows = 0
        for request, answer in zip(requests, answers, strict=True):
            request.ended_s = ended_s
            if isinstance(answer, BaseException):
                failed += 1
            else:
                rows += request.rows
        with self._lock:
            del self._running[bell]
            if self._taken.pop(bell, None) is None:
                return  # given up meanwhile
            self._totals.cancelled += len(taken) - len(requests)
            if requests:
                self._totals.batches += -(-requests[0].batch_rows // self._limits.max_batch_rows)
                self._totals.compute_s += ended_s - began_s
                self._totals.run_s += (ended_s - began_s) * len(requests)
                self._totals.requests += len(requests) - failed
                self._totals.failed += failed
                self._totals.rows += rows
        deliver(zip(requests, answers, strict=True), here)

    def _answers(self, requests: list[Request], bell: threading.Lock) -> Sequence[Answer]:
        """One answer each; where a run fails its halves are run again until only the culprits are left."""
        try:
            return self._outputs(requests, bell)
        except Exception as error:  # noqa: BLE001 (whatever it is, it belongs to the one who asked)
            if len(requests) == 1:
                return [storable(error)]
        except BaseException as error:  # noqa: BLE001 (an exit in a worker would leave everybody waiting)
            return [storable(error) for _ in requests]
        middle = len(requests) // 2
        return [*self._answers(requests[:middle], bell), *self._answers(requests[middle:], bell)]

    def _outputs(self, requests: list[Request], bell: threading.Lock) -> Sequence[Outputs]:
        first = requests[0].array
        if len(requests) == 1:
            batch = first
        else:
            batch = np.concatenate([request.array for request in requests], dtype=first.dtype, casting="no")
        whole = len(batch) <= self._limits.max_batch_rows
        outputs = self._timed(batch) if whole else self._in_parts(batch, bell)
        answers, start = list[Outputs](), 0
        for request in requests:
            end = start + request.rows
            answers.append({name: output[start:end] for name, output in outputs.items()})
            start = end
        return answers

    def _in_parts(self, batch: Array, bell: threading.Lock) -> Outputs:
        """Outputs of more rows than a batch has. Each part is a run of its own to `give_up`; after it none begins."""
        parts, size = list[Mapping[str, Array]](), self._limits.max_batch_rows
        for start in range(0, len(batch), size):
            with self._lock:
                if bell not in self._taken:
                    raise closed()  # nobody waits for it any more
                self._running[bell] = (time.monotonic(), len(batch) - start)
            parts.append(self._timed(batch[start : start + size]))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _timed(self, batch: Array) -> Mapping[str, Array]:
        began_s = time.monotonic()
        outputs = self._run(batch)
        for name, output in outputs.items():
            if len(output) != len(batch):
                raise RequestError(f"output {name!r} has {len(output)} rows, expected the {len(batch)} that were run")
        # Without the lock: should two workers meet here, one measurement is lost.
        self._measured_s = time.monotonic()
        self._curve = self._curve.updated(len(batch), self._measured_s - began_s)
        return outputs


def _described(array: object) -> str:
    return f"shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
