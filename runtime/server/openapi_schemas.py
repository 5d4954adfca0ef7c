"""Schemas of what the server reads and answers (JSON Schema 2020-12, as OpenAPI 3.1 has it), for openapi.py.

What is the same for every model is said in Structs; what depends on the model, its shapes and labels, in functions.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ..session import Score
from .page import Status
from .signature import ARRAY_DATATYPES, PRIORITY_LEVELS, Signature

REFERENCE = "#/components/schemas/{name}"
Schema = dict[str, Any]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Error(msgspec.Struct, forbid_unknown_fields=True):
    """What was wrong, in one sentence: expected, found, what to do."""

    error: str


class Live(msgspec.Struct, forbid_unknown_fields=True):
    """The server answers."""

    live: bool


class Ready(msgspec.Struct, forbid_unknown_fields=True):
    """Every model answers."""

    ready: bool


class ModelReady(msgspec.Struct, forbid_unknown_fields=True):
    """This model answers."""

    name: str
    ready: bool


class ServerMetadata(msgspec.Struct, forbid_unknown_fields=True):
    """Of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(msgspec.Struct, forbid_unknown_fields=True):
    """Of one input or output; -1 is the number of rows."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, forbid_unknown_fields=True):
    """Of one model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Of one input or output; its dims are without the rows."""

    name: str
    data_type: str
    dims: list[int]


class DynamicBatching(msgspec.Struct, forbid_unknown_fields=True):
    """How many levels of priority there are, and which one is usual."""

    priority_levels: int
    default_priority_level: int


class TextParameter(msgspec.Struct, forbid_unknown_fields=True):
    """A parameter's value."""

    string_value: str


class ModelConfig(msgspec.Struct, forbid_unknown_fields=True):
    """After Triton's model configuration, as far as its clients read it."""

    name: str
    platform: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    dynamic_batching: DynamicBatching
    parameters: dict[str, TextParameter]


class Duration(msgspec.Struct, forbid_unknown_fields=True):
    """How often, and nanoseconds in all."""

    count: Count
    ns: Count


class InferenceStatistics(msgspec.Struct, forbid_unknown_fields=True):
    """Where the time went."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class ModelStatistics(msgspec.Struct, forbid_unknown_fields=True):
    """Of one version of one model."""

    name: str
    version: str
    last_inference: Count
    inference_count: Count
    execution_count: Count
    inference_stats: InferenceStatistics
    batch_stats: list[Any]


class Statistics(msgspec.Struct, forbid_unknown_fields=True):
    """After Triton's statistics extension."""

    model_stats: list[ModelStatistics]


class IndexRequest(msgspec.Struct):
    """What to list."""

    ready: bool = False


class IndexEntry(msgspec.Struct, forbid_unknown_fields=True):
    """A model that is served, or could be."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


class Classification(msgspec.Struct, forbid_unknown_fields=True):
    """The best classes of one picture, best first."""

    model_name: str
    model_version: str
    predictions: list[Score]


def common_schemas() -> dict[str, Schema]:
    """Those of every server, by name."""
    health = (Live, Ready, ModelReady)
    kinds = (Error, ServerMetadata, ModelMetadata, ModelConfig, Statistics, IndexRequest, IndexEntry, Status)
    _, schemas = msgspec.json.schema_components((*health, *kinds, Classification), ref_template=REFERENCE)
    return schemas


def reference(name: str) -> Schema:
    """The schema of that name."""
    return {"$ref": REFERENCE.format(name=name)}


def infer_request(signature: Signature) -> Schema:
    """What /infer of one model takes as JSON."""
    rows = {"type": "integer", "minimum": 1, "maximum": signature.max_rows}
    tensor = _object(
        {
            "name": {"const": signature.input},
            "datatype": {"const": "UINT8"},
            "shape": _tuple(rows, *({"const": size} for size in signature.row_shape)),
            "data": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 255},
                "minItems": signature.row_bytes,
                "description": "row by row, flat; nested as the shape is read too",
            },
        },
    )
    wanted = _object(
        {
            "name": {"enum": [output.name for output in signature.json_outputs]},
            "parameters": _object(
                {
                    "classification": {
                        "type": "integer",
                        "minimum": 0,
                        "description": "so many best classes as value:index:label",
                    },
                    "binary_data": {"type": "boolean", "description": "the values as bytes behind the JSON"},
                },
                (),
            ),
        },
        ("name",),
    )
    parameters = _object(
        {
            "priority": {
                "type": "integer",
                "minimum": 0,
                "description": f"1, the highest, to {PRIORITY_LEVELS}; 0: usual",
            },
            "timeout": {"type": "integer", "minimum": 0, "description": "microseconds until the answer is of no use"},
            "binary_data_output": {"type": "boolean", "description": "all outputs as bytes behind the JSON"},
        },
        (),
    )
    return _object(
        {
            "id": {"type": "string", "description": "given back"},
            "inputs": {"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
            "outputs": {"type": "array", "items": wanted, "maxItems": len(signature.json_outputs)},
            "parameters": parameters,
        },
        ("inputs",),
    )


def infer_answer(signature: Signature) -> Schema:
    """What /infer of one model answers as JSON, where no output is binary."""
    output = _object(
        {
            "name": {"enum": [output.name for output in signature.json_outputs]},
            "datatype": {"enum": [*sorted(ARRAY_DATATYPES.values()), "BYTES"]},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
            "data": {"type": "array", "items": {"type": ["number", "string"]}},
        },
    )
    return _object(
        {
            "model_name": {"const": signature.name},
            "model_version": {"const": signature.version},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": output, "minItems": 1},
        },
        ("model_name", "model_version", "outputs"),
        additionalProperties=False,
    )


def _object(properties: dict[str, Any], required: tuple[str, ...] | None = None, **more: Any) -> Schema:
    """An object; required: None: all of it."""
    names = list(properties) if required is None else list(required)
    return {"type": "object", "properties": properties, **({"required": names} if names else {}), **more}


def _tuple(*items: Schema) -> Schema:
    size = len(items)
    return {"type": "array", "prefixItems": list(items), "items": False, "minItems": size, "maxItems": size}
