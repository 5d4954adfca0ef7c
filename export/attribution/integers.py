"""What was done to an int8 graph: scales that don't fit the activations, weights that are not the float graph's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..activations import Activations, Histogram, observed
from ..calibration import ranges
from ..layers import COMPUTING, computed_in, layer_name, producers
from ..quantize import Scheme, prepared, quantized
from .graph_diff import constants
from .subject import Rows

NARROW = 0.5
"""Of what is seen: a range that reaches less far cuts values off."""
WIDE = 4.0
"""Times what is seen: a range that reaches so far wastes two of the eight bits."""
LITTLE = 1e-3
"""Of the largest value: a side that reaches no further is not looked at."""
SATURATED = 2**15 - 1
"""The largest sum of two products that a CPU without VNNI can hold."""


@dataclass(frozen=True)
class Misfit:
    """A pair whose range is not that of the activations."""

    tensor: str
    layer: str
    ratio: float
    """Of the range to what is seen."""


def misfits(graph: onnx.ModelProto, floats: onnx.ModelProto, images: Rows) -> list[Misfit]:
    """Quantized activations whose range does not fit what the float graph makes of `images`."""
    values, behind = constants(graph), producers(floats)
    seen = observed(floats, images)[-1]
    found = []
    for node in graph.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in seen or node.input[1] not in values:
            continue
        low, high = _range(values[node.input[1]], values.get(node.input[2]) if len(node.input) > 2 else None)
        ratio = _ratio(seen[node.input[0]], low, high)
        if not NARROW <= ratio <= WIDE:
            found.append(Misfit(node.input[0], layer_name(behind[node.input[0]]), ratio))
    return found


def _range(scale: NDArray[Any], zero: NDArray[Any] | None) -> tuple[float, float]:
    least, most = (0, 255) if zero is None or zero.dtype == np.uint8 else (-128, 127)
    point = 0 if zero is None else int(zero)
    return float(scale) * (least - point), float(scale) * (most - point)


def _ratio(seen: Histogram, low: float, high: float) -> float:
    """Of the side that cuts most off what is usual; where neither does, of the whole to all that is seen."""
    usual = ((-low, -seen.quantile(0.001)), (high, seen.quantile(0.999)))
    narrowest = min((reach / value for reach, value in usual if value > LITTLE * seen.largest), default=1.0)
    if narrowest < NARROW:
        return abs(max(narrowest, 0.0))  # and no -0
    needed = max(seen.highest, 0.0) - min(seen.lowest, 0.0)
    return max((high - low) / needed, NARROW) if needed > 0 else 1.0


def recalibrated(graph: onnx.ModelProto, floats: onnx.ModelProto, images: Rows, reduce_range: bool) -> onnx.ModelProto:
    """The float graph quantized anew in the same scheme, with the ranges of `images`; what was in float stays so."""
    unsigned = any(
        value.dtype == np.uint8
        for node in graph.graph.node
        if node.op_type == "QuantizeLinear" and len(node.input) > 2
        for value in [constants(graph)[node.input[2]]]
    )
    seen: Activations = observed(floats, images)[-1]
    limits = ranges(seen, "minmax")
    scheme: Scheme = "u8s8" if unsigned else "s8s8"
    in_float = [name for name, kind in computed_in(graph).items() if kind != "int8"]
    return quantized(prepared(floats), limits, scheme, reduce_range=reduce_range, in_float=in_float)


def other_weights(graph: onnx.ModelProto, floats: onnx.ModelProto) -> list[tuple[str, float]]:
    """Layers whose integer weights are not those of the float graph, and by how many steps at most."""
    values, originals = constants(graph), constants(floats)
    theirs = {node.name: node for node in floats.graph.node}
    found = []
    for node, dequantize in _weights(graph):
        source = theirs.get(node.name)
        if source is None or source.input[1] not in originals:
            continue
        steps, scale = values[dequantize.input[0]].astype(np.float64), values[dequantize.input[1]].astype(np.float64)
        wanted = originals[source.input[1]].astype(np.float64)
        if steps.shape != wanted.shape:
            continue
        axis = next((entry.i for entry in dequantize.attribute if entry.name == "axis"), 1)
        shape = [-1 if place == axis % steps.ndim else 1 for place in range(steps.ndim)] if scale.ndim else []
        scale = scale.reshape(shape) if scale.ndim else scale
        away = float(np.abs(steps - wanted / np.where(scale > 0, scale, 1)).max(initial=0.0))
        if away > 1:
            found.append((layer_name(node), away))
    return found


def saturating(graph: onnx.ModelProto) -> list[str]:
    """Layers in which two products of unsigned activations may add up to more than 16 bits hold."""
    values = constants(graph)
    found = []
    for node, dequantize in _weights(graph):
        weights = np.abs(values[dequantize.input[0]].astype(np.int64))
        rows = weights.reshape(len(weights), -1)
        pairs = rows[:, : rows.shape[1] // 2 * 2].reshape(len(rows), -1, 2).sum(axis=2)
        if 255 * int(pairs.max(initial=0)) > SATURATED:
            found.append(layer_name(node))
    return found


def halved(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its integer weights in 7 bits: half the steps, of double size."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    values = constants(graph)
    done = set()
    for _, dequantize in _weights(graph):
        steps, scale = dequantize.input[:2]
        if steps in done or steps not in tensors or scale not in tensors:
            continue
        done.add(steps)
        half = np.rint(values[steps].astype(np.float64) / 2).astype(values[steps].dtype)
        tensors[steps].CopyFrom(onnx.numpy_helper.from_array(half, steps))
        tensors[scale].CopyFrom(onnx.numpy_helper.from_array(values[scale] * np.float32(2), scale))
    return made


def _weights(graph: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Each product with what dequantizes its weights."""
    behind, values = producers(graph), {tensor.name for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        dequantize = behind.get(node.input[1]) if node.op_type in COMPUTING else None
        if dequantize is not None and dequantize.op_type == "DequantizeLinear" and dequantize.input[0] in values:
            yield node, dequantize
