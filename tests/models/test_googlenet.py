"""GoogLeNet has the paper's table 1, and its auxiliary classifiers end with training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from trueport import models
from trueport.export.graph import onnx_from_original
from trueport.export.original import Original, OriginalRunner
from trueport.models.googlenet import Inception
from trueport.runtime.manifest import Normalisation, Preprocessing

BOTH = ("googlenet", "googlenet_bn")
TABLE = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""The paper's rows: maps of #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5 and pool proj."""
THOUSANDS = {"3a": 159, "3b": 380, "4b": 437}
"""Weights in thousands of 1,024; in other rows the paper's count is not that of its own maps."""


def meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return models.create(name, num_classes=1000, **arguments)


def weights(module: nn.Module) -> int:
    """Of convolutions and linear layers, without their biases."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear))


@pytest.mark.parametrize("name", BOTH)
def test_inceptions_have_the_papers_weights(name: str) -> None:
    model = meta(name)
    for row, thousands in THOUSANDS.items():
        assert weights(model.get_submodule(f"inception{row}")) / 1024 == pytest.approx(thousands, abs=1)


def test_parameters_are_those_of_the_papers_table() -> None:
    expected = 64 * (3 * 49 + 1) + 64 * (64 + 1) + 192 * (64 * 9 + 1)
    sources = 192
    for one, three_reduce, three, five_reduce, five, pool in TABLE.values():
        expected += (one + three_reduce + five_reduce + pool) * (sources + 1)
        expected += three * (three_reduce * 9 + 1) + five * (five_reduce * 25 + 1)
        sources = one + three + five + pool
    expected += 1000 * (sources + 1)
    assert sum(parameter.numel() for parameter in meta("googlenet", auxiliaries=False).parameters()) == expected
    for auxiliary in (512, 528):
        expected += 128 * (auxiliary + 1) + 1024 * (2048 + 1) + 1000 * (1024 + 1)
    assert sum(parameter.numel() for parameter in meta("googlenet").parameters()) == expected


@pytest.mark.parametrize("name", BOTH)
def test_sizes(name: str, output_shapes: Callable[..., list[tuple[int, ...]]]) -> None:
    with torch.device("meta"):
        image = torch.rand(1, 3, 224, 224)
    model = meta(name).eval()
    assert output_shapes(model.get_submodule("stem.0"), image, nn.Conv2d) == [(64, 112, 112)]
    pools = [shape[1] for shape in output_shapes(model, image, nn.MaxPool2d)]
    assert sorted(set(pools), reverse=True) == [56, 28, 14, 7]
    inceptions = [(256, 28), (480, 28), (512, 14), (512, 14), (512, 14), (528, 14), (832, 14), (832, 7), (1024, 7)]
    assert output_shapes(model, image, Inception) == [(maps, size, size) for maps, size in inceptions]


def test_auxiliary_classifiers_average_as_the_paper_does() -> None:
    torch.manual_seed(0)
    model = models.create("googlenet", num_classes=3).eval()
    auxiliary = model.get_submodule("aux1")
    maps = torch.rand(2, 512, 14, 14)
    windows = torch.stack(
        [maps[:, :, top : top + 5, left : left + 5].mean((2, 3)) for top in (0, 3, 6, 9) for left in (0, 3, 6, 9)], -1
    ).reshape(2, 512, 4, 4)
    with torch.inference_mode():
        reduced = auxiliary.get_submodule("conv")(windows).flatten(1)
        hidden = torch.relu(auxiliary.get_submodule("fc1")(reduced))
        torch.testing.assert_close(auxiliary(maps), auxiliary.get_submodule("fc2")(hidden))


@pytest.mark.parametrize("name", BOTH)
def test_training_answers_three_logits_and_evaluation_one(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name, num_classes=7)
    image = torch.rand(2, 3, 64, 64)
    answers = model(image)
    assert isinstance(answers, tuple)
    assert [answer.shape for answer in answers] == [(2, 7)] * 3
    assert model.eval()(image).shape == (2, 7)


def test_auxiliaries_can_be_left_out() -> None:
    model = models.create("googlenet", num_classes=7, auxiliaries=False)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)
    assert not [name for name in model.state_dict() if name.startswith("aux")]


def test_either_norm_and_not_both() -> None:
    plain, normed = meta("googlenet"), meta("googlenet_bn")
    assert sum(isinstance(layer, nn.LocalResponseNorm) for layer in plain.modules()) == 2
    assert not [layer for layer in plain.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert not [layer for layer in normed.modules() if isinstance(layer, nn.LocalResponseNorm)]
    convolutions = [layer for layer in normed.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == sum(isinstance(layer, nn.BatchNorm2d) for layer in normed.modules())
    assert all(layer.bias is None for layer in convolutions)


@pytest.mark.parametrize("name", BOTH)
def test_minimum_is_the_smallest_it_takes(name: str) -> None:
    model = meta(name)
    smallest = models.spec(name).minimum
    with torch.device("meta"):
        assert model(torch.rand(2, 3, smallest, smallest))[1].shape == (2, 1000)
        with pytest.raises(RuntimeError, match="too small"):
            model(torch.rand(2, 3, smallest - 1, smallest - 1))


@pytest.mark.sweep  # shown to `make test` by test_sweep.py, and by test_describe.py, which counts the graph's layers
def test_exported_graph_agrees_and_holds_nothing_of_the_auxiliaries() -> None:
    torch.manual_seed(0)
    original = Original(
        models.create("googlenet", num_classes=3),
        ("a", "b", "c"),
        Preprocessing(height=48, width=48, mode="RGB"),
        Normalisation((0.5,) * 3, (0.5,) * 3),
        "googlenet",
    )
    graph = onnx_from_original(original)
    # Exporters rename: count what is there, and look for the shape that only auxiliary classifiers have.
    assert not [tensor.name for tensor in graph.graph.initializer if "aux" in tensor.name]
    assert not [tensor.name for tensor in graph.graph.initializer if 2048 in tensor.dims]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    expected = OriginalRunner(original, threads=1).run({"image": images})["logits"]
    (logits,) = session.run(None, {"image": images})
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
