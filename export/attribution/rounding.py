"""A graph with its numbers rounded as some hardware does, and one that answers otherwise on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.numpy_helper import from_array, to_array

from ..layers import COMPUTING
from ..original import OUTPUT
from .subject import Rows, tensor_rows
from .tensors import graph_tensors

SMALLEST = float(np.finfo(np.float32).tiny)
"""Of float32's normal numbers: what is below is denormal."""
ADDED = "planted."
"""In front of the names of what is added."""


def flushed(graph: onnx.ModelProto, images: Rows) -> onnx.ModelProto | None:
    """The graph with activations that are denormal on `images` taken for zero; None where none is."""
    count, small = tensor_rows(images), set[str]()
    for start in range(0, len(images), count):
        tensors = graph_tensors(graph, images[start : start + count])
        small |= {name for name, values in tensors.items() if _has_denormals(values)}
    if not small:
        return None
    made = _copied(graph)
    made.graph.initializer.extend(
        [from_array(np.array(value, np.float32), ADDED + name) for name, value in (("tiny", SMALLEST), ("zero", 0))]
    )
    nodes = []
    for node in made.graph.node:
        node.input[:] = [f"{name}.flushed" if name in small else name for name in node.input]
        nodes.append(node)
        nodes += [added for name in node.output if name in small for added in _flush(name)]
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:]
    made.graph.node.extend(ordered)
    return made


def _has_denormals(values: NDArray[Any]) -> bool:
    return values.dtype == np.float32 and bool(((values != 0) & (np.abs(values) < SMALLEST)).any())


def _flush(name: str) -> list[onnx.NodeProto]:
    size, below, kept = (f"{name}.{part}" for part in ("size", "below", "flushed"))
    return [
        onnx.helper.make_node("Abs", [name], [size]),
        onnx.helper.make_node("Less", [size, ADDED + "tiny"], [below]),
        onnx.helper.make_node("Where", [below, ADDED + "zero", name], [kept]),
    ]


def with_rounded_weights(graph: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """The graph with the float32 weights of its products rounded to so many bits of mantissa, ties to even."""
    made = _copied(graph)
    weights = {node.input[1] for node in graph.graph.node if node.op_type in COMPUTING}
    for tensor in made.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name in weights:
            tensor.CopyFrom(from_array(_rounded(to_array(tensor), bits), tensor.name))
    return made


def _rounded(values: NDArray[Any], bits: int) -> NDArray[np.float32]:
    drop = 23 - bits
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    even = (raw >> drop) & 1
    kept = ((raw + (1 << (drop - 1)) - 1 + even) >> drop) << drop
    return kept.astype(np.uint32).view(np.float32).reshape(values.shape)


def doubled(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its logits doubled."""
    made = _copied(graph)
    for node in made.graph.node:
        node.output[:] = [ADDED + name if name == OUTPUT else name for name in node.output]
        node.input[:] = [ADDED + name if name == OUTPUT else name for name in node.input]
    made.graph.node.append(onnx.helper.make_node("Add", [ADDED + OUTPUT, ADDED + OUTPUT], [OUTPUT], ADDED + "double"))
    return made


def _copied(graph: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    return made
