"""One served model: what happens between a request that has arrived and its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from ..errors import DeadlineError, ImageError, InvalidRequestError, MissingError, RequestError, StuckError
from .answers import Answer, UnsupportedError, answer_from_error, answer_from_json
from .contract import Cancel, Request, Respond, Rows, ServerLimits
from .decoding import Decoder
from .forms import picture_from_form
from .outputs import AnswerWriter, Outputs
from .protocol import InferRequest, RequestReader, shown
from .signature import signature_from_manifest
from .statistics import Figures, Tally
from .threads import in_own_thread
from .timed import Timed, Wanted, wanted

if TYPE_CHECKING:
    from ..answering import Request as Waiting
    from ..session import Session

DEFAULT_TOP = 5
CLOSING_S = 5.0
"""What a runner may take to be freed, beyond the requests that it has to answer."""


class ModelEndpoint:
    """Answers what is asked of one version of one model. Used from one event loop.

    passed: what the replay of its golden set said; empty: there was none.
    Raises UsageError for a model that can't be served.
    """

    def __init__(self, session: Session, decoder: Decoder, limits: ServerLimits, passed: str = "") -> None:
        self.session = session
        self.signature = signature_from_manifest(session.manifest, session.batcher.limits.request_rows)
        self.passed = passed
        self.tally = Tally()
        self._batcher = session.batcher
        self._decoder = decoder
        self._limits = limits
        self._reader = RequestReader(self.signature, limits.max_json_bytes)
        self._writer = AnswerWriter(self.signature)
        self._unfinished: set[asyncio.Future[Any]] = set()
        """One for each request that may still come to the batcher, and the tasks that nobody else holds."""
        self._soon = False
        """The loop is about to run what waits by itself."""
        self._stuck = False

    @property
    def ready(self) -> bool:
        """False while a run does not end, and once the session is closed."""
        return not self.session.closed and not self._stuck

    def figures(self) -> Figures:
        """What was asked of it so far."""
        return Figures(self.signature.name, self.signature.version, self.tally, self._batcher.stats())

    def infer(self, request: Request, respond: Respond) -> Cancel | None:
        """Tensors in, tensors out. Pixels go to the batcher at once, without a task; pictures are decoded before."""
        begun_s = time.monotonic()
        try:
            _refuse_compressed(request.headers)
            asked = self._reader.request(request.body, request.headers.get(b"inference-header-content-length"))
            timed = wanted(request)
            if asked.rows is None:
                return self._in_a_task(self._infer_pictures(asked, timed), begun_s, respond)
            self._refuse_stuck()
            loop = asyncio.get_running_loop()  # once: it asks the system for the process's number each time
            delivery = _Delivery(loop, self, asked, begun_s, respond, timed)
            delivery.waiting = self._batcher.enqueue(
                asked.rows, delivery, deadline_s=asked.timeout_s, priority=asked.priority, wake=False
            )
            self._run_soon(loop)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self.fail(error, begun_s, respond)
            return None
        return delivery.cancel

    def classify(self, request: Request, respond: Respond) -> Cancel | None:
        """One encoded picture in, its best classes out: the session's scores, a softmax or a sigmoid of each label."""
        return self._in_a_task(self._classify(request), time.monotonic(), respond)

    async def outputs(self, asked: InferRequest) -> Outputs:
        """What was asked for, to be written by another protocol; counted as any request is.

        Raises what the batcher and the decoder raise. A task that is cancelled while it awaits this leaves the queue.
        """
        begun_s, ended = time.monotonic(), asyncio.get_running_loop().create_future()
        self._unfinished.add(ended)
        try:
            outputs, _ = await self._outputs(asked)
        except BaseException as error:
            self.tally.failed(error, time.monotonic() - begun_s)
            raise
        finally:
            self._unfinished.discard(ended)
            ended.set_result(None)
        self.tally.succeeded(time.monotonic() - begun_s)
        return outputs

    def succeed(
        self,
        asked: InferRequest,
        outputs: Outputs,
        begun_s: float,
        respond: Respond,
        timed: Callable[[Answer], Answer] | None,
    ) -> None:
        """Answer with these outputs. timed: lets those know where the time went who want to."""
        try:
            answer = self._writer.answer(asked, outputs)
        except Exception as error:  # noqa: BLE001 - the others of its batch are still to be answered
            self.fail(error, begun_s, respond)
            return
        self.tally.succeeded(time.monotonic() - begun_s)
        respond(answer if timed is None else timed(answer))

    def fail(self, error: BaseException, begun_s: float, respond: Respond) -> None:
        """Answer with an error."""
        self.tally.failed(error, time.monotonic() - begun_s)
        respond(answer_from_error(error))

    def withdraw(self, waiting: Waiting, begun_s: float) -> None:
        """Nobody waits for the answer any more."""
        self._batcher.withdraw(waiting)
        self.tally.failed(asyncio.CancelledError(), time.monotonic() - begun_s)

    def look_after(self) -> bool:
        """Called now and then: a run that does not end is given up, with all that waits for it.

        Whether there is one.
        """
        self._stuck = self._batcher.give_up(self._limits.run_s)
        return self._stuck

    async def retire(self, within_s: float | None = None) -> None:
        """Answer what was begun, then close the session. Nothing new may be asked of it any more.

        within_s: how long what was begun is waited for; None: pictures until they are decoded, and the queue for as
        long as a stopping server waits. A session that is not closed soon after, since a run of it does not end, is
        left to itself, and whoever waits for that run is told.
        """
        end_s = None if within_s is None else time.monotonic() + within_s
        while self._unfinished and (end_s is None or time.monotonic() < end_s):
            await asyncio.wait(self._unfinished, timeout=None if end_s is None else end_s - time.monotonic())
        left_s = self._limits.drain_s if end_s is None else max(0.0, end_s - time.monotonic())
        with suppress(TimeoutError):
            await asyncio.wait_for(in_own_thread(partial(self.session.close, left_s)), left_s + CLOSING_S)
        self._batcher.give_up(0.0)

    def _run_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._soon:
            self._soon = True
            loop.call_soon(self._run_here, loop)

    def _run_here(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run what has come in this turn of the loop, in the loop's own thread where that takes no time to speak of."""
        self._soon = False
        if self._batcher.run_here(loop):
            self._run_soon(loop)

    def _refuse_stuck(self) -> None:
        if self._stuck:
            raise StuckError(f"{self.signature.name} does not answer at present: a run of it has not come to its end")

    def _in_a_task(self, work: Coroutine[None, None, Answer], begun_s: float, respond: Respond) -> Cancel:
        task = asyncio.get_running_loop().create_task(work)
        self._unfinished.add(task)

        def finish(task: asyncio.Task[Answer]) -> None:
            self._unfinished.discard(task)
            if task.cancelled():
                self.tally.failed(asyncio.CancelledError(), time.monotonic() - begun_s)
            elif error := task.exception():
                self.fail(error, begun_s, respond)
            else:
                self.tally.succeeded(time.monotonic() - begun_s)
                respond(task.result())

        task.add_done_callback(finish)
        return task.cancel

    async def _infer_pictures(self, asked: InferRequest, timed: Wanted | None) -> Answer:
        outputs, timing = await self._outputs(asked)
        answer = self._writer.answer(asked, outputs)
        return answer if timed is None else timed.told(answer, timing)

    async def _classify(self, request: Request) -> Answer:
        _refuse_compressed(request.headers)
        top = _top(request.query)
        picture = picture_from_form(request.headers.get(b"content-type", b""), request.body)
        if not picture:
            raise ImageError("the body is empty, expected the bytes of one JPEG or PNG picture")
        asked = InferRequest(None, (picture,), "", self.signature.json_outputs, 0, None)
        outputs, timing = await self._outputs(asked)
        best = self.session.predictions(outputs[self.signature.json_outputs[0].name], top)[0].top
        told = {"model_name": self.signature.name, "model_version": self.signature.version, "predictions": best}
        answer = answer_from_json(told)
        timed = wanted(request)
        return answer if timed is None else timed.told(answer, timing)

    async def _outputs(self, asked: InferRequest) -> tuple[Outputs, Timed]:
        """Decode where there is something to decode, then wait in the queue."""
        self._refuse_stuck()
        begun_s = time.monotonic()
        rows = asked.rows
        if rows is None:
            rows = await self._decoder.rows(self.session.prepare, asked.pictures, asked.timeout_s)
        decode_s = time.monotonic() - begun_s
        outputs, waiting = await self._queued(rows, _remaining(asked.timeout_s, decode_s), asked.priority)
        return outputs, Timed(waiting, decode_s)

    async def _queued(self, rows: Rows, deadline_s: float | None, priority: int) -> tuple[Outputs, Waiting]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outputs] = loop.create_future()
        waiting = self._batcher.enqueue(rows, future, deadline_s=deadline_s, priority=priority, wake=False)
        self._run_soon(loop)
        try:
            return await future, waiting
        except MissingError as error:
            raise _of_the_run(error) from error
        except (asyncio.CancelledError, GeneratorExit):
            self._batcher.withdraw(waiting)
            raise


