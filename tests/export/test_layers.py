"""What a graph reached is read back from its nodes, and layers carry the names that they have in the original."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from trueport.export.graph import onnx_from_original
from trueport.export.layers import check_reached, layer_name, reached
from trueport.export.original import Original
from trueport.runtime.errors import ExportError
from trueport.runtime.manifest import Normalisation, Preprocessing


class Small(nn.Module):
    """A convolution with a batch norm to be folded into it, and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.answer = nn.Linear(4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.answer(self.stem(image).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def small() -> Original:
    torch.manual_seed(0)
    preprocessing = Preprocessing(height=8, width=8, mode="L")
    original = Original(Small(), ("a", "b", "c"), preprocessing, Normalisation((0.5,), (0.5,)), "small")
    for norm in original.module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    return original


@pytest.fixture(scope="module")
def graph(small: Original) -> onnx.ModelProto:
    return onnx_from_original(small)


@pytest.mark.parametrize(("dtype", "precision"), [(None, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_each_precision_is_reached_by_every_layer(small: Original, dtype: torch.dtype | None, precision: str) -> None:
    made = onnx_from_original(small, dtype=dtype)
    assert reached(made) == {precision: 2}
    assert check_reached(made, precision) == {precision: 2}  # type: ignore[arg-type]
    assert made.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_bfloat16_is_written_in_an_opset_that_has_it(small: Original) -> None:
    made = onnx_from_original(small, 18, torch.bfloat16)
    assert [entry.version for entry in made.opset_import if not entry.domain] == [22]


def test_layers_are_called_as_in_the_original(graph: onnx.ModelProto) -> None:
    """The convolution too, which a batch norm was folded into."""
    names = {node.op_type: layer_name(node) for node in graph.graph.node}
    assert names["Conv"] == "stem.0"
    assert names["Gemm"] == "answer"
    assert names["Relu"].startswith("stem.2")


def test_a_node_of_another_writer_goes_by_its_own_name() -> None:
    assert layer_name(helper.make_node("Relu", ["x"], ["y"], name="mine")) == "mine"


def test_an_fp16_graph_with_a_float_layer_is_an_error(small: Original) -> None:
    mixed = onnx_from_original(small, dtype=torch.float16)
    conv = next(node for node in mixed.graph.node if node.op_type == "Conv")
    position = list(mixed.graph.node).index(conv)
    for name in conv.input[1:]:
        weight = next(tensor for tensor in mixed.graph.initializer if tensor.name == name)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), name))
    mixed.graph.node.insert(position, helper.make_node("Cast", [conv.input[0]], ["wide"], to=TensorProto.FLOAT))
    made = conv.output[0]
    conv = mixed.graph.node[position + 1]
    conv.input[0], conv.output[0] = "wide", "wide_conv"
    mixed.graph.node.insert(position + 2, helper.make_node("Cast", ["wide_conv"], [made], to=TensorProto.FLOAT16))
    del mixed.graph.value_info[:]
    onnx.checker.check_model(mixed, full_check=True)
    assert reached(mixed) == {"fp16": 1, "fp32": 1}
    with pytest.raises(ExportError, match=r"1 of its 2 layers do not: stem\.0 computes in fp32"):
        check_reached(mixed, "fp16")


def test_an_int8_graph_without_an_integer_layer_is_an_error(graph: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="none of the graph's 2 layers could be brought to int8"):
        check_reached(graph, "int8")
