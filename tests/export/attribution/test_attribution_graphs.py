"""Faults planted into the fp32 graph: each is traced to the stage, the layer and what was done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from trueport.export.attribution.experiments import Case
from trueport.export.attribution.graph_diff import difference
from trueport.export.attribution.graphs import Look, _by_overflow
from trueport.export.graph import onnx_from_original
from trueport.export.original import Original
from trueport.runtime.bundle import Bundle
from trueport.runtime.explanation import Departure

Model = onnx.ModelProto
Change = Callable[[Model], None]
CONV = "network.conv2.weight"
HEAD = ("network.fc.weight", "network.fc.bias")


def weights(names: tuple[str, ...], change: Callable[[Any], Any]) -> Change:
    """Other values in some initializers."""

    def changed(model: Model) -> None:
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for name in names:
            values = change(numpy_helper.to_array(tensors[name]).copy())
            tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    return changed


def flipped(values: Any) -> Any:
    values.reshape(-1).view(np.uint32)[5] ^= 1 << 22
    return values


def node_of(model: Model, kind: str, place: int = 0) -> onnx.NodeProto:
    found: onnx.NodeProto = [node for node in model.graph.node if node.op_type == kind][place]
    return found


def moved_padding(model: Model) -> None:
    node = node_of(model, "Conv")
    next(entry for entry in node.attribute if entry.name == "pads").ints[:] = [2, 2, 0, 0]


def without_bias(model: Model) -> None:
    del node_of(model, "Conv", 1).input[2:]


def behind(*nodes: tuple[str, dict[str, Any]]) -> Change:
    """Nodes between the last one and the logits."""

    def changed(model: Model) -> None:
        model.graph.node[-1].output[0] = "raw"
        for kind, attributes in nodes:
            model.graph.node.append(helper.make_node(kind, ["raw"], ["logits"], f"planted_{kind}", **attributes))

    return changed


def mixed_rows(model: Model) -> None:
    model.graph.node[-1].output[0] = "raw"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node.append(helper.make_node("ReduceMean", ["raw", "first"], ["mean_row"], "planted_mean"))
    model.graph.node.append(helper.make_node("Sub", ["raw", "mean_row"], ["logits"], "planted_sub"))


def random_noise(model: Model) -> None:
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.append(helper.make_node("RandomNormalLike", ["raw"], ["noise"], "planted_noise"))
    model.graph.node.append(helper.make_node("Add", ["raw", "noise"], ["logits"], "planted_add"))


def swapped_channels(model: Model) -> None:
    division = node_of(model, "Div")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "bgr"))
    place = list(model.graph.node).index(division)
    model.graph.node.insert(
        place, helper.make_node("Gather", [division.input[0], "bgr"], ["swapped"], "planted", axis=1)
    )
    model.graph.node[place + 1].input[0] = "swapped"


def reshaped(model: Model) -> None:
    node = node_of(model, "Transpose")
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 3, 16, 16]), "planes"))
    node.op_type = "Reshape"
    del node.attribute[:]
    node.input.append("planes")


def not_scaled(model: Model) -> None:
    weights((node_of(model, "Div").input[1],), lambda values: values * 0 + 1)(model)


def frozen_batch(model: Model) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 1


def second_output(model: Model) -> None:
    model.graph.output.append(helper.make_tensor_value_info("relu", onnx.TensorProto.FLOAT, None))


def not_a_number(values: Any) -> Any:
    values[0, 0, 0, 0] = np.nan
    return values


FAULTS: dict[str, tuple[Change, str, str]] = {
    "one bit": (weights((CONV,), flipped), "conv2", "bit 22 of network.conv2.weight[0, 0, 1, 2]"),
    "bias lost": (weights(("network.conv2.bias",), lambda values: values * 0), "conv2", "the bias of conv2 is lost"),
    "bias gone": (without_bias, "conv2", "the bias of conv2 is lost"),
    "other head": (weights(HEAD, lambda values: values + 0.1), "fc", "the last layer, fc, has other weights"),
    "permuted": (weights(HEAD, lambda values: values[[1, 0, 2, 3, 4]]), "fc", "place 0 holds class 1, 1 holds class 0"),
    "checkpoint": (
        weights(("network.conv1.weight", CONV, *HEAD), lambda values: values + np.float32(0.01) * np.roll(values, 1)),
        "conv1",
        "3 of 3 layers have other weights",
    ),
    "padding": (moved_padding, "conv1", "pads is [2, 2, 0, 0], expected [1, 1, 1, 1]"),
    "softmax": (behind(("Softmax", {"axis": 0})), "", "softmax over the batch"),
    "rows mixed": (mixed_rows, "", "the rows of a batch are mixed"),
    "random": (random_noise, "", "otherwise each time, as with dropout left on: RandomNormalLike"),
    "channels": (swapped_channels, "", "BGR for RGB"),
    "layout": (reshaped, "", "NHWC order are read as NCHW"),
    "not scaled": (not_scaled, "div", "the division by 255 is missing"),
    "frozen": (frozen_batch, "", "the batch axis of image is frozen to 1"),
    "two outputs": (second_output, "", "2 outputs (logits, relu)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_graph_is_traced(name: str, own_speck: Path, surgery: Any, why: Any) -> None:
    change, layer, cause = FAULTS[name]
    surgery(own_speck, change)
    found = why(own_speck)
    assert found.stage == "onnx"
    assert cause in found.cause
    assert found.confirmed
    assert found.remedy
    if layer:
        assert found.first[0].layer == layer
        assert found.first[0].max_abs is not None
        assert found.first[0].max_abs > found.first[0].allowed


def test_a_healthy_stage_agrees_and_one_that_is_not_there_is_not_run(own_speck: Path, surgery: Any, why: Any) -> None:
    surgery(own_speck, FAULTS["one bit"][0])
    stages = {result.stage: result.status for result in why(own_speck).stages}
    assert stages == {
        "original": "agrees", "export": "agrees", "onnx": "departs", "optimised": "agrees", "precision": "not run",
        "runner": "agrees",
    }  # fmt: skip


def test_numbers_that_are_none_are_told_with_their_tensor(own_speck: Path, surgery: Any, why: Any) -> None:
    surgery(own_speck, weights(("network.conv1.weight",), not_a_number))
    found = why(own_speck)
    assert found.stage == "onnx"
    assert "one value is another: network.conv1.weight[0, 0, 0, 0] is nan" in found.cause
    assert found.first[0].layer == "conv1"
    assert found.first[0].max_abs is None


def test_an_overflow_of_float16_is_told_with_the_layer(speck_path: Path) -> None:
    """Infinite where all before it is finite, though a kernel behind may have made numbers of it again."""
    fp16 = Bundle.open(speck_path).variant("fp16")
    departure = Departure(layer="conv1", tensor="getitem", max_abs=None, allowed=0.1, detail="-")
    logits = np.zeros((2, 5), np.float32)
    case = Case(np.zeros((2, 16, 16, 3), np.uint8), logits + 1, logits, 0.1)
    found = _by_overflow(fp16, case, Look((departure,), infinite=True, reach=1e5))
    assert found is not None
    assert found.confirmed
    assert found.cause == (
        "float16 overflows, first in conv1, where what goes in is finite: it ends at 65,504; in float32 it reaches "
        "1e+05 there"
    )
    assert _by_overflow(fp16, case, Look()) is None


def test_without_the_original_the_graph_is_held_against_the_recording(own_speck: Path, surgery: Any, why: Any) -> None:
    surgery(own_speck, FAULTS["softmax"][0])
    found = why(own_speck, original=None, no_original="no torch here", links={}, _fresh={})
    stages = {result.stage: result for result in found.stages}
    assert stages["original"].status == stages["export"].status == "not run"
    assert stages["original"].detail == "no torch here"
    assert found.stage == "onnx"
    assert "softmax over the batch" in found.cause
    assert found.confirmed


def test_without_onnx_the_chain_is_run_and_no_tensor_is_told(own_speck: Path, surgery: Any, why: Any) -> None:
    surgery(own_speck, FAULTS["channels"][0])
    found = why(own_speck, no_onnx="looking inside a graph needs onnx", original=None, no_original="no torch", links={})
    assert (found.stage, found.first) == ("onnx", ())


def each_norm(module: nn.Module, eps: float = 1e-5, track: bool = True, **buffers: float) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps, norm.track_running_stats = eps, track
            for name, value in buffers.items():
                getattr(norm, name).fill_(value)
            if not track:
                norm.running_mean = norm.running_var = None


def auxiliary(module: Any) -> None:
    def forward(image: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = module.aux(torch.relu(module.bn1(module.conv1(image))).mean((2, 3)))
        return answers

    module.forward = forward


TRAINED_OTHERWISE: dict[str, tuple[Callable[[Any], None], str]] = {
    "epsilon": (lambda module: each_norm(module, eps=1e-2), "epsilon 0.01, the original has 1e-05"),
    "statistics": (lambda module: each_norm(module, running_mean=0.0, running_var=1.0), "without their running stat"),
    "training": (lambda module: each_norm(module, track=False), "batch norms are in training mode"),
    "auxiliary": (auxiliary, "auxiliary head 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED_OTHERWISE)
def test_a_module_that_was_exported_otherwise_is_recognised(
    name: str, own_speck: Path, speck_module: Callable[[], Original], surgery: Any, why: Any
) -> None:
    change, cause = TRAINED_OTHERWISE[name]
    original = speck_module()
    change(original.module)
    other = onnx_from_original(original)
    surgery(own_speck, lambda model: model.CopyFrom(other))
    found = why(own_speck, gates=("parity", "batch invariance"))
    assert found.stage == "onnx"
    assert cause in found.cause
    assert found.confirmed


def test_an_opset_that_was_changed_is_told_where_the_numbers_agree(own_speck: Path, surgery: Any, why: Any) -> None:
    def lowered(model: Model) -> None:
        model.opset_import[0].version = 19

    surgery(own_speck, lowered)
    found = why(own_speck, gates=("contract",))
    assert found.stage == "onnx"
    assert "written in opset 20 and now says 19" in found.cause


def test_graphs_of_other_names_are_not_compared(speck_path: Path) -> None:
    model = onnx.load(speck_path / "model.fp32.onnx")
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for index, node in enumerate(other.graph.node):
        node.name = f"other_{index}"
    same = difference(model, model)
    assert same is not None
    assert not same
    assert difference(other, model) is None
