"""Where requests go: one table for every way that they arrive.

Every path is known once the models are, so that routing is one look into a dictionary:

    GET   /v2   /v2/health/live   /v2/health/ready   /v2/models/stats   /metrics
    GET   /v2/models/M[/versions/V]   and below it  /ready  /config  /stats
    POST  /v2/models/M[/versions/V]   and below it  /infer  /classify
    POST  /classify                                          where one model is served
    POST  /v2/repository/index   /v2/repository/models/M/load   /v2/repository/models/M/unload
    GET   /status   /openapi.json   and the files of page.py
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import count

from ..errors import InvalidRequestError, TrueportError
from .access import Access
from .answers import (
    Answer,
    MethodError,
    UnknownError,
    answer_from_bytes,
    answer_from_error,
    answer_from_json,
)
from .contract import Cancel, Handler, Request, Respond
from .control import Control
from .endpoint import ModelEndpoint
from .models import LONGEST_NAME, Models
from .openapi import openapi
from .page import page_routes, status
from .repository import Repository
from .signature import model_config, model_metadata, server_metadata
from .statistics import Figures, model_statistics, prometheus_text

LONGEST_REQUEST_ID = 128
PROMETHEUS = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
REQUEST_ID = b"x-request-id"
NO_STORE = (b"cache-control", b"no-store")


class Router:
    """Serves models, and what can be told of them. Used from one event loop.

    The models stay the caller's: `close` does not close their sessions.
    """

    def __init__(self, models: Models, access: Access, repository: Repository | None = None) -> None:
        self.models = models
        self.access = access
        self.repository = repository or Repository(models)
        self._gets: dict[str, Handler] = {}
        self._posts: dict[str, Handler] = {}
        self._made = -1
        """Of which generation of the models the table is."""
        self._stopping = False
        self._control = Control(self.repository)
        self._pages = page_routes()
        process = os.urandom(6).hex().encode()
        self._request_ids = (b"%b-%x" % (process, number) for number in count(1))

    def route(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Handler:
        """What answers such a request; asked before its body is read.

        Raises UnauthorizedError, and UnknownError, MethodError or InvalidRequestError where there is nothing.
        """
        self.access.check(path, headers)
        if self._made != self.models.generation:
            self._make()
        handler = (self._posts.get(path) or self._control.handler(path)) if method == "POST" else None
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
        self.models.close()

    def _make(self) -> None:
        self._made = self.models.generation
        self._gets, self._posts = {}, {}
        self._get("/v2", _always(answer_from_json(server_metadata(self.repository.control))))
        self._get("/v2/health/live", _always(answer_from_json({"live": True})))
        self._get("/v2/health/ready", self._server_ready)
        self._get("/v2/models/stats", lambda: _statistics(self.models.figures()))
        self._get("/metrics", self._metrics)
        self._get("/status", lambda: answer_from_json(status(self.models), 200, NO_STORE))
        self._get("/openapi.json", cache(self._description))
        for path, page in self._pages.items():
            self._get(path, _always(page))
        for versions in self.models.names.values():
            self._add(versions)
        if len(self.models) == 1:
            self._posts["/classify"] = next(iter(self.models)).classify
        self._posts["/v2/repository/index"] = self._control.index

    def _add(self, versions: Mapping[str, ModelEndpoint]) -> None:
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
            self._get(f"{base}/versions/{version}/stats", self._statistics_of([endpoint]))
        self._get(f"{base}/stats", self._statistics_of(versions.values()))

    def _get(self, path: str, answer: Callable[[], Answer]) -> None:
        self._gets[path] = lambda _, respond: respond(answer())

    def _metrics(self) -> Answer:
        return answer_from_bytes(prometheus_text(self.models.figures()), PROMETHEUS)

    def _statistics_of(self, endpoints: Iterable[ModelEndpoint]) -> Callable[[], Answer]:
        return lambda: _statistics(self.models.figures(endpoints))

    def is_ready(self) -> bool:
        """Whether every model answers, and will go on to."""
        return not self._stopping and all(endpoint.ready for endpoint in self.models)

    def _description(self) -> Answer:
        control, open_paths = self.repository.control, self.access.open_paths
        return answer_from_json(openapi(self.models, open_paths=open_paths, control=control), 200, NO_STORE)

    def _server_ready(self) -> Answer:
        # the protocol's "no" is a 4xx, as of a model that is not ready
        if not self.is_ready():
            return answer_from_json({"error": "not every model is ready"}, 400)
        return answer_from_json({"ready": True})

    def _refusal(self, method: str, path: str) -> TrueportError:
        """Why there is nothing at this method and path."""
        if path in self._posts or self._control.handler(path):
            return MethodError(f"{path[:LONGEST_NAME]} takes POST, found {method[:LONGEST_NAME]}", "POST")
        if path in self._gets:
            return MethodError(f"{path[:LONGEST_NAME]} takes GET, found {method[:LONGEST_NAME]}", "GET, HEAD")
        parts = path.split("/")
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3 and (text := self._unknown_model(parts)):
            return InvalidRequestError(text) if parts[-1] == "ready" else UnknownError(text)
        if path == "/classify":
            many = "several models are served: POST /v2/models/NAME/classify"
            return UnknownError(many if len(self.models) else "no model is loaded: there is none to classify with")
        return UnknownError(f"there is nothing at {path[:LONGEST_NAME]!r}: GET /v2 and POST /v2/models/NAME/infer are")

    def _unknown_model(self, parts: list[str]) -> str | None:
        try:
            self.models.find(parts[3], parts[5] if parts[4:5] == ["versions"] and len(parts) > 5 else "")
        except UnknownError as error:
            return str(error)
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


def _statistics(figures: Iterable[Figures]) -> Answer:
    return answer_from_json({"model_stats": [model_statistics(each) for each in figures]})


def _model_ready(endpoint: ModelEndpoint) -> Answer:
    if not endpoint.ready:
        return answer_from_json({"error": f"{endpoint.signature.name} does not answer at present"}, 400)
    return answer_from_json({"name": endpoint.signature.name, "ready": True})
