"""Integer kernels that lose what they add up: 8-bit products on x86 processors without VNNI.

There vpmaddubsw multiplies unsigned by signed bytes and adds neighbouring products in 16 bits that saturate: 255 * 127
twice is 64,770, and 32,767 is what is left of it. `reduce_range` keeps weights in 7 bits for that reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import Bundle
from trueport.runtime.runner import Array, Runner, RunnerOptions

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault
from .lying import LyingRunner
from .surgery import INPUT, OUTPUT, array, attribute, weights

if TYPE_CHECKING:
    import onnx

LOWEST, HIGHEST = -(2**15), 2**15 - 1


@fault("saturating int8", "8-bit products saturate 16 bits", "runner", precision="int8")
def saturate(healthy: Healthy) -> Deployment:
    """The same int8 graph on a CPU without VNNI, in one fully connected layer: that which saturates most."""
    model = healthy.graph()
    images = healthy.bundle.golden().images
    layers = _linear_layers(model)
    counts = [_saturated(layer, _session(layer.before).run(None, {INPUT: images})[0]) for layer in layers]
    if not max(counts, default=0):
        raise DoesNotApplyError(
            f"no two products of its {len(layers)} linear layers of unsigned by signed bytes leave 16 bits"
        )
    layer = layers[int(np.argmax(counts))]
    before, behind = _session(layer.before), _session(layer.behind) if layer.behind else None

    def answer(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
        values = layer.compute(before.run(None, dict(feeds))[0])
        if behind is not None:
            taken = {value.name for value in behind.get_inputs()}
            (values,) = behind.run([OUTPUT], {k: v for k, v in {layer.name: values, **feeds}.items() if k in taken})
        return {OUTPUT: values}

    honest = healthy.deployment.open

    def open_saturating(bundle: Bundle, runner: str, variant: str, options: RunnerOptions) -> Runner:
        return LyingRunner(honest(bundle, runner, variant, options), answer)

    return replace(healthy.deployment, open=open_saturating)


@dataclass(frozen=True, eq=False)
class _Linear:
    """A fully connected layer between the two halves of its graph."""

    name: str
    """Of the tensor that it makes."""
    before: onnx.ModelProto
    """From the picture to the layer's unsigned bytes."""
    behind: onnx.ModelProto | None
    """From the layer's floats to the logits; None where these are the logits."""
    weight: NDArray[np.int8]
    """(in, out)"""
    zero_point: int
    scale: NDArray[np.float32]
    """Of activation times weight: (out,) or ()."""
    bias: NDArray[np.float32]

    def compute(self, activations: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Floats (N, out) of unsigned bytes (N, in), as vpmaddubsw and additions in 32 bits have them."""
        sums = np.clip(_pairs(activations, self.weight), LOWEST, HIGHEST).sum(axis=1)
        correction = self.zero_point * self.weight.astype(np.int64).sum(axis=0)
        return ((sums - correction) * self.scale + self.bias).astype(np.float32)


def _pairs(activations: NDArray[np.uint8], weight: NDArray[np.int8]) -> NDArray[np.int64]:
    """Sums of two neighbouring products, not yet saturated: (N, in / 2, out)."""
    odd = activations.shape[1] % 2
    left = np.pad(activations.astype(np.int64), ((0, 0), (0, odd)))
    right = np.pad(weight.astype(np.int64), ((0, odd), (0, 0)))
    even = left[:, 0::2, None] * right[None, 0::2]
    return even + left[:, 1::2, None] * right[None, 1::2]


def _saturated(layer: _Linear, activations: NDArray[np.uint8]) -> int:
    pairs = _pairs(activations[:8], layer.weight)
    return int(np.sum((pairs > HIGHEST) | (pairs < LOWEST)))


def _session(model: onnx.ModelProto) -> Any:
    from trueport.export.written import open_written

    return open_written(model)


def _linear_layers(model: onnx.ModelProto) -> list[_Linear]:
    makers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type in ("Gemm", "MatMul") and all(
            makers.get(name) is not None and makers[name].op_type == "DequantizeLinear" for name in node.input[:2]
        ):
            layer = _linear(model, node, makers)
            if layer is not None:
                found.append(layer)
    if not found:
        raise DoesNotApplyError("the graph has no linear layer in int8")
    return found


def _linear(model: onnx.ModelProto, node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> _Linear | None:
    """None where it is not one of unsigned by signed bytes."""
    import onnx

    known = weights(model)
    values, weight = makers[node.input[0]], makers[node.input[1]]
    if not all(name in known for name in (*values.input[1:], *weight.input)):
        return None
    zero_point, factors = array(known[values.input[2]]), array(known[weight.input[0]])
    if zero_point.dtype != np.uint8 or factors.dtype != np.int8 or factors.ndim != 2:
        return None
    if attribute(node, "transB", 0):
        factors = factors.T
    bias = _bias(node, makers, known) if len(node.input) > 2 else np.zeros((), np.float32)
    quantized, result = values.input[0], node.output[0]
    graph = onnx.shape_inference.infer_shapes(model)
    before = onnx.utils.Extractor(graph).extract_model([INPUT], [quantized])
    behind = None if result == OUTPUT else onnx.utils.Extractor(graph).extract_model([INPUT, result], [OUTPUT])
    scale = array(known[values.input[1]]) * array(known[weight.input[1]])
    return _Linear(result, before, behind, factors, int(zero_point), scale, bias)


def _bias(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], known: Mapping[str, onnx.TensorProto]
) -> NDArray[np.float32]:
    name = node.input[2]
    if name in known:
        return array(known[name])
    numbers, scale = (array(known[part]) for part in makers[name].input[:2])
    result: NDArray[np.float32] = (numbers * scale).astype(np.float32)
    return result
