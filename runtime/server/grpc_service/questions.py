"""What can be asked beside inference: health, metadata, config, statistics, and the models of the repository."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import msgspec
from google.protobuf import json_format

from ...errors import InvalidRequestError
from ..answers import UnknownError
from ..endpoint import ModelEndpoint
from ..models import LONGEST_NAME, Models
from ..repository import Repository
from ..signature import model_config, model_metadata, server_metadata
from ..statistics import model_statistics
from .infer import parsed
from .messages import CLASSES, SERVICE

LONGEST_QUESTION = 64 * 2**10
"""Bytes of a request that holds names alone."""
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
"""HealthCheckResponse of grpc.health.v1."""
HEALTH_OF = frozenset((b"", b"\x0a%c%b" % (len(SERVICE), SERVICE.encode())))
"""HealthCheckRequest of it: of the server, or of its one service."""

Answerer = Callable[[bytes, object], Awaitable[bytes]]


class Asker:
    """Answers the questions. Used from one event loop."""

    def __init__(self, models: Models, repository: Repository, server_ready: Callable[[], bool]) -> None:
        self.models = models
        self.repository = repository
        self.server_ready = server_ready

    def answerer(self, name: str) -> Answerer:
        """What answers the messages of a method with messages, both as bytes."""
        question, answer = CLASSES[f"{name}Request"], CLASSES[f"{name}Response"]
        answers = QUESTIONS[name]

        async def answered(message: bytes, _: object) -> bytes:
            if len(message) > LONGEST_QUESTION:
                raise InvalidRequestError(f"a {name}Request has at most {LONGEST_QUESTION} bytes, found {len(message)}")
            told = msgspec.json.encode(await answers(self, parsed(question, message)))
            return bytes(json_format.Parse(told, answer()).SerializeToString())

        return answered

    async def health(self, message: bytes, _: object) -> bytes:
        """The health checking protocol of gRPC, as Kubernetes and load balancers ask it."""
        if message not in HEALTH_OF:
            raise UnknownError(f"the only service here is {SERVICE}")
        return SERVING if self.server_ready() else NOT_SERVING


async def _server_live(*_: Any) -> Mapping[str, object]:
    return {"live": True}


async def _server_ready(asker: Asker, _: Any) -> Mapping[str, object]:
    return {"ready": asker.server_ready()}


async def _model_ready(asker: Asker, asked: Any) -> Mapping[str, object]:
    # the protocol's "no": also of a model that there is not
    try:
        return {"ready": asker.models.find(asked.name, asked.version).ready}
    except UnknownError:
        return {"ready": False}


async def _server_metadata(asker: Asker, _: Any) -> Mapping[str, object]:
    return server_metadata(asker.repository.control)


async def _model_metadata(asker: Asker, asked: Any) -> Mapping[str, object]:
    endpoint = asker.models.find(asked.name, asked.version)
    return model_metadata(endpoint.session.manifest, asker.models.versions(asked.name))


async def _model_config(asker: Asker, asked: Any) -> Mapping[str, object]:
    endpoint = asker.models.find(asked.name, asked.version)
    return {"config": model_config(endpoint.session.manifest, endpoint.signature.max_rows)}


async def _model_statistics(asker: Asker, asked: Any) -> Mapping[str, object]:
    endpoints: Iterable[ModelEndpoint] = asker.models
    if asked.name:
        first = asker.models.find(asked.name, asked.version)
        endpoints = [first] if asked.version else asker.models.names[asked.name].values()
    return {"model_stats": [model_statistics(figures) for figures in asker.models.figures(endpoints)]}


async def _index(asker: Asker, asked: Any) -> Mapping[str, object]:
    _require_no_repository(asked)
    return {"models": await asker.repository.index(asked.ready)}


async def _load(asker: Asker, asked: Any) -> Mapping[str, object]:
    _require_no_repository(asked)
    if asked.parameters:
        found = ", ".join(sorted(asked.parameters))[:LONGEST_NAME]
        raise InvalidRequestError(f"a model is loaded as its bundle has it: expected no parameters, found {found}")
    await asker.repository.load(asked.model_name)
    return {}


async def _unload(asker: Asker, asked: Any) -> Mapping[str, object]:
    _require_no_repository(asked)
    await asker.repository.unload(asked.model_name)
    return {}


def _require_no_repository(asked: Any) -> None:
    if asked.repository_name:
        raise InvalidRequestError("there is one repository here, without a name: leave repository_name empty")


QUESTIONS: dict[str, Callable[[Asker, Any], Awaitable[Mapping[str, object]]]] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ModelReady": _model_ready,
    "ServerMetadata": _server_metadata,
    "ModelMetadata": _model_metadata,
    "ModelConfig": _model_config,
    "ModelStatistics": _model_statistics,
    "RepositoryIndex": _index,
    "RepositoryModelLoad": _load,
    "RepositoryModelUnload": _unload,
}
"""By the name of the method; each answers the fields of its response."""
