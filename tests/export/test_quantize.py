"""Q/DQ graphs: every product quantized, the contract kept, the logits in float, whoever runs them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from trueport import models
from trueport.export.activations import observed
from trueport.export.calibration import ranges
from trueport.export.graph import check_contract, onnx_from_original
from trueport.export.layers import computed_in, producers, reached
from trueport.export.original import Original
from trueport.export.quantize import Scheme, prepared, quantized
from trueport.export.written import written_answers
from trueport.runtime.manifest import Normalisation, Preprocessing

SCHEMES: tuple[Scheme, ...] = ("u8s8", "s8s8")
PICTURES = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 1), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)


def original(module: nn.Module | None = None) -> Original:
    torch.manual_seed(0)
    module = module or models.create("lenet", num_classes=10, channels=1)
    preprocessing = Preprocessing(height=32, width=32, mode="L")
    return Original(module, tuple("0123456789"), preprocessing, Normalisation((0.5,), (0.5,)), "lenet")


class Calibrated:
    def __init__(self, module: nn.Module | None = None) -> None:
        self.original = original(module)
        self.graph = onnx_from_original(self.original)
        self.model = prepared(self.graph)
        self.ranges = ranges(observed(self.graph, PICTURES)[-1], "minmax")

    def quantized(self, scheme: Scheme, **options: object) -> onnx.ModelProto:
        return quantized(self.model, self.ranges, scheme, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def lenet() -> Calibrated:
    return Calibrated()


def element_type(model: onnx.ModelProto, name: str) -> int:
    return int(next(tensor.data_type for tensor in model.graph.initializer if tensor.name == name))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_layer_is_quantized_and_the_contract_kept(lenet: Calibrated, scheme: Scheme) -> None:
    made = lenet.quantized(scheme)
    check_contract(made, lenet.original, 20)
    assert reached(made) == {"int8": 5}
    assert {prop.key for prop in made.metadata_props} == {prop.key for prop in lenet.graph.metadata_props}
    assert made.ByteSize() < lenet.graph.ByteSize() / 3
    expected, found = (written_answers(model, PICTURES) for model in (lenet.graph, made))
    assert 0 < np.abs(found - expected).max() < np.abs(expected).max() / 20


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_scheme_is_what_its_name_says(lenet: Calibrated, scheme: Scheme) -> None:
    made = lenet.quantized(scheme)
    behind = producers(made)
    conv = next(node for node in made.graph.node if node.op_type == "Conv")
    activation, weight = (behind[name] for name in conv.input[:2])
    kind = onnx.TensorProto.UINT8 if scheme == "u8s8" else onnx.TensorProto.INT8
    assert element_type(made, activation.input[2]) == kind
    assert element_type(made, weight.input[0]) == onnx.TensorProto.INT8
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert tensors[weight.input[1]].shape == (16,)  # one scale a channel
    assert not tensors[weight.input[2]].any()
    points = [tensors[node.input[2]] for node in made.graph.node if node.op_type == "QuantizeLinear"]
    assert all(not point.any() for point in points) == (scheme == "s8s8")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_integer_kernels_answer_what_is_written(lenet: Calibrated, scheme: Scheme) -> None:
    made = lenet.quantized(scheme)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    expected, reference = written_answers(made, PICTURES), written_answers(lenet.graph, PICTURES)
    (found,) = session.run(["logits"], {"image": PICTURES})
    assert np.abs(found - expected).max() < 2 * np.abs(expected - reference).max()


def test_logits_behind_a_pool_are_not_rounded_to_256_levels() -> None:
    """As SqueezeNet's: the last layer is a convolution, what follows can be done in integers, and is not."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 10, 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(self.conv(image).relu(), 30).flatten(1)

    pooled = Calibrated(Pooled())
    for scheme in SCHEMES:
        made = pooled.quantized(scheme)
        check_contract(made, pooled.original, 20)
        name = "logits"
        while (node := producers(made)[name]).op_type in {"Reshape", "Flatten"}:
            name = node.input[0]
        assert node.op_type == "AveragePool"


