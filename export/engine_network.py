"""From an ONNX graph to TensorRT's strongly typed network; its types are read back, refusals made readable.

A strongly typed network computes in the types that the graph has. TensorRT 11 knows nothing else, 10 is asked for it by
a flag, and so one path serves both and RTX.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from trueport.runtime.errors import ExportError
from trueport.runtime.flavours import Flavour

COMPUTING = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
"""Layer types that sum up products; ONNX's Gemm becomes a matrix product."""
PASSING = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE", "SLICE", "CONCATENATION", "POOLING")
"""Layer types that int8 passes through unchanged."""
PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8"}
WAY_OUT = "export with another opset (--set export.opset=…), or run this variant on onnxruntime:cuda"


def network_from_onnx(trt: Any, kind: Flavour, builder: Any, log: Any, graph: bytes, name: str) -> tuple[Any, Any]:
    """The network, and the parser, which must live as long as it: the network's weights are in the parser's memory.

    name: what messages call the graph. Raises ExportError for what the parser refuses, with node and operator.
    """
    network = builder.create_network(creation_flags(trt, kind))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise ExportError(refusal(kind, errors, name))
    return network, parser


def creation_flags(trt: Any, kind: Flavour) -> int:
    """Strong typing where it is a choice: in TensorRT 10."""
    if kind.name == "tensorrt" and trt.__version__.startswith("10."):
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


def refusal(kind: Flavour, errors: list[Any], name: str) -> str:
    """What the parser says, in a sentence: node and operator of each refusal, and the way out."""
    told = list(dict.fromkeys(_told(error) for error in errors)) or ["it gives no reason"]
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return f"{kind.title} refuses {name}: {told[0]}{more}; {WAY_OUT}"


def _told(error: Any) -> str:
    words = error.code().name.lower().replace("_", " ")
    desc = " ".join(error.desc().split())
    quoted = re.search(r'"([^"]+)"', desc)  # of an assertion, what is meant for people
    reason = quoted[1] if quoted else desc if " " in desc else ""  # a bare `false` is an assertion's condition
    said = f"{words}: {reason}" if reason else words
    if not error.node_operator():
        return said
    return f"node {error.node_name() or error.node()!r}, operator {error.node_operator()} ({said.rstrip('.')})"


def layers_from_network(network: Any) -> dict[str, int]:
    """Layers that compute, by the type they compute in: int8 where both factors come out of a Dequantize."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {output.name: layer for layer in layers for output in _outputs(layer)}
    return dict(Counter(_precision(layer, makers) for layer in layers if layer.type.name in COMPUTING))


def _precision(layer: Any, makers: dict[str, Any]) -> str:
    operands = [tensor for tensor in _inputs(layer)[:2] if tensor is not None]
    # Weights that are constants as they are make no tensor: such a layer is in float, though its input may be shared
    # with one in int8 and come out of that one's Dequantize.
    if len(operands) == 2 and all(_dequantized(tensor, makers) for tensor in operands):
        return "int8"
    dtype: str = operands[0].dtype.name if operands else layer.get_output(0).dtype.name
    return PRECISIONS.get(dtype, dtype.lower())


def _dequantized(tensor: Any, makers: dict[str, Any]) -> bool:
    maker = makers.get(tensor.name)
    while maker is not None and maker.type.name in PASSING:
        above = maker.get_input(0)
        maker = None if above is None else makers.get(above.name)
    return maker is not None and maker.type.name == "DEQUANTIZE"


def _inputs(layer: Any) -> list[Any]:
    return [layer.get_input(index) for index in range(layer.num_inputs)]


def _outputs(layer: Any) -> Iterator[Any]:
    for index in range(layer.num_outputs):
        yield layer.get_output(index)
