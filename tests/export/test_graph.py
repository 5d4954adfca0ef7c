"""The exported graph keeps its contract, and what would break it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from trueport import models
from trueport.export import graph as graph_module
from trueport.export.graph import check_contract, onnx_from_original
from trueport.export.original import Original, OriginalRunner, served_module
from trueport.runtime.errors import ExportError, UsageError
from trueport.runtime.manifest import Normalisation, Preprocessing


def original(module: nn.Module | None = None, channels: int = 1, size: int = 32) -> Original:
    torch.manual_seed(0)
    return Original(
        module or models.create("lenet", num_classes=10, channels=channels),
        tuple("0123456789"),
        Preprocessing(height=size, width=size, mode="L" if channels == 1 else "RGB"),
        Normalisation((0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.4)[:channels]),
        "lenet",
    )


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return onnx_from_original(original(channels=3))


def test_input_is_uint8_nhwc_with_a_symbolic_batch_into_a_cast(graph: onnx.ModelProto) -> None:
    (image,), (logits,) = graph.graph.input, graph.graph.output
    assert image.name == "image"
    assert logits.name == "logits"
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [dim.dim_param or dim.dim_value for dim in image.type.tensor_type.shape.dim] == ["batch", 32, 32, 3]
    assert [dim.dim_param or dim.dim_value for dim in logits.type.tensor_type.shape.dim] == ["batch", 10]
    assert [node.op_type for node in graph.graph.node if "image" in node.input] == ["Cast"]


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_it_runs_any_batch_and_agrees(graph: onnx.ModelProto, rows: int) -> None:
    images = np.random.default_rng(rows).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = OriginalRunner(original(channels=3)).run({"image": images})["logits"]
    (logits,) = session.run(None, {"image": images})
    assert np.abs(logits - expected).max() < 1e-6


def test_normalisation_is_in_the_graph() -> None:
    """Against the textbook formula, channel by channel, on a network that passes its input through."""
    passed = original(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels=3)
    image = np.zeros((2, 32, 32, 3), np.uint8)
    image[0], image[1] = (255, 128, 0), (0, 51, 255)
    logits = served_module(passed)(torch.from_numpy(image)).numpy()
    for row, (red, green, blue) in enumerate([(255, 128, 0), (0, 51, 255)]):
        expected = [(red / 255 - 0.4) / 0.2, (green / 255 - 0.5) / 0.3, (blue / 255 - 0.6) / 0.4]
        assert logits[row] == pytest.approx(expected, abs=1e-6)


def test_a_graph_that_is_too_large_is_refused_before_anything_wants_it_in_one_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("This protobuf of onnx model is too large (>2GiB)")

    monkeypatch.setattr("onnx.checker.check_model", fail)
    monkeypatch.setattr(graph_module, "TOO_LARGE", 100_000)  # LeNet's weights are larger
    with pytest.raises(
        UsageError, match=r"the graph has \d{3},\d{3} bytes; graphs of 2 GiB and more are not supported"
    ):
        onnx_from_original(original())


def test_labels_and_preprocessing_travel_with_the_graph(graph: onnx.ModelProto, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(graph.SerializeToString())
    metadata = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]).get_modelmeta()
    told = metadata.custom_metadata_map
    assert json.loads(told["trueport.labels"]) == list("0123456789")
    assert json.loads(told["trueport.preprocessing"])["height"] == 32
    assert json.loads(told["trueport.normalisation"])["std"] == [0.2, 0.3, 0.4]
    assert metadata.producer_name == "trueport"


class FixedBatch(nn.Module):
    """What a careless forward does to the batch axis."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.reshape(2, -1)[:, :10]


class Undefined(nn.Module):
    """Control flow that depends on the data, which no graph can hold."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1)[:, :10] if image.sum() > 0 else image.flatten(1)[:, 10:20]


@pytest.mark.parametrize("module", [FixedBatch(), Undefined()])
def test_what_can_not_be_exported_is_one_sentence(module: nn.Module) -> None:
    with pytest.raises(ExportError) as caught:
        onnx_from_original(original(module))
    assert "\n" not in str(caught.value)


def tampered(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def test_a_frozen_batch_is_found_in_the_graph(graph: onnx.ModelProto) -> None:
    frozen = tampered(graph)
    for value in (frozen.graph.input[0], frozen.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match="frozen to 2"):
        check_contract(frozen, original(channels=3), 20)


class AsksForItsBatch(nn.Module):
    """As vision transformers do for their class token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.token.expand(image.shape[0], -1) + image.flatten(1)[:, :10]


def test_a_forward_that_asks_for_its_batch_keeps_the_contract() -> None:
    asking = original(AsksForItsBatch())
    graph = onnx_from_original(asking)
    assert [node.op_type for node in graph.graph.node if "image" in node.input] == ["Cast"]
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), dtype=np.uint8)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    assert np.abs(logits - OriginalRunner(asking).run({"image": images})["logits"]).max() < 1e-6


def test_another_opset_is_found_in_the_graph(graph: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="expected opset 21, the exporter wrote 20"):
        check_contract(graph, original(channels=3), 21)


def test_another_shape_is_found_in_the_graph(graph: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="expected 'image' as uint8"):
        check_contract(graph, original(channels=1), 20)


def test_normalisation_must_fit_the_channels() -> None:
    with pytest.raises(ValueError, match="1 channels, the pictures have 3"):
        Original(nn.Identity(), ("a",), Preprocessing(height=8, width=8), Normalisation((0.5,), (0.5,)), "x")
