"""From a float32 graph and its activations' ranges to one with Q/DQ pairs, by onnxruntime's quantizer.

u8s8, for x86 CPUs: unsigned activations with a zero point, integers all the way through additions and pools.
s8s8, for GPUs: signed and symmetric, at the inputs of products alone, biases in float: what TensorRT fuses best.
Weights are signed, symmetric and of one scale a channel in both.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np

from .calibration import Range
from .layers import COMPUTING, producers
from .original import OUTPUT

if TYPE_CHECKING:
    import onnx

Scheme = Literal["u8s8", "s8s8"]
CPU_TYPES = (
    *COMPUTING,
    "Relu",
    "Clip",
    "Add",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
    "Flatten",
    "Reshape",
)
SHAPING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as the quantizer wants it: with the shapes and types of all tensors."""
    from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

    result: onnx.ModelProto = save_and_reload_model_with_shape_infer(model)
    return result


def quantized(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    scheme: Scheme,
    *,
    reduce_range: bool = False,
    in_float: Collection[str] = (),
    only: Collection[str] = (),
) -> onnx.ModelProto:
    """A graph with Q/DQ pairs; the logits stay float32.

    model: as `prepared` gives it. in_float: nodes to be left as they are. only: nodes to quantize; none: all others.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    cpu = scheme == "u8s8"
    quantizer = QDQQuantizer(
        copy.deepcopy(model),
        per_channel=True,
        reduce_range=reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8 if cpu else QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=list(only),
        nodes_to_exclude=[*in_float, *(_of_constants(model) if cpu else ())],
        op_types_to_quantize=list(CPU_TYPES if cpu else COMPUTING),
        extra_options={
            "ActivationSymmetric": not cpu,
            "WeightSymmetric": True,
            "QuantizeBias": cpu,
            # A product whose result goes on in float loses nothing by it, and the logits must not.
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"] if cpu else list(COMPUTING),
        },
    )
    with _quiet():
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # the pairs come last as they are added, which ONNX forbids
    result: onnx.ModelProto = quantizer.model.model
    _free_logits(result)
    if cpu:
        _free_norms(result)
    _restore_metadata(result, model)
    return result


def _of_constants(model: onnx.ModelProto) -> list[str]:
    """Nodes that no input reaches, and additions of what they make: biases behind products of sequences, positions,
    masks of attention.

    Biases are fused into the products in float, and masks of minus a hundred would take the levels from all else. With
    pairs around them OpenVINO 2026.4 can't compile Swin's.
    """
    constant, names = {tensor.name for tensor in model.graph.initializer}, list[str]()
    for node in model.graph.node:
        made = [name in constant for name in node.input if name]
        if all(made):  # or none at all: a Constant
            constant.update(node.output)
        if all(made) or (node.op_type == "Add" and any(made)):
            names.append(node.name)
    return names


def _free_logits(model: onnx.ModelProto) -> None:
    """Take the Q/DQ pairs away that stand between the last computation and the logits: 256 levels make ties."""
    behind = producers(model)
    name = OUTPUT
    while (node := behind.get(name)) is not None:
        before = behind.get(node.input[0]) if node.input else None
        if node.op_type == "DequantizeLinear" and before is not None and before.op_type == "QuantizeLinear":
            name = _replace(model, node, before.input[0])
            behind = producers(model)
        elif node.op_type in SHAPING:
            name = node.input[0]
        else:
            return


def _free_norms(model: onnx.ModelProto) -> None:
    """Take the pairs away behind what only batch norms take, which compute in float: a DenseNet's concatenations.

    They round once more for nothing, and OpenVINO 2026.4 ends the process where it compiles them for a fixed batch.
    """
    behind, users = producers(model), dict[str, set[str]]()
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    for node in list(model.graph.node):
        if node.op_type != "DequantizeLinear" or users.get(node.output[0]) != {"BatchNormalization"}:
            continue
        quantize = behind.get(node.input[0])
        source = behind.get(quantize.input[0]) if quantize is not None else None
        if quantize is not None and source is not None and source.op_type not in COMPUTING:
            _replace(model, node, quantize.input[0])


def _replace(model: onnx.ModelProto, dequantize: onnx.NodeProto, source: str) -> str:
    """Let what makes `source` make the dequantized tensor itself, or its consumers take the source; the name it has."""
    made, graph = dequantize.output[0], model.graph
    quantize = producers(model)[dequantize.input[0]]
    graph.node.remove(dequantize)
    if not any(quantize.output[0] in node.input for node in graph.node):
        graph.node.remove(quantize)
        for tensor in [tensor for tensor in graph.initializer if tensor.name in quantize.input[1:]]:
            if not any(tensor.name in node.input for node in graph.node):
                graph.initializer.remove(tensor)
    old, new = (source, made) if made == OUTPUT else (made, source)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    return new


def _restore_metadata(result: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """What the float graph tells of itself, without the quantizer's own marks."""
    del result.metadata_props[:]
    result.metadata_props.extend(prop for prop in model.metadata_props if prop.key.startswith("trueport."))
    for prop in result.metadata_props:
        if prop.key == "trueport.opset":  # the quantizer may have raised it
            prop.value = next(str(entry.version) for entry in result.opset_import if not entry.domain)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's remarks, which it logs at the root."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
