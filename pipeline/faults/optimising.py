"""The graph is right as it is written, and what a runtime's optimiser makes of it is not."""

from __future__ import annotations

from trueport.runtime.runners import DEFAULT

from ..deployment import Deployment
from .catalogue import Healthy, fault
from .surgery import array, constant, insert_behind, put, redirect, weighted

FAR = 2.0**-74
"""Within what float32 holds; its square is not."""


@fault("folded scale", "a scale that is folded into weights takes them below float32", "optimised", runner=DEFAULT)
def fold_a_scale_too_small(healthy: Healthy) -> Deployment:
    """A scale behind a convolution, as of a batch norm or a logit scale: alone each number is well within float32.

    All scales are powers of two and cancel out, so that the graph as it is written answers to the bit what it did;
    folded into the weights they leave them among the denormals, with hardly a bit.
    """
    from onnx import helper

    model = healthy.graph()
    node, tensor = weighted(model, "Conv")[0]
    put(tensor, array(tensor) * FAR)
    near, answer = constant(model, "far_back", 1 / FAR), node.output[0]
    taken, node.input[0] = node.input[0], "raised"
    redirect(model, answer, "as_it_was")
    insert_behind(
        model,
        node,
        helper.make_node("Mul", [answer, constant(model, "far", FAR)], ["lowered"]),
        helper.make_node("Mul", ["lowered", near], ["as_it_was"]),
    )
    before = list(model.graph.node).index(node)
    model.graph.node.insert(before, helper.make_node("Mul", [taken, near], ["raised"]))
    return healthy.with_graph(model)
