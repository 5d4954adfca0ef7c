"""ModelInferRequest -> InferRequest, and its outputs -> ModelInferResponse. Tensors are views of the message."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from ...errors import InvalidRequestError
from ..endpoint import ModelEndpoint
from ..models import Models
from ..outputs import Outputs, described_outputs
from ..protocol import Head, InferRequest, head_from_fields, pictures_from_elements
from .messages import CLASSES
from .wire import field, head_and_contents

LONGEST_KNOWN = 1024
MOST_KNOWN = 256
RAW_OUTPUT_CONTENTS = 6
TYPED = {"UINT8": "uint_contents", "BYTES": "bytes_contents"}
"""The field of InferTensorContents that holds the values of a datatype that is read here."""

NOTHING = memoryview(b"")
"""In the place of values that are not there: refused for their number, or for their datatype."""

_Request = CLASSES["ModelInferRequest"]
_Response = CLASSES["ModelInferResponse"]


@dataclass(slots=True)
class Exchange:
    """What requests that differ in their tensors alone have in common, and the answers to them."""

    endpoint: ModelEndpoint
    head: Head
    begins: bytes = b""
    """What comes before the tensors in an answer, once there was one."""

    def response_bytes(self, asked: InferRequest, outputs: Outputs) -> bytes:
        """The ModelInferResponse that holds what was asked for. Raises InvalidRequestError."""
        signature = self.endpoint.signature
        if asked.outputs is signature.binary_outputs:
            raw = [outputs[wanted.name].tobytes() for wanted in asked.outputs]
            if not self.begins:
                self.begins = self._beginning(described_outputs(signature, asked.outputs, outputs)[0])
            return self.begins + b"".join([field(RAW_OUTPUT_CONTENTS, data) for data in raw])
        described, raw = described_outputs(signature, asked.outputs, outputs)
        return self._beginning(described) + b"".join([field(RAW_OUTPUT_CONTENTS, data) for data in raw])

    def _beginning(self, described: list[dict[str, Any]]) -> bytes:
        signature = self.endpoint.signature
        response = _Response(model_name=signature.name, model_version=signature.version, id=self.head.id)
        for each in described:
            response.outputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
        return bytes(response.SerializeToString())


class InferReader:
    """Reads the inference requests to all models.

    Clients send the same message before every tensor: it is parsed and checked once, until the models change.
    max_head_bytes: of a request without its raw_input_contents.
    """

    def __init__(self, models: Models, max_head_bytes: int) -> None:
        self._models = models
        self._max_head_bytes = max_head_bytes
        self._known: dict[bytes, Exchange] = {}
        self._generation = models.generation

    def request(self, message: bytes) -> tuple[Exchange, InferRequest]:
        """What is asked, and how it is answered. Raises UnknownError, or InvalidRequestError for what is no request."""
        text, contents = head_and_contents(message)
        if self._generation != self._models.generation:
            self._generation = self._models.generation
            self._known.clear()
        known = self._known.get(text)
        if known is not None and len(contents) == 1 and known.head.binary_bytes == len(contents[0]):
            return known, _asked(known.head, contents[0])
        return self._read(text, contents)

    def _read(self, text: bytes, contents: Sequence[memoryview]) -> tuple[Exchange, InferRequest]:
        if len(text) > self._max_head_bytes:
            raise InvalidRequestError(
                f"the request has {len(text)} bytes beside raw_input_contents, at most {self._max_head_bytes} are "
                "read: send tensors as raw_input_contents"
            )
        request = parsed(_Request, text)
        endpoint, begun_s = self._models.find(request.model_name, request.model_version), time.monotonic()
        try:
            values = _values(request, contents)
            head = head_from_fields(endpoint.signature, _fields(request, len(values)))
            asked = _asked(head, values)
        except InvalidRequestError as error:
            endpoint.tally.failed(error, time.monotonic() - begun_s)
            raise
        exchange = Exchange(endpoint, head)
        if head.pixels and contents and len(text) <= LONGEST_KNOWN:
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[text] = exchange
        return exchange, asked


def parsed(kind: Any, text: bytes) -> Any:
    """A message. Raises InvalidRequestError for bytes that are none."""
    try:
        return kind.FromString(text)
    except DecodeError as error:
        raise InvalidRequestError(f"the message is not a {kind.DESCRIPTOR.name}") from error


def _asked(head: Head, values: Any) -> InferRequest:
    rows, pictures = None, list[bytes]()
    if head.pixels:
        pixels = values if isinstance(values, memoryview) else _bytes_of_numbers(values)
        rows = np.frombuffer(pixels, np.uint8).reshape(head.tensor.shape)
    elif isinstance(values, memoryview):
        pictures = pictures_from_elements(head, values)
    else:
        pictures = list(values)
        if len(pictures) != head.rows:
            raise InvalidRequestError(
                f"input {head.tensor.name} of {head.rows} rows has {len(pictures)} elements in bytes_contents"
            )
    return InferRequest(rows, pictures, head.id, head.outputs, head.priority, head.timeout_s)


def _bytes_of_numbers(values: Iterable[int]) -> bytes:
    try:
        return bytes(values)
    except ValueError as error:
        raise InvalidRequestError("uint_contents of a UINT8 input has to be numbers from 0 to 255") from error


def _fields(request: Any, size: int) -> dict[str, object]:
    """What the JSON of a request over HTTP would say."""
    return {
        "id": request.id,
        "parameters": {**_some(request.parameters, "priority", "timeout"), "binary_data_output": True},
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {**_some(tensor.parameters, "shared_memory_region"), "binary_data_size": size},
            }
            for tensor in request.inputs
        ],
        "outputs": [
            {
                "name": output.name,
                "parameters": _some(output.parameters, "classification", "shared_memory_region"),
            }
            for output in request.outputs
        ],
    }


def _some(parameters: Mapping[str, Any], *names: str) -> dict[str, object]:
    """The values of these parameters, where they are given."""
    given: dict[str, object] = {}
    for name in names:
        if name in parameters:
            kind = parameters[name].WhichOneof("parameter_choice")
            given[name] = None if kind is None else getattr(parameters[name], kind)
    return given


def _values(request: Any, contents: Sequence[memoryview]) -> Any:
    """Of the input: a view of the bytes, or the typed values, which are converted once their number is known to fit."""
    typed = [tensor for tensor in request.inputs if tensor.HasField("contents")]
    if contents:
        if typed:
            raise InvalidRequestError("raw_input_contents and contents are both there: send the tensor as one of them")
        if len(contents) != 1 or len(request.inputs) != 1:
            raise InvalidRequestError(
                f"raw_input_contents has {len(contents)} elements for {len(request.inputs)} inputs, expected 1 for 1"
            )
        return contents[0]
    return _typed(typed[0]) if len(typed) == 1 else NOTHING


def _typed(tensor: Any) -> Any:
    field = TYPED.get(tensor.datatype)
    found = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if field is None or not found:
        return NOTHING
    if found != [field]:
        raise InvalidRequestError(f"contents of a {tensor.datatype} input has to be {field}, found {', '.join(found)}")
    return getattr(tensor.contents, field)
