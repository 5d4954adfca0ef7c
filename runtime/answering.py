"""A request and the way its answer gets back: into a thread's future, or into an event loop with one call a batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeAlias

from .batching import BatchLimits, Refused, Waiting
from .errors import ClosedError, DeadlineError, InvalidRequestError, OverloadedError, RequestError, StuckError
from .runner import Array

if TYPE_CHECKING:
    import asyncio

Outputs: TypeAlias = dict[str, Array]
Answer: TypeAlias = Outputs | BaseException

logger = logging.getLogger(__name__)


class RowsFuture(Future[Outputs]):
    """A thread's future, which leaves the queue when it is cancelled."""

    leave_queue: Callable[[], bool] | None = None

    def cancel(self) -> bool:
        """As of any future; False once its run has begun."""
        leave_queue = self.leave_queue
        cancelled = super().cancel()
        if cancelled and leave_queue is not None and leave_queue():
            self.begin()
        return cancelled

    def begin(self) -> bool:
        """Called once, by whoever took the request out of the queue: False where it is cancelled, True if it runs."""
        self.leave_queue = None
        return self.set_running_or_notify_cancel()


class Receiver(Protocol):
    """What of an asyncio.Future is needed to answer; all but `get_loop` is called in that loop."""

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Where the answer is wanted; called from any thread."""
        ...

    def done(self) -> bool:
        """Whether no answer is wanted any more."""
        ...

    def set_result(self, result: Outputs, /) -> None:
        """The outputs."""
        ...

    def set_exception(self, exception: BaseException, /) -> None:
        """Why there are none."""
        ...


class Request(Waiting, eq=False):
    """What waits in the queue: rows to run, and where the answer goes."""

    array: Array
    future: RowsFuture | Receiver
    began_s: float = 0.0
    """When its batch began to run, by the clock of `arrived_s`; 0: it has not."""
    ended_s: float = 0.0
    batch_rows: int = 0
    """Of the batch that it ran in."""

    def begin(self) -> bool:
        """Whether it still wants an answer; called once, when it has left the queue."""
        return not isinstance(self.future, RowsFuture) or self.future.begin()


def deliver(answered: Iterable[tuple[Request, Answer]], here: asyncio.AbstractEventLoop | None = None) -> None:
    """Settle threads' futures here, and those of each event loop with one call into it.

    here: the loop in whose thread this is called: its futures are settled at once.
    """
    elsewhere: dict[asyncio.AbstractEventLoop, list[tuple[Receiver, Answer]]] = {}
    for request, answer in answered:
        future = request.future
        if isinstance(future, RowsFuture):
            try:
                _settle(future, answer)
            except BaseException:
                logger.exception("a callback of an answered request failed")
        elif (loop := future.get_loop()) is here:
            _settle_all(((future, answer),))
        else:
            elsewhere.setdefault(loop, []).append((future, answer))
    for loop, answers in elsewhere.items():
        with suppress(RuntimeError):  # the loop is closed: nobody awaits this any more
            loop.call_soon_threadsafe(_settle_all, answers)


def fail(
    requests: Iterable[Request],
    error_of: Callable[[Request], RequestError],
    here: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Answer requests that left the queue without a run, each with an error of its own. here: as `deliver` has it."""
    deliver(((request, error_of(request)) for request in requests if request.begin()), here)


def _settle_all(answers: Iterable[tuple[Receiver, Answer]]) -> None:
    for future, answer in answers:
        try:
            if not future.done():
                _settle(future, answer)
        except Exception:
            logger.exception("an answered request could not take its answer")


def _settle(future: RowsFuture | Receiver, answer: Answer) -> None:
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def storable(error: BaseException) -> BaseException:
    """The error itself where a future may hold it: an exit would end the caller's loop, StopIteration is refused."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RequestError(f"the run was ended by {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def closed(_request: Request | None = None) -> ClosedError:
    """Of a request that comes, or still waits, when the batcher is closed."""
    return ClosedError("the batcher is closed and answers no more requests: open a new one")


def stuck_for(seconds: float) -> StuckError:
    """Of a request whose run, or that of those before it, does not end."""
    return StuckError(f"the model has not come to the end of a run in {seconds:.3g} s: it was given up")


def late(request: Request) -> DeadlineError:
    """Of a request that waited for so long that its deadline has passed, or would before it is answered."""
    waited_ms = (time.monotonic() - request.arrived_s) * 1e3
    return DeadlineError(
        f"the deadline can't be met after {waited_ms:.4g} ms in the queue: send less, or allow more time"
    )


def refusal(refused: Refused, request: Request, queued_rows: int, limits: BatchLimits) -> RequestError:
    """Of a request that was not admitted."""
    wait_s = refused.expected_wait_s
    if refused.reason == "too many rows":
        return InvalidRequestError(
            f"a request holds at most {limits.request_rows} rows, found {request.rows}: split it into several"
        )
    if refused.reason == "queue full":
        return OverloadedError(
            f"the queue holds {queued_rows} rows of at most {limits.max_queue_rows}, no room for {request.rows} more:"
            f" try again in {wait_s * 1e3:.4g} ms",
            wait_s,
        )
    allowed_ms = (request.deadline_s - request.arrived_s) * 1e3
    return OverloadedError(
        f"the deadline is {allowed_ms:.4g} ms away and the answer is expected in {allowed_ms + wait_s * 1e3:.4g} ms:"
        " allow more time, or try again later",
        wait_s,
    )