class _Delivery:
    """What the batcher answers: in place of a future, so that a whole batch is answered in one call into the loop."""

    __slots__ = ("_asked", "_begun_s", "_done", "_endpoint", "_loop", "_respond", "_timed", "waiting")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        endpoint: ModelEndpoint,
        asked: InferRequest,
        begun_s: float,
        respond: Respond,
        timed: Wanted | None,
    ) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._asked = asked
        self._begun_s = begun_s
        self._respond = respond
        self._timed = timed
        self._done = False
        self.waiting: Waiting | None = None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def done(self) -> bool:
        return self._done

    def set_result(self, result: Outputs, /) -> None:
        waiting = self._end()
        timed = None
        if self._timed is not None and waiting is not None:
            timed = partial(self._timed.told, timed=Timed(waiting))
        self._endpoint.succeed(self._asked, result, self._begun_s, self._respond, timed)

    def set_exception(self, exception: BaseException, /) -> None:
        self._end()
        error = _of_the_run(exception) if isinstance(exception, MissingError) else exception
        self._endpoint.fail(error, self._begun_s, self._respond)

    def cancel(self) -> None:
        if not self._done and (waiting := self._end()) is not None:
            self._endpoint.withdraw(waiting, self._begun_s)

    def _end(self) -> Waiting | None:
        """What waited. It knows this delivery: both would be left to the collector if this went on knowing it."""
        self._done = True
        waiting, self.waiting = self.waiting, None
        return waiting


def _of_the_run(error: MissingError) -> RequestError:
    """What a run lacks is a failure of the server. Why a model can't be loaded is told to the client that wants it."""
    failure = RequestError(f"the run failed: {error}")
    failure.__cause__ = error
    return failure


def _remaining(deadline_s: float | None, spent_s: float) -> float | None:
    if deadline_s is None:
        return None
    if spent_s >= deadline_s:
        raise DeadlineError(f"the timeout of {deadline_s:g} s passed while the pictures were decoded")
    return deadline_s - spent_s


def _refuse_compressed(headers: Mapping[bytes, bytes]) -> None:
    encoding = headers.get(b"content-encoding", b"identity")
    if encoding != b"identity" and encoding.lower() != b"identity":
        raise UnsupportedError(
            f"Content-Encoding {shown(encoding.decode('latin1'))} is not read here: send it uncompressed"
        )


def _top(query: bytes) -> int:
    text = parse_qs(query.decode("latin1"), keep_blank_values=True).get("top", [str(DEFAULT_TOP)])[-1]
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise InvalidRequestError(f"top has to be a whole number of classes, at least 1, found {shown(text)}")
    return int(text)
