"""An exported graph that computes something else: another attribute, a lost axis, a head too many."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.export.layers import attribute

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault
from .surgery import change_answer, nodes, set_attribute

OLD_OPSET = 11
"""That of tools which are still in use, and the last in which ReduceMean, Squeeze and Softmax meant something else."""


@fault("frozen batch", "the batch axis is frozen to 1", "onnx")
def freeze_the_batch(healthy: Healthy) -> Deployment:
    """An export without dynamic shapes, from an example of one row."""
    model = healthy.graph()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return healthy.with_graph(model)


@fault("mixed rows", "rows of a batch leak into each other", "onnx")
def mix_rows(healthy: Healthy) -> Deployment:
    """A mean or a norm over the wrong axis: right for one row, wrong for two."""
    from onnx import helper

    model = healthy.graph()
    axes = helper.make_node("Constant", [], ["over_the_batch"], value_ints=[0])

    def centred(logits: str) -> list[Any]:
        mean = helper.make_node("ReduceMean", [logits, "over_the_batch"], ["batch_mean"], keepdims=1)
        scaled = helper.make_node("Mul", ["batch_mean", "little"], ["little_mean"])
        little = helper.make_node("Constant", [], ["little"], value_float=0.1)
        return [axes, mean, little, scaled, helper.make_node("Sub", [logits, "little_mean"], ["logits"])]

    change_answer(model, centred)
    return healthy.with_graph(model)


@fault("softmax over batch", "a softmax over the batch", "onnx")
def softmax_over_the_batch(healthy: Healthy) -> Deployment:
    """nn.Softmax(dim=0), tried with a single picture."""
    return _softmax(healthy, 0)


@fault("softmax", "a softmax at the end, where logits are promised", "onnx")
def softmax_over_the_classes(healthy: Healthy) -> Deployment:
    """The application applies its own to it: all scores come out nearly alike, in the right order."""
    return _softmax(healthy, 1)


def _softmax(healthy: Healthy, axis: int) -> Deployment:
    from onnx import helper

    model = healthy.graph()
    change_answer(model, lambda logits: [helper.make_node("Softmax", [logits], ["logits"], axis=axis)])
    return healthy.with_graph(model)


@fault("ceil mode", "pools round sizes the other way", "onnx")
def round_the_other_way(healthy: Healthy) -> Deployment:
    """Caffe rounds up, torch down; converters and older runtimes lose the attribute (SysNoise: 1.24 points)."""
    model = healthy.graph()
    for node in nodes(model, "MaxPool", "AveragePool"):
        set_attribute(node, "ceil_mode", 1 - attribute(node, "ceil_mode", 0))
    return healthy.with_graph(model)


@fault("align corners", "a resize aligns the corners, or no longer does", "onnx")
def align_corners(healthy: Healthy) -> Deployment:
    """align_corners has had both defaults in torch, and each runtime its own reading of the modes."""
    model = healthy.graph()
    for node in nodes(model, "Resize"):
        aligned = attribute(node, "coordinate_transformation_mode", b"half_pixel") == b"align_corners"
        set_attribute(node, "coordinate_transformation_mode", "half_pixel" if aligned else "align_corners")
    return healthy.with_graph(model)


@fault("padding", "padding is moved to the other side", "onnx")
def move_padding(healthy: Healthy) -> Deployment:
    """TensorFlow's SAME pads behind where torch pads all around."""
    model = healthy.graph()
    moved = 0
    for node in nodes(model, "Conv", "MaxPool", "AveragePool"):
        before = attribute(node, "pads", [0, 0, 0, 0])
        if len(before) == 4 and before[0] and before[0] == before[2] and before[1] == before[3]:
            set_attribute(node, "pads", [0, 0, 2 * before[2], 2 * before[3]])
            moved += 1
    if not moved:
        raise DoesNotApplyError("nothing in the graph is padded")
    return healthy.with_graph(model)


@fault("counted padding", "averages count the padding, or no longer do", "onnx")
def count_padding(healthy: Healthy) -> Deployment:
    """count_include_pad is on in torch and off in ONNX, TensorFlow and TensorRT."""
    model = healthy.graph()
    for node in nodes(model, "AveragePool"):
        set_attribute(node, "count_include_pad", 1 - attribute(node, "count_include_pad", 0))
    return healthy.with_graph(model)


@fault("old opset", "the graph is declared to be of an old opset", "onnx")
def lower_the_opset(healthy: Healthy) -> Deployment:
    """An opset lowered for an old tool, by hand: operators mean something else in it, or are not there."""
    model = healthy.graph()
    for entry in model.opset_import:
        if not entry.domain:
            entry.version = OLD_OPSET
    return healthy.with_graph(model)


@fault("converted opset", "the graph is converted to an older opset than the manifest's", "onnx")
def convert_the_opset(healthy: Healthy) -> Deployment:
    """Onnx's own converter, one step down: where it has no way, it is refused; where it has one, nothing may change."""
    from onnx import version_converter

    model = healthy.graph()
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    try:
        converted = version_converter.convert_version(model, opset - 2)
    except Exception as error:
        raise DoesNotApplyError(f"onnx can't convert the graph: {str(error).splitlines()[0][:80]}") from error
    return healthy.with_graph(converted)


@fault("exchanged operator", "an activation is another", "onnx")
def exchange_an_activation(healthy: Healthy) -> Deployment:
    """A converter that knows no GELU, SiLU or leaky slope takes the nearest it knows."""
    model = healthy.graph()
    for kind, other in (("Gelu", "Relu"), ("HardSwish", "Relu"), ("Clip", "Relu"), ("Relu", "LeakyRelu")):
        found = [node for node in model.graph.node if node.op_type == kind]
        for node in found:
            node.op_type = other
            del node.attribute[:]
            del node.input[1:]
        if found:
            return healthy.with_graph(model)
    raise DoesNotApplyError("the graph has no activation that is easily mistaken")


@fault("frozen answer", "the answer to the example was exported as a constant", "onnx")
def freeze_the_answer(healthy: Healthy) -> Deployment:
    """A value that tracing took for a constant: all pictures get a part of the example's answer."""
    from onnx import helper, numpy_helper

    model = healthy.graph()
    runner = healthy.open()
    try:
        zeros = np.zeros((1, *healthy.bundle.manifest.preprocessing.shape), np.uint8)
        answer = runner.run({runner.inputs[0].name: zeros})[runner.outputs[0].name].astype(np.float32)
    finally:
        runner.close()

    def frozen(logits: str) -> list[Any]:
        told = helper.make_node("Constant", [], ["answer"], value=numpy_helper.from_array(answer))
        zero = helper.make_node("Constant", [], ["zero"], value_float=0.0)
        nothing = helper.make_node("Mul", [logits, "zero"], ["nothing"])
        return [told, zero, nothing, helper.make_node("Add", ["nothing", "answer"], ["logits"])]

    change_answer(model, frozen)
    return healthy.with_graph(model)
