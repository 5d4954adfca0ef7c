"""Answers to inference requests: outputs as JSON, or as bytes behind the JSON, or as their best classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequestError
from .answers import JSON, OCTETS, Answer, Fields, answer_from_bytes, content_length, fields
from .protocol import LENGTH_BYTES, InferRequest
from .signature import ARRAY_DATATYPES, Signature, WantedOutput

LONGEST_KNOWN_ID = 64
MOST_KNOWN = 256

Outputs = Mapping[str, NDArray[Any]]

_encode = msgspec.json.Encoder().encode


class _Beginning(msgspec.Struct, frozen=True, gc=False):
    """Of an answer whose tensors are all binary: everything but their bytes depends on their sizes alone."""

    fields: Fields
    text: bytes
    binary_bytes: int


class AnswerWriter:
    """Writes the answers of one model. What comes before the tensors is the same again and again: it is made once."""

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._known: dict[tuple[str, int], _Beginning] = {}

    def answer(self, request: InferRequest, outputs: Outputs) -> Answer:
        """The 200 that holds what was asked for."""
        if request.outputs is not self._signature.binary_outputs:
            return self._composed(request, outputs)
        tail = b"".join([outputs[wanted.name].tobytes() for wanted in request.outputs])
        key = (request.id, len(outputs[request.outputs[0].name]))
        known = self._known.get(key)
        if known is None or known.binary_bytes != len(tail):
            return self._remembered(key, self._composed(request, outputs), len(tail))
        return Answer(200, known.fields, known.text + tail)

    def _remembered(self, key: tuple[str, int], answer: Answer, binary_bytes: int) -> Answer:
        if len(key[0]) <= LONGEST_KNOWN_ID:
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            text = answer.body[: len(answer.body) - binary_bytes]
            self._known[key] = _Beginning(answer.fields, text, binary_bytes)
        return answer

    def _composed(self, request: InferRequest, outputs: Outputs) -> Answer:
        signature = self._signature
        described, tail = described_outputs(signature, request.outputs, outputs)
        head = {"model_name": signature.name, "model_version": signature.version, "outputs": described}
        if request.id:
            head["id"] = request.id
        text = _encode(head)
        if not tail:
            return answer_from_bytes(text, JSON)
        body = b"".join((text, *tail))
        json_bytes = (b"inference-header-content-length", b"%d" % len(text))
        return Answer(200, fields(OCTETS, content_length(len(body)), json_bytes), body)


def described_outputs(
    signature: Signature, asked: Sequence[WantedOutput], outputs: Outputs
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Name, datatype and shape of each output that is asked for, with its data where they are not binary; and the bytes
    of each that is.

    Raises InvalidRequestError for the classes of an output that has none.
    """
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for wanted in asked:
        describe = _classes if wanted.classes else _values
        described.append(describe(signature.labels, wanted, outputs[wanted.name], tail))
    return described, tail


def _values(_: Sequence[str], wanted: WantedOutput, values: NDArray[Any], tail: list[bytes]) -> dict[str, Any]:
    described: dict[str, Any] = {"name": wanted.name, "datatype": ARRAY_DATATYPES[values.dtype], "shape": values.shape}
    if wanted.binary:
        tail.append(values.tobytes())
        described["parameters"] = {"binary_data_size": values.nbytes}
    else:
        described["data"] = values.ravel().tolist()
    return described


def _classes(labels: Sequence[str], wanted: WantedOutput, values: NDArray[Any], tail: list[bytes]) -> dict[str, Any]:
    """BYTES [N, k] of `value:index:label`, best first; k is at most the number of classes.

    The value is the output's own, a logit, as the extension has it; scores from 0 to 1 are what /classify tells.
    """
    if values.ndim != 2:
        raise InvalidRequestError(f"output {wanted.name} has no classes, its shape is {list(values.shape)}")
    order = np.argsort(-values, axis=1, kind="stable")[:, : wanted.classes]
    texts = [f"{row[index]}:{index}:{labels[index]}" for row, best in zip(values, order, strict=True) for index in best]
    described: dict[str, Any] = {"name": wanted.name, "datatype": "BYTES", "shape": order.shape}
    if wanted.binary:
        data = b"".join(_element(text.encode()) for text in texts)
        tail.append(data)
        described["parameters"] = {"binary_data_size": len(data)}
    else:
        described["data"] = texts
    return described


def _element(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH_BYTES, "little") + data
