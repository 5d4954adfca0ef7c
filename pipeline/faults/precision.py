"""A precision that the numbers do not fit: float16 that overflows, int8 with ranges of something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault
from .surgery import array, nodes, put, weighted, weights

if TYPE_CHECKING:
    import onnx

    from trueport.export.calibration import Range

LARGEST_HALF = 65504.0
HEADED_FOR = 2 * LARGEST_HALF
"""Where the largest of the activations is put that have to leave float16."""
PICTURES = 64
"""Of the evaluation slice, that int8 is calibrated on anew."""
COMMUTING = ("Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Reshape", "Flatten")
"""A positive scale goes through them unchanged."""
Change = Callable[["Range"], "Range"]


@fault("fp16 overflow", "activations overflow in float16", "precision", precision="fp16")
def overflow_half(healthy: Healthy) -> Deployment:
    """What one layer gains the next one loses: float32 does not mind, and float16 has no room in between."""
    model = healthy.graph()
    known = weights(model)
    pairs = _consecutive(model)
    factors = [HEADED_FOR / max(largest(healthy, first.output[0]), 1e-3) for first, _ in pairs]
    tops = [
        factor * max(np.abs(array(known[name]).astype(np.float64)).max() for name in first.input[1:])
        for factor, (first, _) in zip(factors, pairs, strict=True)
    ]
    if min(tops) > LARGEST_HALF:
        raise DoesNotApplyError("weights would overflow before the activations do")
    best = int(np.argmin(tops))
    (first, second), factor = pairs[best], factors[best]
    for name in first.input[1:]:
        put(known[name], array(known[name]).astype(np.float64) * factor)
    put(known[second.input[1]], array(known[second.input[1]]).astype(np.float64) / factor)
    return healthy.with_graph(model)


def _consecutive(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Every two layers with nothing between them that a scale does not pass through."""
    layers = weighted(model)
    computing = {node.output[0]: node for node, _ in layers}
    makers = {output: node for node in model.graph.node for output in node.output}
    known, taken = weights(model), Counter(name for node in model.graph.node for name in node.input)
    pairs = []
    for node, _ in layers:
        name = node.input[0]
        while name in makers and makers[name].op_type in COMMUTING and taken[name] == 1:
            name = makers[name].input[0]
        before = computing.get(name)
        if (
            before is not None
            and taken[name] == 1
            and all(part in known and taken[part] == 1 for part in _own(before, node))
        ):
            pairs.append((before, node))
    if not pairs:
        raise DoesNotApplyError("no two layers follow each other so that a scale passes from one to the next")
    return pairs


def _own(before: onnx.NodeProto, behind: onnx.NodeProto) -> tuple[str, ...]:
    """The weights that are scaled: shared with no other layer."""
    return (*before.input[1:], behind.input[1])


def largest(healthy: Healthy, tensor: str) -> float:
    """Of a tensor of the variant's healthy graph, on the golden inputs."""
    import onnx

    from trueport.export.written import open_written

    model = healthy.graph()
    inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    if tensor not in inferred:
        raise DoesNotApplyError(f"the graph does not tell the type of {tensor}")
    model.graph.output.append(inferred[tensor])
    (values,) = open_written(model).run([tensor], {"image": healthy.bundle.golden().images})
    return float(np.abs(values.astype(np.float64)).max())


@fault("int8 on constants", "int8 was calibrated on constant pictures", "precision", precision="int8")
def calibrate_on_constants(healthy: Healthy) -> Deployment:
    """A calibration loader that yields torch.zeros, as in many examples."""
    images = healthy.bundle.evaluation().images[:8]
    return _quantized(healthy, np.full_like(images, 128))


@fault("int8 on dark pictures", "int8 was calibrated on pictures of another scale", "precision", precision="int8")
def calibrate_on_another_scale(healthy: Healthy) -> Deployment:
    """Pictures of 0 to 1, or normalised ones, cast to uint8 on their way into the calibration."""
    return _quantized(healthy, healthy.bundle.evaluation().images[:PICTURES] // 32)


@fault("int8 range too narrow", "int8 cuts activations off", "precision", precision="int8")
def calibrate_too_narrow(healthy: Healthy) -> Deployment:
    """Ranges of one easy class, or of a moving average that had not settled: a quarter of what is needed."""
    images = healthy.bundle.evaluation().images[:PICTURES]
    return _quantized(healthy, images, lambda ends: (ends[0] / 4, ends[1] / 4))


@fault("int8 range too wide", "int8 spreads its levels over far too much", "precision", precision="int8")
def calibrate_too_wide(healthy: Healthy) -> Deployment:
    """One outlier among the calibration pictures, taken by minmax: 16 levels are left for all the others."""
    images = healthy.bundle.evaluation().images[:PICTURES]
    return _quantized(healthy, images, lambda ends: (ends[0] * 16, ends[1] * 16))


def _quantized(healthy: Healthy, images: Any, change: Change = lambda ends: ends) -> Deployment:
    """The variant quantized again from the fp32 graph, with other ranges and all else as it was."""
    try:
        from trueport.export.activations import observed
        from trueport.export.calibration import ranges
        from trueport.export.int8 import SCHEMES
        from trueport.export.layers import layer_name
        from trueport.export.quantize import prepared, quantized
    except ImportError as error:
        raise DoesNotApplyError(f"planting it needs {error.name}") from error
    how = healthy.variant.quantization
    if how is None:
        raise DoesNotApplyError("the bundle does not tell how the variant was quantized")
    graph = healthy.graph("fp32")
    seen = ranges(observed(graph, images)[-1], "minmax")
    model = prepared(graph)
    in_float = [node.name for node in model.graph.node if layer_name(node) in how.float_layers]
    made = quantized(
        model,
        {name: change(ends) for name, ends in seen.items()},
        SCHEMES[healthy.variant.name],
        reduce_range=how.reduce_range,
        in_float=in_float,
    )
    return healthy.with_graph(made)


@fault("int8 zero point", "a zero point is off by its sign", "precision", precision="int8")
def shift_a_zero_point(healthy: Healthy) -> Deployment:
    """uint8 read as int8, or the other way: every activation of a tensor is off by half of its range."""
    model = healthy.graph()
    known = weights(model)
    for node in nodes(model, "DequantizeLinear"):
        if node.input[0] in known or len(node.input) < 3 or node.input[2] not in known:
            continue  # of weights
        point = known[node.input[2]]
        put(point, array(point).astype(np.int64) ^ 64)
        return healthy.with_graph(model)
    raise DoesNotApplyError("no activation of the graph is quantized")


@fault("int8 weight scale", "a layer's weights have another scale", "precision", precision="int8")
def change_a_weight_scale(healthy: Healthy) -> Deployment:
    """Scales a channel in another order than the channels, as after a transposed layout."""
    model = healthy.graph()
    known = weights(model)
    for node in nodes(model, "DequantizeLinear"):
        scale = known.get(node.input[1])
        if node.input[0] not in known or scale is None or array(known[node.input[0]]).ndim < 2:
            continue
        if array(scale).size > 1 and np.ptp(array(scale)):
            put(scale, array(scale)[::-1])
            return healthy.with_graph(model)
    raise DoesNotApplyError("no layer has scales of several channels")
