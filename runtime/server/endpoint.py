"""One served model: what happens between a request that has arrived and its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from ..errors import DeadlineError, ImageError, InvalidRequestError
from .answers import Answer, UnsupportedError, answer_from_error, answer_from_json
from .contract import Cancel, Request, Respond, ServerLimits
from .decoding import Decoder
from .outputs import AnswerWriter, Outputs
from .protocol import InferRequest, RequestReader, shown
from .signature import signature_from_manifest
from .statistics import Figures, Tally

if TYPE_CHECKING:
    from ..answering import Request as Waiting
    from ..session import Session

DEFAULT_TOP = 5


class ModelEndpoint:
    """Answers the POSTs to one version of one model. Used from one event loop."""

    def __init__(self, session: Session, decoder: Decoder, limits: ServerLimits) -> None:
        self.session = session
        self.signature = signature_from_manifest(session.manifest, session.batcher.limits.max_batch_rows)
        self.tally = Tally()
        self._batcher = session.batcher
        self._decoder = decoder
        self._reader = RequestReader(self.signature, limits.max_json_bytes)
        self._writer = AnswerWriter(self.signature)
        self._tasks: set[asyncio.Task[Answer]] = set()
        """A task that nobody holds could be collected before its end."""

    @property
    def ready(self) -> bool:
        """False once the session is closed: it does not come back."""
        return not self.session.closed

    def figures(self) -> Figures:
        """What was asked of it so far."""
        return Figures(self.signature.name, self.signature.version, self.tally, self._batcher.stats())

    def infer(self, request: Request, respond: Respond) -> Cancel | None:
        """Tensors in, tensors out. Pixels go to the batcher at once, without a task; pictures are decoded before."""
        begun_s = time.monotonic()
        try:
            _refuse_compressed(request.headers)
            asked = self._reader.request(request.body, request.headers.get(b"inference-header-content-length"))
            if asked.rows is None:
                return self._in_a_task(self._infer_pictures(asked), begun_s, respond)
            delivery = _Delivery(self, asked, begun_s, respond)
            delivery.waiting = self._batcher.enqueue(
                asked.rows, delivery, deadline_s=asked.timeout_s, priority=asked.priority
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self.fail(error, begun_s, respond)
            return None
        return delivery.cancel

    def classify(self, request: Request, respond: Respond) -> Cancel | None:
        """One encoded picture in, its best classes out: the session's scores, a softmax or a sigmoid of each label."""
        return self._in_a_task(self._classify(request), time.monotonic(), respond)

    def succeed(self, asked: InferRequest, outputs: Outputs, begun_s: float, respond: Respond) -> None:
        """Answer with these outputs."""
        try:
            answer = self._writer.answer(asked, outputs)
        except Exception as error:  # noqa: BLE001 - the others of its batch are still to be answered
            self.fail(error, begun_s, respond)
            return
        self.tally.succeeded(time.monotonic() - begun_s)
        respond(answer)

    def fail(self, error: BaseException, begun_s: float, respond: Respond) -> None:
        """Answer with an error."""
        self.tally.failed(error, time.monotonic() - begun_s)
        respond(answer_from_error(error))

    def withdraw(self, waiting: Waiting, begun_s: float) -> None:
        """Nobody waits for the answer any more."""
        self._batcher.withdraw(waiting)
        self.tally.failed(asyncio.CancelledError(), time.monotonic() - begun_s)

    def _in_a_task(self, work: Coroutine[None, None, Answer], begun_s: float, respond: Respond) -> Cancel:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def finish(task: asyncio.Task[Answer]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                self.tally.failed(asyncio.CancelledError(), time.monotonic() - begun_s)
            elif error := task.exception():
                self.fail(error, begun_s, respond)
            else:
                self.tally.succeeded(time.monotonic() - begun_s)
                respond(task.result())

        task.add_done_callback(finish)
        return task.cancel

    async def _infer_pictures(self, asked: InferRequest) -> Answer:
        begun_s = time.monotonic()
        rows = await self._decoder.rows(self.session.prepare, asked.pictures)
        deadline_s = _remaining(asked.timeout_s, time.monotonic() - begun_s)
        outputs = await self._batcher.asubmit(rows, deadline_s=deadline_s, priority=asked.priority)
        return self._writer.answer(asked, outputs)

    async def _classify(self, request: Request) -> Answer:
        _refuse_compressed(request.headers)
        _refuse_form(request.headers)
        top = _top(request.query)
        if not request.body:
            raise ImageError("the body is empty, expected the bytes of one JPEG or PNG picture")
        rows = await self._decoder.rows(self.session.prepare, [request.body])
        outputs = await self._batcher.asubmit(rows)
        logits = outputs[self.signature.json_outputs[0].name]
        best = self.session.predictions(logits, top)[0].top
        return answer_from_json(
            {
                "model_name": self.signature.name,
                "model_version": self.signature.version,
                "predictions": best,
            }
        )


class _Delivery:
    """What the batcher answers: in place of a future, so that a whole batch is answered in one call into the loop."""

    __slots__ = ("_asked", "_begun_s", "_done", "_endpoint", "_loop", "_respond", "waiting")

    def __init__(self, endpoint: ModelEndpoint, asked: InferRequest, begun_s: float, respond: Respond) -> None:
        self._loop = asyncio.get_running_loop()
        self._endpoint = endpoint
        self._asked = asked
        self._begun_s = begun_s
        self._respond = respond
        self._done = False
        self.waiting: Waiting | None = None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def done(self) -> bool:
        return self._done

    def set_result(self, result: Outputs, /) -> None:
        self._done = True
        self._endpoint.succeed(self._asked, result, self._begun_s, self._respond)

    def set_exception(self, exception: BaseException, /) -> None:
        self._done = True
        self._endpoint.fail(exception, self._begun_s, self._respond)

    def cancel(self) -> None:
        if not self._done and self.waiting is not None:
            self._done = True
            self._endpoint.withdraw(self.waiting, self._begun_s)


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


def _refuse_form(headers: Mapping[bytes, bytes]) -> None:
    if headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
        raise UnsupportedError(
            "forms are not read here: send the picture's bytes as the body, as in curl --data-binary @picture.jpg"
        )


def _top(query: bytes) -> int:
    text = parse_qs(query.decode("latin1"), keep_blank_values=True).get("top", [str(DEFAULT_TOP)])[-1]
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise InvalidRequestError(f"top has to be a whole number of classes, at least 1, found {shown(text)}")
    return int(text)
