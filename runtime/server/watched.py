"""What is seen of requests where somebody wants to know: the access log, or OpenTelemetry.

A connection that is watched is another class than one that is not, so that the usual one pays nothing for this.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from .answers import Answer
from .connection import Connection
from .contract import Handler, Request
from .http1 import Head
from .timed import Timed

if TYPE_CHECKING:
    from .listening import Connections
    from .models import Models

logger = logging.getLogger("trueport.server")

CLIENT_LEFT = 499
"""In place of a status where the client has gone before its answer, as nginx has it."""


@dataclass(slots=True)
class Seen:
    """One request, from the end of its header to its answer."""

    method: str = ""
    """Empty: its header could not be read."""
    path: str = ""
    """Percent-decoded: may hold any character."""
    query: bytes = b""
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    http_version: str = "1.1"
    route: str = ""
    """The path with {model} and {version} in place of them; empty: there is nothing, or the client may not ask."""
    model: str = ""
    model_version: str = ""
    bytes_in: int = 0
    """Of its body, as far as it was taken."""
    status: int = CLIENT_LEFT
    bytes_out: int = 0
    """Of the answer's body."""
    request_id: str = ""
    timed: Timed | None = None
    """Where the time went; None: it did not come to a run."""
    begun_ns: int = field(default_factory=time.time_ns)
    """Since 1970."""
    duration_ns: int = 0
    _begun_ns: int = field(default_factory=time.perf_counter_ns)

    def handled(self, handler: Handler, path: str, models: Models) -> Handler:
        """The same handler, which tells this where the time went. path: below what the application is mounted at."""
        self.route, self.model, self.model_version = _place(path, models)
        return lambda request, respond: handler(
            Request(request.headers, request.query, request.body, self.note), respond
        )

    def note(self, timed: Timed) -> None:
        """Keep where the time went."""
        self.timed = timed

    def end(self, request_id: bytes, answer: Answer | None = None) -> Seen:
        """It was answered; without an answer: the client has gone. Answers itself."""
        self.duration_ns = time.perf_counter_ns() - self._begun_ns
        self.request_id = request_id.decode("latin1")
        if answer is not None:
            self.status = answer.status
            self.bytes_out = len(answer.body) if self.method != "HEAD" else 0
        return self


Watch: TypeAlias = Callable[[Seen], object]
"""Called in the event loop with each request that has come to its end."""


class WatchedConnection(Connection):
    """Tells what it has answered."""

    __slots__ = ("_seen", "_watch")

    def __init__(self, connections: Connections, watch: Watch) -> None:
        super().__init__(connections)
        self._watch = watch
        self._seen: Seen | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, perhaps without its answer."""
        request_id = self._request_id
        super().connection_lost(exc)
        if self._seen is not None:
            self._tell(self._seen.end(request_id))

    def _accept(self, head: Head, body: bytes | None = None) -> None:
        version = "1.0" if head.old else "1.1"
        self._seen = Seen(head.method, head.path, head.query, head.headers, version)
        super()._accept(head, body)

    def _answer(self, body: bytes) -> None:
        if self._seen is not None:
            self._seen.bytes_in = len(body)
            self._handler = self._seen.handled(self._handler, self._head.path, self._connections.router.models)
        super()._answer(body)

    def _write(self, answer: Answer, ending: bytes) -> None:
        super()._write(answer, ending)
        self._tell((self._seen or Seen()).end(self._request_id, answer))

    def _tell(self, seen: Seen) -> None:
        self._seen = None
        try:
            self._watch(seen)
        except Exception:
            logger.exception("a request was answered, and could not be told of")


def _place(path: str, models: Models) -> tuple[str, str, str]:
    """Route, name and version of a path that was found."""
    if path == "/classify":
        signatures = [endpoint.signature for endpoint in models]  # other ones, where they were exchanged meanwhile
        return (path, signatures[0].name, signatures[0].version) if len(signatures) == 1 else (path, "", "")
    parts = path.split("/")
    at = {"/v2/models": 3, "/v2/repository/models": 4}.get(path[: path.find("/models") + len("/models")])
    if at is None or path == "/v2/models/stats":
        return path, "", ""
    name, parts[at] = parts[at], "{model}"
    versions = models.versions(name)
    version = versions[-1] if versions else ""
    if parts[at + 1 : at + 2] == ["versions"]:
        version, parts[at + 2] = parts[at + 2], "{version}"
    return "/".join(parts), name if versions else "", version
