"""The fewest layers that an int8 graph has to keep in float so that accuracy passes, by surgery on the graph itself.

A layer goes back to float by reading what goes into its Q/DQ pairs, and the float graph's own weights; the scales of
all others stay as they were calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx

from ..int8 import GROUPS
from ..layers import COMPUTING, layer_name, producers
from .subject import Logits, Rows
from .tensors import graph_answers

Passes = Callable[[onnx.ModelProto], bool]
"""Whether accuracy passes with such a graph in the variant's place."""
ACTIVATING = ("Relu", "Clip")
"""What the quantizer leaves out where the range of the pair behind does the same."""


def int8_layers(graph: onnx.ModelProto) -> list[str]:
    """Names of the nodes that are computed in integers, in the order of execution."""
    behind = producers(graph)
    return [
        node.name
        for node in graph.graph.node
        if node.op_type in COMPUTING
        and all(
            (factor := behind.get(name)) is not None and factor.op_type == "DequantizeLinear" for name in node.input[:2]
        )
    ]


def in_float(graph: onnx.ModelProto, floats: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """The int8 graph with these nodes back in float. floats: the fp32 graph that it was made of."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    behind = producers(made)
    theirs, makers = {node.name: node for node in floats.graph.node}, producers(floats)
    weights = {tensor.name: tensor for tensor in floats.graph.initializer}
    ordered: list[onnx.NodeProto] = []
    restored: dict[str, str] = {}
    for node in list(made.graph.node):
        if node.name in nodes and node.name in theirs:
            for place, name in enumerate(theirs[node.name].input):
                if name in weights:
                    node.input[place] = _weight(made, weights[name])
                elif (source := _before_pair(behind, node.input[place])) is not None:
                    node.input[place] = restored.setdefault(
                        source, _active(source, behind, makers, weights, made, ordered)
                    )
        ordered.append(node)
    del made.graph.node[:]
    made.graph.node.extend(ordered)
    _drop_unread(made)
    return made


def _weight(made: onnx.ModelProto, weight: onnx.TensorProto) -> str:
    """The name under which the float weight is in the graph: its own may be that of a dequantized one."""
    name = f"{weight.name}.float"
    if all(tensor.name != name for tensor in made.graph.initializer):
        copied = made.graph.initializer.add()
        copied.CopyFrom(weight)
        copied.name = name
    return name


def _before_pair(behind: dict[str, onnx.NodeProto], name: str) -> str | None:
    dequantize = behind.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = behind.get(dequantize.input[0])
    return quantize.input[0] if quantize is not None and quantize.op_type == "QuantizeLinear" else None


def _active(
    source: str,
    behind: dict[str, onnx.NodeProto],
    makers: dict[str, onnx.NodeProto],
    weights: dict[str, onnx.TensorProto],
    made: onnx.ModelProto,
    ordered: list[onnx.NodeProto],
) -> str:
    """The tensor in front of the pair, with the activation that the pair's range stood for."""
    maker = makers.get(source)
    if maker is None or maker.op_type not in ACTIVATING or behind[source].op_type == maker.op_type:
        return source
    copied = onnx.NodeProto()
    copied.CopyFrom(maker)
    copied.name, copied.input[0], copied.output[0] = f"{maker.name}.float", source, f"{source}.active"
    if all(node.name != copied.name for node in ordered):
        for place, name in enumerate(copied.input):
            if name in weights:
                copied.input[place] = _weight(made, weights[name])
        ordered.append(copied)
    return str(copied.output[0])


def _drop_unread(model: onnx.ModelProto) -> None:
    """Take away what nothing reads any more."""
    outputs = {value.name for value in model.graph.output}
    while True:
        read = outputs | {name for node in model.graph.node for name in node.input}
        unread = [node for node in model.graph.node if not read & set(node.output)]
        if not unread:
            break
        for node in unread:
            model.graph.node.remove(node)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    there = {name for node in model.graph.node for name in node.output}
    stated = [value for value in model.graph.value_info if value.name in there]
    del model.graph.value_info[:]
    model.graph.value_info.extend(stated)


def ranked(graph: onnx.ModelProto, floats: onnx.ModelProto, images: Rows) -> list[tuple[str, float]]:
    """Integer layers by what each alone costs, the worst first: the root mean square that it moves the logits by.

    Of a large network neighbours are ranked together, and share a cost.
    """
    names = int8_layers(graph)
    expected = graph_answers(floats, images)
    groups = (
        [list(group) for group in np.array_split(np.array(names, object), min(GROUPS, len(names)))] if names else []
    )
    costs: dict[str, float] = {}
    for group in groups:
        alone = in_float(graph, floats, set(names) - set(group))
        costs |= dict.fromkeys(group, _rms(graph_answers(alone, images), expected))
    return sorted(costs.items(), key=lambda item: (-item[1], names.index(item[0])))


def fewest(graph: onnx.ModelProto, floats: onnx.ModelProto, order: Sequence[str], passes: Passes) -> tuple[str, ...]:
    """The smallest set found: grown by rank until accuracy passes, then each layer dropped that it passes without.

    order: integer layers, the costliest first. Empty where it does not pass with all but one of them in float either:
    then int8 is not the cause, or there is nothing left of it.
    """

    def good(nodes: Collection[str]) -> bool:
        return passes(in_float(graph, floats, nodes))

    count = 1
    while count < len(order) and not good(order[:count]):
        count *= 2
    kept = list(order[: min(count, len(order) - 1)])
    if not kept or (count >= len(order) and not good(kept)):
        return ()
    low = count // 2  # so many were not enough
    while len(kept) - low > 1:
        middle = (low + len(kept)) // 2
        if good(order[:middle]):
            kept = list(order[:middle])
        else:
            low = middle
    for name in reversed(kept[:-1] if len(kept) > 1 else []):
        fewer = [other for other in kept if other != name]
        if good(fewer):
            kept = fewer
    return tuple(kept)


def layer_names(graph: onnx.ModelProto, nodes: Collection[str]) -> tuple[str, ...]:
    """The modules of the original that these nodes are, in the order of execution."""
    return tuple(layer_name(node) for node in graph.graph.node if node.name in nodes)


def node_names(graph: onnx.ModelProto, layers: Collection[str]) -> tuple[str, ...]:
    """The nodes of integer layers that have such names."""
    integers = set(int8_layers(graph))
    return tuple(node.name for node in graph.graph.node if node.name in integers and layer_name(node) in layers)


def _rms(found: Logits, expected: Logits) -> float:
    return float(np.sqrt(np.mean((found.astype(np.float64) - expected) ** 2)))
