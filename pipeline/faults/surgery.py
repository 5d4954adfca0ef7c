"""Changing an ONNX graph by hand, as faults do it: weights by name, nodes by kind, the chain that normalises."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .catalogue import DoesNotApplyError

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "image", "logits"
LINEAR = ("Gemm", "MatMul")
SHAPED = ("Conv", "ConvTranspose", *LINEAR)


def nodes(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    """Of these kinds, in the graph's order. Raises DoesNotApplyError where there is none."""
    found = [node for node in model.graph.node if node.op_type in kinds]
    if not found:
        raise DoesNotApplyError(f"the graph has no {' or '.join(kinds)}")
    return found


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Give a node's attribute another value."""
    import onnx

    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def array(tensor: onnx.TensorProto) -> NDArray[Any]:
    """A copy of an initializer's values."""
    from onnx import numpy_helper

    return np.array(numpy_helper.to_array(tensor))


def put(tensor: onnx.TensorProto, values: NDArray[Any]) -> None:
    """Give an initializer other values, in its own type."""
    from onnx import numpy_helper

    own = numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(values.astype(own), tensor.name))


def constant(model: onnx.ModelProto, name: str, values: Any, dtype: Any = np.float32) -> str:
    """Add a constant; its name."""
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), name))
    return name


def redirect(model: onnx.ModelProto, old: str, new: str, but: Iterable[onnx.NodeProto] = ()) -> None:
    """Let every node that takes the tensor `old` take `new`, except some."""
    kept = {node.name for node in but}
    for node in model.graph.node:
        if node.name not in kept:
            node.input[:] = [new if name == old else name for name in node.input]


def insert_behind(model: onnx.ModelProto, node: onnx.NodeProto, *added: onnx.NodeProto) -> None:
    """Put nodes behind one, so that the graph stays in order."""
    place = list(model.graph.node).index(node) + 1
    following = list(model.graph.node)
    following[place:place] = added
    del model.graph.node[:]
    model.graph.node.extend(following)


def change_answer(model: onnx.ModelProto, make: Callable[[str], list[onnx.NodeProto]]) -> None:
    """Rename what was the answer, and append nodes that make the new one out of it."""
    for node in model.graph.node:
        node.output[:] = ["network_answer" if name == OUTPUT else name for name in node.output]
        node.input[:] = ["network_answer" if name == OUTPUT else name for name in node.input]
    model.graph.node.extend(make("network_answer"))


def weighted(model: onnx.ModelProto, *kinds: str) -> list[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """Layers of these kinds with their float weights, in order. Raises DoesNotApplyError where there are none."""
    known = weights(model)
    found = [
        (node, known[node.input[1]])
        for node in model.graph.node
        if node.op_type in (kinds or SHAPED)
        and node.input[1] in known
        and array(known[node.input[1]]).dtype.kind == "f"
    ]
    if not found:
        raise DoesNotApplyError(f"the graph has no weights of {' or '.join(kinds or SHAPED)} in float")
    return found


class Normalising(NamedTuple):
    """The nodes that every graph of trueport's begins with: pixels to normalised maps."""

    cast: onnx.NodeProto
    """uint8 to float, 0 to 255."""
    transpose: onnx.NodeProto
    """(N, H, W, C) to (N, C, H, W)."""
    scale: onnx.NodeProto
    """Division by 255."""
    centre: onnx.NodeProto
    """The mean's subtraction."""
    divide: onnx.NodeProto
    """Division by the standard deviation."""


def normalising(model: onnx.ModelProto) -> Normalising:
    """Find them. Raises DoesNotApplyError where the graph begins in another way."""
    chain, name = [], INPUT
    for kind in ("Cast", "Transpose", "Div", "Sub", "Div"):
        taking = [node for node in model.graph.node if node.op_type == kind and node.input[0] == name]
        if len(taking) != 1:
            raise DoesNotApplyError("the graph does not begin with cast, transpose, scale, mean and deviation")
        chain.append(taking[0])
        name = taking[0].output[0]
    return Normalising(*chain)
