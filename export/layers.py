"""The layers of a graph that compute: their names in the original, and the type that each of them computes in.

What a graph was asked to be is no proof of what it is, so that is read back here from the nodes themselves.
"""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING, Any

from trueport.runtime.errors import ExportError
from trueport.runtime.manifest import Precision

if TYPE_CHECKING:
    import onnx

COMPUTING = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators whose products are nearly all of a network's work."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata by which torch's exporter tells the modules that a node comes from, outermost first."""


def layer_name(node: onnx.NodeProto) -> str:
    """The module of the original that the node comes from, and the operation where it stands in no named module."""
    if node.op_type in COMPUTING and node.input[1].startswith("network.") and "." in node.input[1][8:]:
        return str(node.input[1][8:].rpartition(".")[0])  # where a batch norm was folded in, the scopes are of that
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    try:
        *modules, operation = (str(scope) for scope in ast.literal_eval(scopes))
    except (ValueError, SyntaxError):  # written by somebody else
        return str(node.name)
    innermost = modules[-1].removeprefix("network").removeprefix(".") if modules else ""
    if node.op_type in COMPUTING and innermost:
        return innermost
    return f"{innermost}.{operation}" if innermost else operation


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The node behind each tensor that a node makes."""
    return {output: node for node in model.graph.node for output in node.output}


def attribute(node: onnx.NodeProto, name: str, otherwise: Any) -> Any:
    """The value of a node's attribute."""
    import onnx

    return next((onnx.helper.get_attribute_value(one) for one in node.attribute if one.name == name), otherwise)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX's element type of each tensor, as far as the graph states it or it can be inferred."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def computed_in(model: onnx.ModelProto) -> dict[str, str]:
    """By node name, the type that each computing layer works in: fp32, fp16, bf16, int8, or ONNX's number of another.

    int8 is one whose two factors come out of DequantizeLinear: that pair is what every backend turns into integers.
    """
    import onnx

    told: dict[int, str] = {
        onnx.TensorProto.FLOAT: "fp32",
        onnx.TensorProto.FLOAT16: "fp16",
        onnx.TensorProto.BFLOAT16: "bf16",
    }
    behind, types = producers(model), element_types(model)
    found = {}
    for node in model.graph.node:
        if node.op_type not in COMPUTING:
            continue
        factors = [behind.get(name) for name in node.input[:2]]
        if all(factor is not None and factor.op_type == "DequantizeLinear" for factor in factors):
            found[node.name] = "int8"
        else:
            kind = types.get(node.output[0], onnx.TensorProto.UNDEFINED)
            found[node.name] = told.get(kind) or f"ONNX's type {kind}"
    return found


def reached(model: onnx.ModelProto) -> dict[str, int]:
    """How many computing layers work in each type."""
    return dict(sorted(Counter(computed_in(model).values()).items()))


def check_reached(model: onnx.ModelProto, precision: Precision) -> dict[str, int]:
    """What the graph reached. Raises ExportError, naming a layer, where that is not the precision asked for.

    An int8 graph may keep layers in float32, which its variant names, but not all of them.
    """
    layers = computed_in(model)
    allowed = {precision, "fp32"} if precision == "int8" else {precision}
    names = {node.name: layer_name(node) for node in model.graph.node}
    if other := {node: kind for node, kind in layers.items() if kind not in allowed}:
        node, kind = next(iter(other.items()))
        raise ExportError(
            f"expected a graph that computes in {precision}, {len(other)} of its {len(layers)} layers do not: "
            f"{names[node]} computes in {kind}; cast it in the model's forward to its input's type, or export without "
            f"{precision}"
        )
    if precision == "int8" and "int8" not in layers.values():
        raise ExportError(f"none of the graph's {len(layers)} layers could be brought to int8: export without it")
    return reached(model)
