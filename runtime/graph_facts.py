"""What an ONNX file says of itself beside its graph: opset and metadata, read without the onnx package.

ONNX files are protocol buffers; only the outermost message is looked at, and the graph is skipped by its length.
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from .errors import BundleError
from .manifest import Manifest

_OPSETS, _METADATA = 8, 14
"""Fields of ModelProto: opset_import and metadata_props."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types."""


@dataclass(frozen=True)
class GraphFacts:
    """What stands around the graph."""

    opset: int | None = None
    """Of ONNX's own operators."""
    metadata: dict[str, str] = field(default_factory=dict)


def graph_facts(data: bytes) -> GraphFacts:
    """Read them. Raises BundleError for what is no ONNX file."""
    opset, metadata = None, {}
    for number, value in _fields(memoryview(data)):
        if number == _OPSETS and isinstance(value, memoryview):
            entry = dict(_fields(value))
            if not _text(entry.get(1, b"")) and isinstance(version := entry.get(2), int):
                opset = version
        elif number == _METADATA and isinstance(value, memoryview):
            entry = dict(_fields(value))
            metadata[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
    return GraphFacts(opset, metadata)


def contradictions(
    manifest: Manifest, graphs: Mapping[str, GraphFacts], about: Literal["labels", "preprocessing", "normalisation"]
) -> list[str]:
    """Where what a graph carries is not what the manifest says, by file; what it does not carry contradicts nothing."""
    said = msgspec.json.encode(getattr(manifest, about)).decode()
    return [
        f"{file}: the {about} that it was exported with is not the manifest's"
        for file, facts in graphs.items()
        if facts.metadata.get(f"trueport.{about}", said) != said
    ]


def opset_changed(facts: GraphFacts) -> str:
    """A sentence where the graph is not in the opset that it was written in, else nothing."""
    stated = facts.metadata.get("trueport.opset")
    if stated is None or stated == str(facts.opset):
        return ""
    return f"the graph was written in opset {stated} and now says {facts.opset}"


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of one message."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise _damaged()
        if position + size > len(data):
            raise _damaged()
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _damaged()
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _damaged()


def _text(value: int | memoryview | bytes) -> str:
    return "" if isinstance(value, int) else bytes(value).decode("utf-8", "replace")


def _damaged() -> BundleError:
    return BundleError("the graph is no ONNX file: it ends, or holds a field, where none can be; export it again")
