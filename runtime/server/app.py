"""The Open Inference Protocol as an ASGI application, without a framework: to mount in another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import UsageError
from .access import Access
from .answers import Answer, answer_from_error, log_failure
from .contract import Receive, Request, Scope, Send, ServerLimits
from .http1 import LONGEST_NUMBER, too_large
from .models import Models
from .replay import require_golden
from .routes import REQUEST_ID, Router, begun
from .tracing import tracing
from .watched import Seen

if TYPE_CHECKING:
    from ..session import Session

DEFAULT_LIMITS = ServerLimits()
LOOK_S = 1.0
"""Between two looks at the models."""


class App:
    """Serves sessions; of several versions of one name, the last is the one that is meant without a version.

    access: who may ask; None: everybody who reaches it. gate: what a session has to pass first, told in a sentence;
    None: nothing. The replay of the golden set takes as long as its runs do, and runs here, not at the application's
    start, of which a mounted one is not told.
    Raises UsageError for a model that can't be served, or one that is given twice, GateError where one does not answer
    its golden set as the original did. The sessions stay the caller's: the application does not close them. Its
    requests run in one event loop.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        limits: ServerLimits = DEFAULT_LIMITS,
        access: Access | None = None,
        gate: Callable[[Session], str] | None = require_golden,
    ) -> None:
        self._limits = limits
        if not sessions:
            raise UsageError("there is no model to serve: give at least one")
        models = Models(limits)
        for session in sessions:
            models.add(session, gate(session) if gate else "")
        self._router = Router(models, access or Access())
        self._tracing = tracing()
        self._lookout = _Lookout(models)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3: scopes `http` and `lifespan`."""
        if scope["type"] != "http":
            await self._lifespan(scope, receive, send)
            return
        with self._lookout.during_a_request():
            await self._http(scope, receive, send)

    def close(self) -> None:
        """Stop being ready and let the threads go."""
        self._router.close()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        query = scope.get("query_string", b"")
        seen = None if self._tracing is None else Seen(scope["method"], scope["path"], query, headers)
        try:
            answer = await self._answer(scope, headers, receive, seen)
        except _DisconnectedError:
            return
        except Exception as error:  # noqa: BLE001 - the outermost place: whatever it is, the client gets an answer
            answer = answer_from_error(error)
        request_id = self._router.request_id(headers)
        log_failure(answer, request_id)
        fields = [*answer.fields.pairs, (REQUEST_ID, request_id)]
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": answer.body})
        if self._tracing is not None and seen is not None:
            self._tracing.join(seen.end(request_id, answer))

    async def _answer(
        self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, seen: Seen | None
    ) -> Answer:
        path: str = scope["path"]
        if root := scope.get("root_path"):
            path = path.removeprefix(root)
        handler = self._router.route(scope["method"], path, headers)
        if seen is not None:
            handler = seen.handled(handler, path, self._router.models)
        body = await _body(headers, receive, self._limits.max_body_bytes) if scope["method"] == "POST" else b""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def respond(answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        cancel = begun(handler, Request(headers, scope.get("query_string", b""), body), respond)
        if answered.done():
            return answered.result()
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((answered, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                raise _DisconnectedError
            return answered.result()
        except (asyncio.CancelledError, _DisconnectedError):
            if cancel is not None:
                cancel()
            raise
        finally:
            leaving.cancel()

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            raise UsageError(f"trueport serves http, found a connection of type {scope['type']!r}")
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.close()
                self._lookout.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return


class _Lookout:
    """Looks after the models, in the loop of the requests: as long as there are any, or a run does not end."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._requests = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def during_a_request(self) -> Iterator[None]:
        """From its begin to its end."""
        self._requests += 1
        try:
            loop = asyncio.get_running_loop()
            if self._timer is None or self._loop is not loop:  # the timer of a loop that has ended never comes
                self._loop = loop
                self._look(loop)
            yield
        finally:
            self._requests -= 1

    def stop(self) -> None:
        """The application has come to its end; called in its loop."""
        if self._timer is not None and self._loop is asyncio.get_running_loop():
            self._timer.cancel()
        self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._models.look_after() or self._requests:
            self._timer = loop.call_later(LOOK_S, self._look, loop)


class _DisconnectedError(Exception):
    """The client went away: nobody is left to answer."""


async def _disconnected(receive: Receive) -> None:
    """Until the client goes away; after a request's body nothing else can come."""
    while (await receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)  # something else that comes at once, again and again, must not hold up the loop


async def _body(headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> bytes:
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and (len(declared) > LONGEST_NUMBER or int(declared) > limit):
        # a client that waits for 100 Continue never sends the body; the next request must not be taken for it
        raise too_large(limit, close=b"expect" in headers)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        chunks, size = [body], len(body)
        while message.get("more_body") and size <= limit:
            message = await receive()
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
        body = b"".join(chunks)
    if message["type"] == "http.disconnect":
        raise _DisconnectedError
    if len(body) > limit:
        raise too_large(limit, close=True)
    return body
