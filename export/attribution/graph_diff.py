"""Two graphs of one network side by side, node by node and weight by weight, and either brought to the other.

Nodes and tensors are known by their names: both graphs come from the same exporter. Where hardly a name is in both, as
between two versions of torch, there is nothing to compare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.numpy_helper import to_array

from ..layers import layer_name

KNOWN = 0.5
"""Of the nodes of the smaller graph must be in both."""


@dataclass(frozen=True, eq=False)
class TensorChange:
    """A weight, bias or constant that has other values."""

    name: str
    layer: str
    """Of the first node that reads it."""
    place: int
    """Which of that node's inputs it is: 1 the weight, 2 the bias."""
    op_type: str
    found: NDArray[Any]
    expected: NDArray[Any]


@dataclass(frozen=True, eq=False)
class NodeChange:
    """A node that is added, removed, of another kind, fed by others, or has other attributes."""

    kind: str
    """`added`, `removed`, `operator`, `attribute`, `inputs`."""
    layer: str
    node: onnx.NodeProto
    """As it was found; where it was removed, as it has to be."""
    expected: onnx.NodeProto | None
    attribute: str = ""
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Difference:
    """All that differs between a graph that was found and the one it has to be."""

    tensors: tuple[TensorChange, ...]
    nodes: tuple[NodeChange, ...]
    opset: tuple[int, int]
    """Found and expected."""

    def __bool__(self) -> bool:
        """Whether anything differs but the opset."""
        return bool(self.tensors or self.nodes)


def difference(found: onnx.ModelProto, expected: onnx.ModelProto) -> Difference | None:
    """What differs; None where the graphs have hardly a name in common."""
    ours, theirs = _by_name(found), _by_name(expected)
    if len(ours.keys() & theirs.keys()) < KNOWN * min(len(ours), len(theirs)):
        return None
    return Difference(_tensor_changes(found, expected), _node_changes(ours, theirs), (opset(found), opset(expected)))


def opset(model: onnx.ModelProto) -> int:
    """Of ONNX's own operators; 0 where none is stated."""
    return next((entry.version for entry in model.opset_import if not entry.domain), 0)


def with_tensors(found: onnx.ModelProto, changes: tuple[TensorChange, ...]) -> onnx.ModelProto:
    """The graph with these weights as they have to be."""
    mended = onnx.ModelProto()
    mended.CopyFrom(found)
    wanted = {change.name: change.expected for change in changes}
    for tensor in mended.graph.initializer:
        if tensor.name in wanted:
            tensor.CopyFrom(onnx.numpy_helper.from_array(wanted[tensor.name], tensor.name))
    return mended


def with_attributes(found: onnx.ModelProto, changes: tuple[NodeChange, ...]) -> onnx.ModelProto:
    """The graph with the attributes of these nodes as they have to be."""
    mended = onnx.ModelProto()
    mended.CopyFrom(found)
    wanted = {_key(change.node): change.expected for change in changes if change.expected is not None}
    for node in mended.graph.node:
        if (expected := wanted.get(_key(node))) is not None:
            del node.attribute[:]
            node.attribute.extend(expected.attribute)
    return mended


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Values of all initializers, and of nodes that are constants."""
    found = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        value = next((entry.t for entry in node.attribute if entry.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            found[node.output[0]] = to_array(value)
    return found


def _key(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _by_name(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {_key(node): node for node in model.graph.node if node.op_type != "Constant"}


def _tensor_changes(found: onnx.ModelProto, expected: onnx.ModelProto) -> tuple[TensorChange, ...]:
    ours, theirs = constants(found), constants(expected)
    changes = []
    for node in found.graph.node:
        for place, name in enumerate(node.input):
            if name not in ours or name not in theirs:
                continue
            mine, wanted = ours.pop(name), theirs[name]  # each is told once, of the first node that reads it
            if mine.shape == wanted.shape and mine.dtype == wanted.dtype and mine.tobytes() != wanted.tobytes():
                changes.append(TensorChange(name, layer_name(node), place, node.op_type, mine, wanted))
    return tuple(changes)


def _node_changes(ours: dict[str, onnx.NodeProto], theirs: dict[str, onnx.NodeProto]) -> tuple[NodeChange, ...]:
    changes = [NodeChange("added", layer_name(node), node, None) for key, node in ours.items() if key not in theirs]
    for key, expected in theirs.items():
        if key not in ours:
            changes.append(NodeChange("removed", layer_name(expected), expected, expected))
        else:
            changes += _changes_of(ours[key], expected)
    return tuple(changes)


def _changes_of(node: onnx.NodeProto, expected: onnx.NodeProto) -> list[NodeChange]:
    layer = layer_name(expected)
    if node.op_type != expected.op_type:
        return [NodeChange("operator", layer, node, expected, detail=f"{node.op_type} for {expected.op_type}")]
    ours, theirs = (
        {entry.name: onnx.helper.get_attribute_value(entry) for entry in one.attribute} for one in (node, expected)
    )
    found = [
        NodeChange(
            "attribute", layer, node, expected, name, f"{name} is {_shown(ours, name)}, expected {_shown(theirs, name)}"
        )
        for name in sorted(ours.keys() | theirs.keys())
        if not _same(ours.get(name), theirs.get(name))
    ]
    if list(node.input) != list(expected.input):
        detail = f"reads {', '.join(node.input)}, expected {', '.join(expected.input)}"
        found.append(NodeChange("inputs", layer, node, expected, detail=detail))
    return found


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, onnx.TensorProto) and isinstance(theirs, onnx.TensorProto):
        return bool(np.array_equal(to_array(ours), to_array(theirs)))
    return bool(ours == theirs)


def _shown(values: dict[str, Any], name: str) -> str:
    value = values.get(name, "not there")
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
