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

from trueport.export.layers import attribute
from trueport.runtime.bundle import Bundle
from trueport.runtime.runner import Array, Runner, RunnerOptions

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault
from .lying import LyingRunner
from .surgery import INPUT, OUTPUT, array, weights

if TYPE_CHECKING:
    import onnx

LOWEST, HIGHEST = -(2**15), 2**15 - 1
LOOKED_AT = 8
"""Golden inputs by which the layer is chosen."""
AT_ONCE = 2**24
"""Products that are held at a time; a convolution's of one large picture take gigabytes."""


@fault("saturating int8", "8-bit products saturate 16 bits", "runner", precision="int8")
def saturate(healthy: Healthy) -> Deployment:
    """The same int8 graph on a CPU without VNNI, in one of its layers: that which loses most."""
    layers = _layers(healthy.graph())
    images = healthy.bundle.golden().images[:LOOKED_AT]
    lost = [layer.lost(_session(layer.before).run(None, {INPUT: images})[0]) for layer in layers]
    if not max(lost):
        raise DoesNotApplyError(f"in none of its {len(layers)} layers of unsigned by signed bytes a sum leaves 16 bits")
    layer = layers[int(np.argmax(lost))]
    before, behind = _session(layer.before), _session(layer.behind) if layer.behind else None

    def answer(_: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
        values = layer.compute(before.run(None, dict(feeds))[0])
        if behind is not None:
            taken = {value.name for value in behind.get_inputs()}
            given = {name: value for name, value in (*feeds.items(), (layer.name, values)) if name in taken}
            (values,) = behind.run([OUTPUT], given)
        return {OUTPUT: values}

    honest = healthy.deployment.open

    def open_saturating(bundle: Bundle, runner: str, variant: str, options: RunnerOptions) -> Runner:
        return LyingRunner(honest(bundle, runner, variant, options), answer)

    return replace(healthy.deployment, open=open_saturating)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A convolution or fully connected layer between the two halves of its graph."""

    name: str
    """Of the tensor that it makes."""
    before: onnx.ModelProto
    """From the picture to the layer's unsigned bytes."""
    behind: onnx.ModelProto | None
    """From the layer's floats to the logits; None where these are the logits."""
    weight: NDArray[np.int8]
    """(K, out), K the products of one sum."""
    zero_point: int
    scale: NDArray[np.float32]
    """Of activation times weight: (out,) or ()."""
    bias: NDArray[np.float32]
    kernel: tuple[int, int] | None
    """Of a convolution."""
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def compute(self, activations: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Floats of unsigned bytes, as vpmaddubsw and additions in 32 bits have them."""
        return np.concatenate([self._row(activations[i : i + 1]) for i in range(len(activations))])

    def lost(self, activations: NDArray[np.uint8]) -> float:
        """How far the saturation moves the layer's answers, in shares of the largest."""
        exact = np.concatenate([self._row(activations[i : i + 1], 2**31 - 1) for i in range(len(activations))])
        return float(np.abs(self.compute(activations) - exact).max() / max(np.abs(exact).max(), 1e-30))

    def _row(self, activations: NDArray[np.uint8], limit: int = HIGHEST) -> NDArray[np.float32]:
        columns, shape = self._columns(activations)
        count = max(1, AT_ONCE // self.weight.size)
        parts = [_sums(columns[i : i + count], self.weight, limit) for i in range(0, len(columns), count)]
        sums = np.concatenate(parts) - self.zero_point * self.weight.astype(np.int64).sum(axis=0)
        answers: NDArray[np.float32] = (sums * self.scale + self.bias).astype(np.float32)
        return answers if shape is None else answers.T.reshape(1, -1, *shape)

    def _columns(self, activations: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, int] | None]:
        """What each sum takes: (M, K), and the height and width that the M places of a convolution make up."""
        if self.kernel is None:
            return activations, None
        top, left, bottom, right = self.pads
        padded = np.pad(activations[0], ((0, 0), (top, bottom), (left, right)), constant_values=self.zero_point)
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.kernel, axis=(1, 2))
        windows = windows[:, :: self.strides[0], :: self.strides[1]]  # (C, h, w, kh, kw)
        shape = windows.shape[1], windows.shape[2]
        return windows.transpose(1, 2, 0, 3, 4).reshape(shape[0] * shape[1], -1), shape


def _sums(columns: NDArray[np.uint8], weight: NDArray[np.int8], limit: int) -> NDArray[np.int64]:
    """(M, out) of pairs that saturate beyond `limit`."""
    pairs = np.clip(_pairs(columns, weight), -limit - 1, limit)
    return np.asarray(pairs.sum(axis=1, dtype=np.int64))


def _pairs(columns: NDArray[np.uint8], weight: NDArray[np.int8]) -> NDArray[np.int32]:
    """Sums of two neighbouring products, not yet saturated: (M, K / 2, out)."""
    odd = columns.shape[1] % 2
    left = np.pad(columns.astype(np.int32), ((0, 0), (0, odd)))
    right = np.pad(weight.astype(np.int32), ((0, odd), (0, 0)))
    return left[:, 0::2, None] * right[None, 0::2] + left[:, 1::2, None] * right[None, 1::2]


def _session(model: onnx.ModelProto) -> Any:
    from trueport.export.written import open_written

    return open_written(model)


def _layers(model: onnx.ModelProto) -> list[_Layer]:
    """Those of unsigned by signed bytes. Raises DoesNotApplyError where there are none."""
    import onnx

    makers = {output: node for node in model.graph.node for output in node.output}
    inferred = onnx.shape_inference.infer_shapes(model)
    found = []
    for node in model.graph.node:
        if node.op_type in ("Gemm", "MatMul", "Conv"):
            sources = [makers.get(name) for name in node.input[:2]]
            if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
                found.append(_layer(inferred, node, makers))
    layers = [layer for layer in found if layer is not None]
    if not layers:
        raise DoesNotApplyError("the graph has no layer of unsigned by signed bytes")
    return layers


def _layer(model: onnx.ModelProto, node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> _Layer | None:
    """None where it is another kind of layer."""
    import onnx

    known = weights(model)
    values, weight = makers[node.input[0]], makers[node.input[1]]
    if not all(name in known for name in (*values.input[1:], *weight.input)):
        return None
    zero_point, factors = array(known[values.input[2]]), array(known[weight.input[0]])
    if zero_point.dtype != np.uint8 or factors.dtype != np.int8:
        return None
    convolution = node.op_type == "Conv"
    if convolution and (attribute(node, "group", 1) > 1 or set(attribute(node, "dilations", [1])) != {1}):
        return None
    bias = _bias(node, makers, known) if len(node.input) > 2 else np.zeros((), np.float32)
    quantized, result = values.input[0], node.output[0]
    extract = onnx.utils.Extractor(model).extract_model
    return _Layer(
        name=result,
        before=extract([INPUT], [quantized]),
        behind=None if result == OUTPUT else extract([INPUT, result], [OUTPUT]),
        weight=factors.reshape(len(factors), -1).T if convolution or attribute(node, "transB", 0) else factors,
        zero_point=int(zero_point),
        scale=array(known[values.input[1]]) * array(known[weight.input[1]]),
        bias=bias,
        kernel=(factors.shape[2], factors.shape[3]) if convolution else None,
        strides=tuple(attribute(node, "strides", (1, 1))),
        pads=tuple(attribute(node, "pads", (0, 0, 0, 0))),
    )


def _bias(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], known: Mapping[str, onnx.TensorProto]
) -> NDArray[np.float32]:
    name = node.input[2]
    if name in known:
        floats: NDArray[np.float32] = array(known[name])
        return floats
    numbers, scale = (array(known[part]) for part in makers[name].input[:2])
    return np.asarray(numbers * scale, np.float32)