def test_every_pair_between_a_pool_and_the_logits_is_taken_away() -> None:
    """However many nodes that only shape stand between the two."""
    helper, kind = onnx.helper, onnx.TensorProto
    weight = np.random.default_rng(1).normal(0, 0.05, (10, 1, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], "cast", to=kind.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weight"], ["maps"], "conv"),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"], "pool"),
        helper.make_node("Reshape", ["pooled", "halves"], ["reshaped"], "reshape"),
        helper.make_node("Flatten", ["reshaped"], ["logits"], "flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("image", kind.UINT8, ["batch", 32, 32, 1])],
        [helper.make_tensor_value_info("logits", kind.FLOAT, ["batch", 10])],
        [
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(np.array([-1, 2, 5]), "halves"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    seen = ranges(observed(model, PICTURES)[-1], "minmax")
    for scheme in SCHEMES:
        made = quantized(prepared(model), seen, scheme)
        onnx.checker.check_model(made, full_check=True)
        behind = producers(made)
        assert [behind[name].op_type for name in ("logits", behind["logits"].input[0])] == ["Flatten", "Reshape"]
        assert behind[behind[behind["logits"].input[0]].input[0]].op_type == "GlobalAveragePool"
        assert written_answers(made, PICTURES).shape == (len(PICTURES), 10)


class Masked(nn.Module):
    """As attention: products of sequences with a bias, and a mask that is a table of parameters, looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(32, 32), nn.Linear(32, 10)
        self.table = nn.Parameter(torch.where(torch.rand(2, 32) < 0.5, -100.0, 0.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = self.inner(image.squeeze(1)) + self.table[torch.tensor([0, 1] * 16)]
        logits: torch.Tensor = self.outer(rows.softmax(2)).mean(1)
        return logits


def test_biases_and_masks_are_added_in_float() -> None:
    masked = Calibrated(Masked())
    for scheme in SCHEMES:
        made = masked.quantized(scheme)
        check_contract(made, masked.original, 20)
        assert reached(made) == {"int8": 2}
        behind = producers(made)
        sums = [node for node in made.graph.node if node.op_type == "Add"]
        assert len(sums) == 3
        around = [node.op_type for one in sums for name in one.input if (node := behind.get(name)) is not None]
        assert not {"QuantizeLinear", "DequantizeLinear"} & set(around)
        expected, found = (written_answers(model, PICTURES) for model in (masked.graph, made))
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


class Dense(nn.Module):
    """As DenseNet: batch norms take concatenations, and no layer before them to be folded into."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 10, 3)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.max_pool2d(self.first(image).relu(), 2)
        maps = self.norm(torch.cat([maps, self.second(maps)], 1)).relu()
        logits: torch.Tensor = self.last(maps).mean((2, 3))
        return logits


def test_what_only_batch_norms_take_is_not_rounded() -> None:
    """And a runner that compiles it for a fixed batch answers: with such a pair OpenVINO 2026.4 ends the process."""
    dense = Calibrated(Dense().eval())
    made = dense.quantized("u8s8")
    check_contract(made, dense.original, 20)
    assert reached(made) == {"int8": 3}
    behind = producers(made)
    [norm] = [node for node in made.graph.node if node.op_type == "BatchNormalization"]
    assert behind[norm.input[0]].op_type == "Concat"
    used = {name for node in made.graph.node for name in node.input}
    assert all(tensor.name in used for tensor in made.graph.initializer)
    expected, found = (written_answers(model, PICTURES) for model in (dense.graph, made))
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_layers_can_be_left_in_float_or_be_the_only_ones(lenet: Calibrated) -> None:
    convolutions = [node.name for node in lenet.model.graph.node if node.op_type == "Conv"]
    for scheme in SCHEMES:
        left = computed_in(lenet.quantized(scheme, in_float=convolutions[:1]))
        assert [name for name, kind in left.items() if kind == "fp32"] == convolutions[:1]
        alone = computed_in(lenet.quantized(scheme, only=convolutions[:1]))
        assert [name for name, kind in alone.items() if kind == "int8"] == convolutions[:1]


def test_reduced_weights_have_seven_bits(lenet: Calibrated) -> None:
    for reduce_range, most in ((False, 127), (True, 64)):
        made = lenet.quantized("u8s8", reduce_range=reduce_range)
        weights = [
            onnx.numpy_helper.to_array(tensor)
            for tensor in made.graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        ]
        assert len(weights) == 5
        assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) == most
