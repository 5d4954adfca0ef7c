"""What the server answers, as an OpenAPI 3.1 description (https://spec.openapis.org/oas/v3.1.1), made of its models.

Every path is the one that is served: a model's has its name in it, and schemas of its shapes and labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from .endpoint import ModelEndpoint
from .models import Models
from .openapi_schemas import Schema, common_schemas, infer_answer, infer_request, reference

JSON = "application/json"
OCTETS = "application/octet-stream"
ABOUT = (
    "The Open Inference Protocol (KServe V2) and a plain way to classify a picture.\n\n"
    'An error is JSON everywhere: {"error": "one sentence"}. Beside those that are listed, any request may be answered'
    " 400, 408, 413, 414, 417, 431 or 505 where it is no HTTP that is read here. Every answer carries X-Request-Id, the"
    " client's own where it sent one. HEAD works where GET does."
)
TAGS = {
    "Server": "Health, metadata and figures of all models.",
    "Repository": "Models that are loaded and unloaded while the server runs.",
}
ERRORS = {
    400: "The request is not what this takes; the sentence says what was expected and found.",
    401: "The token is missing or another one.",
    404: "There is no such model, or no longer, or not this version.",
    413: "The body is larger than the server takes.",
    415: "The body is compressed, or a form of another kind.",
    500: "The model answers this input with NaN or infinity, or the server failed; its log has the reason.",
    503: "Too much waits already, or the model is closing: try again after Retry-After seconds.",
    504: "The timeout passed before the request could run.",
}
EMPTY: Schema = {"description": "Yes. The body is empty."}
TIMED: Schema = {
    "name": "X-Server-Timing",
    "in": "header",
    "description": "1 asks for the header Server-Timing: milliseconds of decode, queue and compute, rows of the batch.",
    "schema": {"type": "string"},
}
TIMING: Schema = {
    "Server-Timing": {"description": "Where X-Server-Timing: 1 asked for it.", "schema": {"type": "string"}},
}
JSON_BYTES: Schema = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Bytes of JSON before binary tensors; 0: the body is the pixels of one row and nothing else.",
    "schema": {"type": "integer", "minimum": 0},
}
TOP: Schema = {
    "name": "top",
    "in": "query",
    "description": "How many classes.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 5},
}
MODEL: Schema = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "Of a model that is served or could be.",
    "schema": {"type": "string", "minLength": 1},
}


def openapi(models: Models, *, open_paths: frozenset[str] | None = None, control: bool = False) -> Schema:
    """The description. open_paths: what needs no token; None: none is asked for.

    control: whether clients may load and unload models.
    """
    described: Schema = {
        "openapi": "3.1.1",
        "info": {"title": "trueport", "version": version("trueport"), "description": ABOUT},
        # relative to where this description lies, so that it is right below any prefix
        "servers": [{"url": "."}],
        "tags": [{"name": name, "description": TAGS[name]} for name in TAGS],
        "paths": {**_server_paths(models), **_repository_paths(control)},
        "components": {
            "schemas": common_schemas(),
            "responses": {f"Error{status}": _error(status) for status in ERRORS},
        },
    }
    for name, versions in models.names.items():
        _add_model(described, name, versions)
    if open_paths is not None:
        _ask_for_token(described, open_paths)
    return described


def _server_paths(models: Models) -> Schema:
    """What is asked of the server and not of one model."""
    figures = "Requests, durations, batches and queues"
    paths = {
        "/": _get("page", "The page for people", _html()),
        "/docs": _get("docs", "This description as a page", _html()),
        "/openapi.json": _get("openapi", "This description", _json({"type": "object"})),
        "/status": _get(
            "status", "What the page shows: what runs, and counters that only grow", _json(reference("Status"))
        ),
        "/metrics": _get("metrics", f"{figures}, for Prometheus", _content("text/plain", {"type": "string"})),
        "/v2": _get("server", "Name, version and extensions", _json(reference("ServerMetadata"))),
        "/v2/health/live": _get("live", "Whether the server answers", _json(reference("Live"))),
        "/v2/health/ready": _get("ready", "Whether every model is ready", _json(reference("Ready")), 400),
        "/v2/models/stats": _get("statistics", f"{figures}, of every model", _json(reference("Statistics"))),
    }
    if len(models) == 1:
        paths["/classify"] = _classify("classify", "Server", next(iter(models)))
    return paths


def _repository_paths(control: bool) -> Schema:
    listed = _json({"type": "array", "items": reference("IndexEntry")})
    asked = {"content": {JSON: {"schema": reference("IndexRequest")}}}
    index = _operation("index", "Repository", "What is served and what could be", listed, (400, 413), requestBody=asked)
    paths = {"/v2/repository/index": {"post": index}}
    if control:
        nothing = {"content": {JSON: {"schema": {"type": "object"}}}}
        for action, summary in (("load", "Load a model, or load it anew"), ("unload", "Serve a model no longer")):
            operation = _operation(
                action, "Repository", summary, EMPTY, (400, 404, 413, 500, 503), requestBody=nothing, parameters=[MODEL]
            )
            paths[f"/v2/repository/models/{{name}}/{action}"] = {"post": operation}
    return paths


def _add_model(described: Schema, name: str, versions: Mapping[str, ModelEndpoint]) -> None:
    """The paths of one name and of its versions, and the schemas that only they have."""
    schemas = described["components"]["schemas"]
    last = list(versions.values())[-1]
    described["tags"].append({"name": name, "description": _said(last)})
    for version_name, endpoint in versions.items():
        schemas[f"{name}.{_word(version_name)}.Request"] = infer_request(endpoint.signature)
        schemas[f"{name}.{_word(version_name)}.Answer"] = infer_answer(endpoint.signature)
    base = f"/v2/models/{name}"
    described["paths"] |= _model_paths(base, name, name, [last])
    version_parameter = {
        "name": "version",
        "in": "path",
        "required": True,
        "description": "Without one, the last is meant.",
        "schema": {"type": "string", "enum": list(versions)},
    }
    for path, item in _model_paths(f"{base}/versions/{{version}}", f"{name}.version", name, versions.values()).items():
        described["paths"][path] = {"parameters": [version_parameter], **item}


def _model_paths(base: str, word: str, tag: str, endpoints: Iterable[ModelEndpoint]) -> Schema:
    """endpoints: those that may be meant."""
    endpoints = list(endpoints)

    def get(action: str, summary: str, answer: Schema, error: int = 404) -> Schema:
        return _get(f"{word}.{action}", summary, answer, error, tag=tag)

    return {
        base: get("metadata", "Inputs, outputs and versions", _json(reference("ModelMetadata"))),
        f"{base}/config": get("config", "Batches, priorities and task", _json(reference("ModelConfig"))),
        f"{base}/ready": get("ready", "Whether it is ready", _json(reference("ModelReady")), 400),
        f"{base}/stats": get("stats", "What was asked of it so far", _json(reference("Statistics"))),
        f"{base}/classify": _classify(f"{word}.classify", tag, endpoints[-1]),
        f"{base}/infer": _infer(f"{word}.infer", tag, endpoints),
    }


def _classify(name: str, tag: str, endpoint: ModelEndpoint) -> Schema:
    picture = {"type": "string", "format": "binary"}
    form = {"type": "object", "properties": {"image": picture}, "required": ["image"]}
    kinds = {kind: {"schema": picture} for kind in ("image/jpeg", "image/png", OCTETS)}
    body = {"required": True, "content": {**kinds, "multipart/form-data": {"schema": form}}}
    operation = _operation(
        name,
        tag,
        "The best classes of one picture",
        {**_json(reference("Classification")), "headers": TIMING},
        (400, 404, 413, 415, 500, 503),
        description=_scores(endpoint),
        parameters=[TOP, TIMED],
        requestBody=body,
    )
    return {"post": operation}


def _infer(name: str, tag: str, endpoints: list[ModelEndpoint]) -> Schema:
    words = [f"{each.signature.name}.{_word(each.signature.version)}" for each in endpoints]
    asked, told = (_any([reference(f"{word}.{what}") for word in words]) for what in ("Request", "Answer"))
    binary = {"schema": {"type": "string", "format": "binary"}}
    answer = {
        "description": "The outputs; with binary ones, the body begins with so many bytes of JSON as the header says.",
        "content": {JSON: {"schema": told}, OCTETS: binary},
        "headers": {JSON_BYTES["name"]: {"schema": JSON_BYTES["schema"]}, **TIMING},
    }
    operation = _operation(
        name,
        tag,
        "Tensors in, tensors out",
        answer,
        (400, 404, 413, 415, 500, 503, 504),
        description="Pixels as JSON, or as bytes behind the JSON; datatype BYTES holds encoded pictures, each after its"
        " length as a little-endian uint32.",
        parameters=[JSON_BYTES, TIMED],
        requestBody={"required": True, "content": {JSON: {"schema": asked}, OCTETS: binary}},
    )
    return {"post": operation}


def _get(name: str, summary: str, answer: Schema, *errors: int, tag: str = "Server") -> Schema:
    return {"get": _operation(name, tag, summary, answer, errors)}


def _operation(name: str, tag: str, summary: str, answer: Schema, errors: Iterable[int], **more: Any) -> Schema:
    responses = {"200": answer} | {str(status): _refusal(status) for status in errors}
    return {"operationId": name, "tags": [tag], "summary": summary, **more, "responses": responses}


def _ask_for_token(described: Schema, open_paths: frozenset[str]) -> None:
    described["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    }
    described["security"] = [{"bearer": []}, {"key": []}]
    for path, item in described["paths"].items():
        for method in item.keys() & {"get", "post"}:
            if path in open_paths:
                item[method]["security"] = []
            else:
                item[method]["responses"]["401"] = _refusal(401)


def _error(status: int) -> Schema:
    answer = {"description": ERRORS[status], "content": {JSON: {"schema": reference("Error")}}}
    if status == 503:
        answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
    return answer


def _refusal(status: int) -> Schema:
    return {"$ref": f"#/components/responses/Error{status}"}


def _json(schema: Schema) -> Schema:
    return _content(JSON, schema)


def _html() -> Schema:
    return _content("text/html", {"type": "string"})


def _content(kind: str, schema: Schema) -> Schema:
    return {"description": "", "content": {kind: {"schema": schema}}}


def _any(schemas: list[Schema]) -> Schema:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _word(text: str) -> str:
    """A version as the names of components have to be; a model's name is so by itself."""
    return re.sub(r"[^A-Za-z0-9._-]", lambda found: f"_{ord(found[0]):x}", text)


def _said(endpoint: ModelEndpoint) -> str:
    height, width, channels = endpoint.signature.row_shape
    labels = len(endpoint.signature.labels)
    return f"Rows of {height} x {width} x {channels} uint8, {labels} label{'s' if labels != 1 else ''}."


def _scores(endpoint: ModelEndpoint) -> str:
    if endpoint.session.manifest.task == "multilabel":
        return "Scores are the sigmoid of each label by itself: those above 0.5 are said to be in the picture."
    return "Scores are the softmax over all labels, best first."
