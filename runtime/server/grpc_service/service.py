"""The methods of GRPCInferenceService, and what is in front of each: how many at once, who may ask, how long it takes.

Every call is refused or begun before its message is read, so methods are what gRPC calls streaming on the side of the
client; on the wire there is no difference. Messages arrive and leave as bytes: what can't be parsed is an answer of
ours, not gRPC's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import msgspec

from ...errors import ClosedError, DeadlineError, InvalidRequestError, OverloadedError
from ..access import Access
from ..contract import ServerLimits
from ..models import Models
from ..repository import Repository
from .infer import InferReader
from .messages import CLASSES, SERVICE
from .questions import QUESTIONS, Asker
from .statuses import status_from_error
from .wire import field

RETRY_S = 1.0
MOST_AHEAD = 32
"""Requests of one stream that are read before the first of them is answered."""
HEALTH_SERVICE = "grpc.health.v1.Health"
HEALTH_PATHS = {
    f"/{SERVICE}/ServerLive": "/v2/health/live",
    f"/{SERVICE}/ServerReady": "/v2/health/ready",
    f"/{HEALTH_SERVICE}/Check": "/v2/health/ready",
}
"""Methods that say no more than these paths of HTTP, to which access may be open."""
CREDENTIALS = ("authorization", "x-api-key")

ERROR_MESSAGE, INFER_RESPONSE = 1, 2
"""Fields of a ModelStreamInferResponse."""
_final = CLASSES["ModelInferResponse"]()
_final.parameters["triton_final_response"].bool_param = True
FINAL: bytes = _final.SerializeToString()
"""Appended to a response in a stream: no other will follow for the same request."""

Context = Any
"""grpc.aio.ServicerContext"""


class Service:
    """Answers calls. Used from one event loop."""

    def __init__(
        self,
        models: Models,
        repository: Repository,
        access: Access,
        limits: ServerLimits,
        server_ready: Callable[[], bool],
    ) -> None:
        self._access = access
        self._limits = limits
        self._reader = InferReader(models, limits.max_json_bytes)
        self._asker = Asker(models, repository, server_ready)
        self._calls = 0
        self._stopping = False
        self._listening: set[asyncio.Task[None]] = set()
        """Of streams: each waits for the next request."""

    def handlers(self) -> list[Any]:
        """What grpc.aio's server takes."""
        methods = {name: self._unary(SERVICE, name, self._asker.answerer(name)) for name in QUESTIONS}
        methods["ModelInfer"] = self._unary(SERVICE, "ModelInfer", self._infer)
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream_infer)
        check = self._unary(HEALTH_SERVICE, "Check", self._asker.health)
        return [
            grpc.method_handlers_generic_handler(SERVICE, methods),
            grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": check}),
        ]

    def stop(self) -> None:
        """End streams once what was read of them is answered."""
        self._stopping = True
        for task in self._listening:
            task.cancel()

    def _unary(self, service: str, name: str, answer: Callable[[bytes, Context], Awaitable[bytes]]) -> Any:
        path = f"/{service}/{name}"

        async def handle(_: object, context: Context) -> bytes:
            async with self._call(path, context):
                message = await self._message(context)
                if message is None:
                    raise InvalidRequestError("the call came to its end without a message")
                return await answer(message, context)
            return b""  # not reached: a call that fails is aborted

        return grpc.stream_unary_rpc_method_handler(handle)

    @asynccontextmanager
    async def _call(self, path: str, context: Context) -> AsyncIterator[None]:
        """One call is under way: counted, allowed, and whatever goes wrong in it becomes its status."""
        self._calls += 1
        try:
            if self._calls > self._limits.max_connections:
                most = self._limits.max_connections
                raise OverloadedError(f"the server answers {most} calls, its most: try again later", RETRY_S)
            if self._access.asks:
                metadata = context.invocation_metadata()
                headers = {name.encode(): value.encode() for name, value in metadata if name in CREDENTIALS}
                self._access.check(HEALTH_PATHS.get(path, path), headers)
            yield
        except grpc.aio.BaseError:
            raise  # the client has gone, or has its status
        except Exception as error:  # noqa: BLE001 - the outermost place: whatever it is, the client gets a status
            status = status_from_error(error)
            await context.abort(status.code, status.text, status.trailing)
        finally:
            self._calls -= 1

    async def _message(self, context: Context) -> bytes | None:
        """The call's message; None: it has none."""
        try:
            async with asyncio.timeout(self._limits.body_s):
                message = await context.read()
        except TimeoutError as error:
            raise DeadlineError(f"the message did not arrive within {self._limits.body_s:g} s") from error
        return None if message is grpc.aio.EOF else message

    async def _infer(self, message: bytes, context: Context) -> bytes:
        exchange, asked = self._reader.request(message)
        remaining_s = context.time_remaining()
        if remaining_s is not None and (asked.timeout_s is None or remaining_s < asked.timeout_s):
            asked = msgspec.structs.replace(asked, timeout_s=remaining_s)
        return exchange.response_bytes(asked, await exchange.endpoint.outputs(asked))

    async def _stream_infer(self, _: object, context: Context) -> None:
        """Requests are answered in the order in which they came, and run together: up to MOST_AHEAD are read ahead."""
        async with self._call(f"/{SERVICE}/ModelStreamInfer", context):
            stream = _Stream(context, self._infer)
            listening = asyncio.get_running_loop().create_task(stream.listen())
            self._listening.add(listening)
            try:
                if self._stopping:
                    listening.cancel()
                await asyncio.wait({listening})
                if not listening.cancelled():
                    listening.result()
                await stream.answered()
                if listening.cancelled():
                    raise ClosedError("the server is stopping: open a stream to another one")
            finally:
                self._listening.discard(listening)
                listening.cancel()
                stream.cancel()


class _Stream:
    """The requests of one stream, each a task that waits for the one before it to have been answered."""

    def __init__(self, context: Context, infer: Callable[[bytes, Context], Awaitable[bytes]]) -> None:
        self._context = context
        self._infer = infer
        self._room = asyncio.Semaphore(MOST_AHEAD)
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Begin each request, until the client says that there are no more."""
        while True:
            await self._room.acquire()
            message = await self._context.read()
            if message is grpc.aio.EOF:
                return
            self._last = asyncio.get_running_loop().create_task(self._answer(message, self._last))
            self._tasks.add(self._last)
            self._last.add_done_callback(self._finished)

    async def answered(self) -> None:
        """Wait until every request is."""
        if self._last is not None:
            await self._last

    def cancel(self) -> None:
        """Take what is not answered out of the queue."""
        for task in self._tasks:
            task.cancel()

    async def _answer(self, message: bytes, before: asyncio.Task[None] | None) -> None:
        try:
            response = await self._infer(message, self._context)
            answer = field(INFER_RESPONSE, response + FINAL)
        except Exception as error:  # noqa: BLE001 - the others of the stream are still to be answered
            answer = field(ERROR_MESSAGE, status_from_error(error).text.encode())
        if before is not None:
            await before
        await self._context.write(answer)
        self._room.release()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at by whoever waits for it: the next one, or the stream
