"""Answers to inference requests: outputs as JSON, or as bytes behind the JSON, or as their best classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequestError
from .answers import JSON, OCTETS, Answer, content_length
from .protocol import LENGTH_BYTES, InferRequest
from .signature import ARRAY_DATATYPES, Signature, WantedOutput

_encode = msgspec.json.Encoder().encode


def answer_from_outputs(signature: Signature, request: InferRequest, outputs: Mapping[str, NDArray[Any]]) -> Answer:
    """The 200 that holds what was asked for."""
    described: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for wanted in request.outputs:
        values = outputs[wanted.name]
        if wanted.classes:
            described.append(_classes(signature.labels, wanted, values, tail))
        else:
            described.append(_values(wanted, values, tail))
    head = {"model_name": signature.name, "model_version": signature.version, "outputs": described}
    if request.id:
        head["id"] = request.id
    text = _encode(head)
    if not tail:
        return Answer(200, [JSON, content_length(text)], text)
    body = b"".join((text, *tail))
    return Answer(200, [OCTETS, content_length(body), (b"inference-header-content-length", b"%d" % len(text))], body)


def _values(wanted: WantedOutput, values: NDArray[Any], tail: list[bytes]) -> dict[str, Any]:
    described: dict[str, Any] = {"name": wanted.name, "datatype": ARRAY_DATATYPES[values.dtype], "shape": values.shape}
    if wanted.binary:
        tail.append(values.tobytes())
        described["parameters"] = {"binary_data_size": values.nbytes}
    else:
        described["data"] = values.ravel().tolist()  # JSON has no NaN and no infinity: they become null
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
