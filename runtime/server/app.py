"""The Open Inference Protocol over HTTP as an ASGI application without a framework.

Every path is known once the models are, so that routing is one look into a dictionary:

    GET   /v2   /v2/health/live   /v2/health/ready
    GET   /v2/models/M[/versions/V]   and below it  /ready  /config
    POST  /v2/models/M[/versions/V]   and below it  /infer  /classify
    POST  /classify                                          where one model is served
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..errors import InvalidRequestError, TrueportError, UsageError, unknown_name
from .answers import (
    Answer,
    MethodError,
    TooLargeError,
    UnknownError,
    answer_from_error,
    answer_from_json,
    empty_answer,
)
from .contract import Receive, Scope, Send, ServerLimits
from .decoding import Decoder
from .endpoint import ModelEndpoint, Request
from .signature import model_config, model_metadata, server_metadata

if TYPE_CHECKING:
    from ..session import Session

LONGEST_NAME = 100
DEFAULT_LIMITS = ServerLimits()


class App:
    """Serves sessions; of several versions of one name, the last is the one that is meant without a version.

    Raises UsageError for a model that can't be served, or one that is given twice. The sessions stay the caller's: the
    application does not close them.
    """

    def __init__(self, sessions: Sequence[Session], limits: ServerLimits = DEFAULT_LIMITS) -> None:
        if not sessions:
            raise UsageError("there is no model to serve: give at least one")
        self._limits = limits
        self._decoder = Decoder(limits.max_waiting_pictures)
        self._gets: dict[str, Callable[[], Answer]] = {}
        self._posts: dict[str, Callable[[Request], Awaitable[Answer]]] = {}
        self._models: dict[str, dict[str, ModelEndpoint]] = {}
        self._stopping = False
        for session in sessions:
            self._add(ModelEndpoint(session, self._decoder, limits))
        for versions in self._models.values():
            self._route(versions)
        self._gets["/v2"] = _always(answer_from_json(server_metadata()))
        self._gets["/v2/health/live"] = _always(empty_answer())
        self._gets["/v2/health/ready"] = self._server_ready
        if len(sessions) == 1:
            self._posts["/classify"] = self._endpoints()[0].classify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3: scopes `http` and `lifespan`."""
        if scope["type"] != "http":
            await self._lifespan(scope, receive, send)
            return
        try:
            answer = await self._answer(scope, receive)
        except _DisconnectedError:
            return
        except Exception as error:  # noqa: BLE001 - the outermost place: whatever it is, the client gets an answer
            answer = answer_from_error(error)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    def close(self) -> None:
        """Stop being ready and let the threads go."""
        self._stopping = True
        self._decoder.close()

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path: str = scope["path"]
        if root := scope.get("root_path"):
            path = path.removeprefix(root)
        method: str = scope["method"]
        if method == "POST" and (handle := self._posts.get(path)) is not None:
            headers = dict(scope["headers"])
            body = await _body(headers, receive, self._limits.max_body_bytes)
            return await handle(Request(headers, scope.get("query_string", b""), body))
        if method in ("GET", "HEAD") and (get := self._gets.get(path)) is not None:
            return get()
        raise self._refusal(method, path)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            raise UsageError(f"trueport serves http, found a connection of type {scope['type']!r}")
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _add(self, endpoint: ModelEndpoint) -> None:
        name, version = endpoint.signature.name, endpoint.signature.version
        versions = self._models.setdefault(name, {})
        if version in versions:
            raise UsageError(f"version {version} of {name} is given twice: serve it once, or export under another name")
        versions[version] = endpoint

    def _route(self, versions: dict[str, ModelEndpoint]) -> None:
        for version, endpoint in versions.items():
            base = f"/v2/models/{endpoint.signature.name}"
            for path in (base, f"{base}/versions/{version}"):
                manifest = endpoint.session.manifest
                self._gets[path] = _always(answer_from_json(model_metadata(manifest, list(versions))))
                config = model_config(manifest, endpoint.signature.max_rows)
                self._gets[f"{path}/config"] = _always(answer_from_json(config))
                self._gets[f"{path}/ready"] = partial(_model_ready, endpoint)
                self._posts[f"{path}/infer"] = endpoint.infer
                self._posts[f"{path}/classify"] = endpoint.classify

    def _endpoints(self) -> list[ModelEndpoint]:
        return [endpoint for versions in self._models.values() for endpoint in versions.values()]

    def _server_ready(self) -> Answer:
        # the protocol's "no" is a 4xx, as of a model that is not ready
        if self._stopping or not all(endpoint.ready for endpoint in self._endpoints()):
            return answer_from_json({"error": "not every model is ready"}, 400)
        return empty_answer()

    def _refusal(self, method: str, path: str) -> TrueportError:
        """Why there is nothing at this method and path."""
        if path in self._posts:
            return MethodError(f"{path[:LONGEST_NAME]} takes POST, found {method}", "POST")
        if path in self._gets:
            return MethodError(f"{path[:LONGEST_NAME]} takes GET, found {method}", "GET, HEAD")
        parts = path.split("/")
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3 and (text := self._unknown_model(parts)):
            return InvalidRequestError(text) if parts[-1] == "ready" else UnknownError(text)
        if path == "/classify":
            return UnknownError("several models are served: POST /v2/models/NAME/classify")
        return UnknownError(f"there is nothing at {path[:LONGEST_NAME]!r}: GET /v2 and POST /v2/models/NAME/infer are")

    def _unknown_model(self, parts: list[str]) -> str | None:
        name = parts[3][:LONGEST_NAME]
        if name not in self._models:
            return str(unknown_name("model", name, self._models))
        if parts[4:5] == ["versions"] and len(parts) > 5 and parts[5] not in self._models[name]:
            return str(unknown_name(f"version of {name}", parts[5][:LONGEST_NAME], self._models[name]))
        return None


class _DisconnectedError(Exception):
    """The client went away before its request had arrived: nobody is left to answer."""


def _always(answer: Answer) -> Callable[[], Answer]:
    return lambda: answer


def _model_ready(endpoint: ModelEndpoint) -> Answer:
    if not endpoint.ready:
        return answer_from_json({"error": f"{endpoint.signature.name} is closed"}, 400)
    return empty_answer()


async def _body(headers: Mapping[bytes, bytes], receive: Receive, limit: int) -> bytes:
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        # a client that waits for 100 Continue never sends the body; the next request must not be taken for it
        raise _too_large(limit, close=b"expect" in headers)
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
        raise _too_large(limit, close=True)
    return body


def _too_large(limit: int, *, close: bool) -> TooLargeError:
    return TooLargeError(f"the body is larger than {limit} bytes: send fewer rows at a time", close=close)
