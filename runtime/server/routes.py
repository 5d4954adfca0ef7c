"""Where requests go: one table for every way that they arrive.

Every path is known once the models are, so that routing is one look into a dictionary:

    GET   /v2   /v2/health/live   /v2/health/ready   /v2/models/stats   /metrics
    GET   /v2/models/M[/versions/V]   and below it  /ready  /config  /stats
    POST  /v2/models/M[/versions/V]   and below it  /infer  /classify
    POST  /classify                                          where one model is served
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

from ..errors import InvalidRequestError, TrueportError, UsageError, unknown_name
from .access import Access
from .answers import (
    Answer,
    MethodError,
    UnknownError,
    answer_from_bytes,
    answer_from_error,
    answer_from_json,
    empty_answer,
)
from .contract import Cancel, Handler, Request, Respond, ServerLimits
from .decoding import Decoder
from .endpoint import ModelEndpoint
from .signature import model_config, model_metadata, server_metadata
from .statistics import model_statistics, prometheus_text

if TYPE_CHECKING:
    from ..session import Session

LONGEST_NAME = 100
LONGEST_REQUEST_ID = 128
PROMETHEUS = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
REQUEST_ID = b"x-request-id"


class Router:
    """Serves sessions; of several versions of one name, the last is the one that is meant without a version.

    Raises UsageError for a model that can't be served, or one that is given twice. The sessions stay the caller's:
    `close` does not close them.
    """

    def __init__(self, sessions: Sequence[Session], limits: ServerLimits, access: Access) -> None:
        if not sessions:
            raise UsageError("there is no model to serve: give at least one")
        self._access = access
        self._decoder = Decoder(limits.max_waiting_pictures)
        self._gets: dict[str, Handler] = {}
        self._posts: dict[str, Handler] = {}
        self._models: dict[str, dict[str, ModelEndpoint]] = {}
        self._stopping = False
        process = os.urandom(6).hex().encode()
        self._request_ids = (b"%b-%x" % (process, number) for number in count(1))
        for session in sessions:
            self._add(ModelEndpoint(session, self._decoder, limits))
        for versions in self._models.values():
            self._route(versions)
        self._get("/v2", _always(answer_from_json(server_metadata())))
        self._get("/v2/health/live", _always(empty_answer()))
        self._get("/v2/health/ready", self._server_ready)
        self._get("/v2/models/stats", lambda: _statistics(self._endpoints()))
        self._get("/metrics", self._metrics)
        if len(sessions) == 1:
            self._posts["/classify"] = self._endpoints()[0].classify

    def route(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Handler:
        """What answers such a request; asked before its body is read.

        Raises UnauthorizedError, and UnknownError, MethodError or InvalidRequestError where there is nothing.
        """
        self._access.check(path, headers)
        handler = self._posts.get(path) if method == "POST" else None
        if method in ("GET", "HEAD"):
            handler = self._gets.get(path)
        if handler is None:
            raise self._refusal(method, path)
        return handler

    def request_id(self, headers: Mapping[bytes, bytes]) -> bytes:
        """The client's own, where it sent one that can be given back; else one that no other request has."""
        given = headers.get(REQUEST_ID)
        return given if given and len(given) <= LONGEST_REQUEST_ID else next(self._request_ids)

    def stop(self) -> None:
        """Be ready no longer; what comes is still answered."""
        self._stopping = True

    def close(self) -> None:
        """Stop, and let the threads go."""
        self.stop()
        self._decoder.close()

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
                self._get(path, _always(answer_from_json(model_metadata(manifest, list(versions)))))
                config = model_config(manifest, endpoint.signature.max_rows)
                self._get(f"{path}/config", _always(answer_from_json(config)))
                self._get(f"{path}/ready", lambda model=endpoint: _model_ready(model))  # type: ignore[misc]
                self._posts[f"{path}/infer"] = endpoint.infer
                self._posts[f"{path}/classify"] = endpoint.classify
            self._get(f"{base}/versions/{version}/stats", lambda model=endpoint: _statistics([model]))  # type: ignore[misc]
        self._get(f"{base}/stats", lambda: _statistics(versions.values()))

    def _get(self, path: str, answer: Callable[[], Answer]) -> None:
        self._gets[path] = lambda _, respond: respond(answer())

    def _endpoints(self) -> list[ModelEndpoint]:
        return [endpoint for versions in self._models.values() for endpoint in versions.values()]

    def _metrics(self) -> Answer:
        return answer_from_bytes(prometheus_text(endpoint.figures() for endpoint in self._endpoints()), PROMETHEUS)

    def _server_ready(self) -> Answer:
        # the protocol's "no" is a 4xx, as of a model that is not ready
        if self._stopping or not all(endpoint.ready for endpoint in self._endpoints()):
            return answer_from_json({"error": "not every model is ready"}, 400)
        return empty_answer()

    def _refusal(self, method: str, path: str) -> TrueportError:
        """Why there is nothing at this method and path."""
        if path in self._posts:
            return MethodError(f"{path[:LONGEST_NAME]} takes POST, found {method[:LONGEST_NAME]}", "POST")
        if path in self._gets:
            return MethodError(f"{path[:LONGEST_NAME]} takes GET, found {method[:LONGEST_NAME]}", "GET, HEAD")
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


def begun(handler: Handler, request: Request, respond: Respond) -> Cancel | None:
    """Let a handler begin; whatever goes wrong, the client gets an answer."""
    try:
        return handler(request, respond)
    except Exception as error:  # noqa: BLE001 - the outermost place
        respond(answer_from_error(error))
        return None


def _always(answer: Answer) -> Callable[[], Answer]:
    return lambda: answer


def _statistics(endpoints: Iterable[ModelEndpoint]) -> Answer:
    return answer_from_json({"model_stats": [model_statistics(endpoint.figures()) for endpoint in endpoints]})


def _model_ready(endpoint: ModelEndpoint) -> Answer:
    if not endpoint.ready:
        return answer_from_json({"error": f"{endpoint.signature.name} is closed"}, 400)
    return empty_answer()
