"""What torch's exporter writes, rewritten as backends want it: the same formulas, sooner done, no trace of where.

In place, one step a function; what a step does not recognise it leaves as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from .layers import COMPUTING, SCOPES, attribute, producers
from .original import INPUT, STATISTICS

if TYPE_CHECKING:
    import onnx

RESPONSE_NORM = ("Pow", "Add", "Mul", "Squeeze", "AveragePool", "Pad", "Reshape", "Mul")
"""What the exporter makes of a local response norm's divisor, last first."""


def rewrite(model: onnx.ModelProto) -> None:
    """All of it."""
    _read_shapes_behind_the_cast(model)
    _keep_one_value_a_channel(model)
    _write_response_norms(model)
    _give_weights_their_type(model)
    _forget_where_it_was_made(model)


def _read_shapes_behind_the_cast(model: onnx.ModelProto) -> None:
    """Where the graph asks the input for its batch size, let it ask the cast of it, which has the same shape.

    The exporter writes `Shape` of the input for a flatten or view far behind; TensorRT feeds uint8 to a cast only.
    """
    nodes = model.graph.node
    casts = [node for node in nodes if node.op_type == "Cast" and list(node.input) == [INPUT]]
    if len(casts) != 1:
        return  # then the contract is broken otherwise, and reading it back says how
    for node in nodes:
        if node.op_type == "Shape":
            node.input[:] = [casts[0].output[0] if name == INPUT else name for name in node.input]
    ordered = [casts[0], *(node for node in nodes if node is not casts[0])]  # a Shape may have come first
    del nodes[:]
    nodes.extend(ordered)


def _keep_one_value_a_channel(model: onnx.ModelProto) -> None:
    """Write the normalisation's constants as (C, 1, 1): only eager torch wants them repeated along a row."""
    from onnx.numpy_helper import from_array, to_array

    for tensor in model.graph.initializer:
        if tensor.name in STATISTICS:
            tensor.CopyFrom(from_array(to_array(tensor)[..., :1], tensor.name))
    for value in model.graph.value_info:
        if value.name in STATISTICS:
            value.type.tensor_type.shape.dim[-1].dim_value = 1


class _ResponseNorm(NamedTuple):
    """What divides x: (bias + alpha * mean of the squares of `size` neighbours) ^ beta."""

    divisor: list[onnx.NodeProto]
    """Its nodes, last first."""
    size: int
    alpha: float
    beta: float
    bias: float


def _write_response_norms(model: onnx.ModelProto) -> None:
    """Local response norms as ONNX's own operator, for which backends have a kernel; the exporter writes nine nodes."""
    import onnx

    graph, behind = model.graph, producers(model)
    readers = Counter(_reads(graph))
    gone: set[str] = set()
    for node in graph.node:
        norm = _response_norm(model, node, behind) if node.op_type == "Div" else None
        if norm is None or any(readers[part.output[0]] != 1 for part in norm.divisor):
            continue
        node.op_type = "LRN"
        del node.input[1:]
        for name in ("size", "alpha", "beta", "bias"):
            node.attribute.append(onnx.helper.make_attribute(name, getattr(norm, name)))
        gone.update(part.output[0] for part in norm.divisor)
    if gone:
        _drop(graph.node, lambda node: node.output[0] in gone)
        _drop(graph.value_info, lambda value: value.name in gone)
        read = set(_reads(graph))
        _drop(graph.initializer, lambda tensor: tensor.name not in read)


def _response_norm(
    model: onnx.ModelProto, divide: onnx.NodeProto, behind: dict[str, onnx.NodeProto]
) -> _ResponseNorm | None:
    """The local response norm that ends with this division; None where it is something else."""
    chain: list[onnx.NodeProto] = []
    name = divide.input[1]
    for kind in RESPONSE_NORM:
        node = behind.get(name)
        if node is None or node.op_type != kind:
            return None
        chain.append(node)
        name = node.input[0]
    power, add, scale, squeeze, pool, pad, reshape, square = chain
    size, *others = attribute(pool, "kernel_shape", [])
    half = size // 2
    numbers = [_constant(model, node.input[1]) for node in (scale, power, add)]
    recognised = (
        size % 2 == 1  # of an even window ONNX has the larger half behind, torch before
        and others == [1, 1]
        and set(attribute(pool, "strides", [])) == {1}
        and not any(attribute(pool, "pads", []))
        and _constant(model, pad.input[1]) == [0, 0, half, 0, 0, 0, 0, half, 0, 0]
        and len(pad.input) == 2  # no value: zeros
        and attribute(pad, "mode", b"constant") == b"constant"
        and _constant(model, squeeze.input[1]) == [1]
        and [len(shape := _constant(model, reshape.input[1])), *shape[1:2]] == [5, 1]
        and list(square.input) == [divide.input[0]] * 2
        and all(len(values) == 1 for values in numbers)
    )
    return _ResponseNorm(chain, size, *(values[0] for values in numbers)) if recognised else None


def _give_weights_their_type(model: onnx.ModelProto) -> None:
    """Cast weights and biases of convolutions and matrix products to the type of what they are multiplied with.

    Folding a batch norm into a bfloat16 convolution the exporter computes in float32, and leaves the weights in it.
    """
    import onnx
    from onnx.numpy_helper import from_array, to_array

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    stated = {value.name: value.type.tensor_type for value in model.graph.value_info}
    for node in model.graph.node:
        if node.op_type not in COMPUTING or node.input[0] not in stated:
            continue
        kind = stated[node.input[0]].elem_type
        for name in node.input[1:]:
            if name in weights and weights[name].data_type == onnx.TensorProto.FLOAT != kind:
                values = to_array(weights[name]).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
                weights[name].CopyFrom(from_array(values, name))
                if name in stated:
                    stated[name].elem_type = kind


def _forget_where_it_was_made(model: onnx.ModelProto) -> None:
    """Keep the modules that nodes come from; lines of source with the paths of this machine are nobody's business."""
    for node in model.graph.node:
        _drop(node.metadata_props, lambda entry: entry.key != SCOPES)


def _reads(graph: onnx.GraphProto) -> Iterator[str]:
    """Every tensor that is read, as often as it is: by nodes, by those of their subgraphs, and as an output."""
    for node in graph.node:
        yield from node.input
        for entry in node.attribute:
            for inner in (entry.g, *entry.graphs):
                yield from _reads(inner)
    yield from (value.name for value in graph.output)


def _constant(model: onnx.ModelProto, name: str) -> list[float]:
    """Its values, flat; none where it is no constant."""
    from onnx.numpy_helper import to_array

    found = next((tensor for tensor in model.graph.initializer if tensor.name == name), None)
    return [] if found is None else [float(value) for value in to_array(found).reshape(-1)]


def _drop(field: Any, unwanted: Callable[[Any], bool]) -> None:
    """Of a repeated field, these entries; the others are not copied, as weights are large."""
    for index in reversed(range(len(field))):
        if unwanted(field[index]):
            del field[index]
