"""AlexNet has the sizes of the course's table and the paper's normalisation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trueport import models
from trueport.models.layers import response_norm

MAPS = {"alexnet": (96, 256, 384, 384, 256), "alexnet_half": (48, 128, 192, 192, 128)}
SIZES = (55, 27, 27, 13, 13, 13, 13, 6)
"""Of five convolutions and three pools, in the order they run."""


@pytest.mark.parametrize("name", MAPS)
def test_sizes(name: str, output_shapes: Callable[..., list[tuple[int, ...]]]) -> None:
    with torch.device("meta"):
        model = models.create(name, num_classes=5)
        shapes = output_shapes(model, torch.rand(1, 3, 224, 224), nn.Conv2d, nn.MaxPool2d, nn.Linear)
    first, second, third, fourth, fifth = MAPS[name]
    maps = (first, first, second, second, third, fourth, fifth, fifth)
    assert shapes[:8] == [(count, size, size) for count, size in zip(maps, SIZES, strict=True)]
    assert shapes[8:] == [(2048,), (2048,), (5,)]


@pytest.mark.parametrize("name", MAPS)
def test_parameters(name: str) -> None:
    with torch.device("meta"):
        model = models.create(name, num_classes=1000)
    expected, sources = 0, 3
    for maps, kernel in zip(MAPS[name], (11, 5, 3, 3, 3), strict=True):
        expected += maps * (sources * kernel**2 + 1)
        sources = maps
    for inputs, units in ((sources * 36, 2048), (2048, 2048), (2048, 1000)):
        expected += units * (inputs + 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_two_rows_of_padding_are_after_the_picture_and_one_before() -> None:
    model = models.create("alexnet_half", num_classes=2, width=8)
    padded = model.get_submodule("features.0")(torch.ones(1, 3, 224, 224))
    assert padded.shape[-2:] == (227, 227)
    assert padded[0, 0, :, 100].nonzero().flatten()[[0, -1]].tolist() == [1, 224]
    assert padded[0, 0, 100].nonzero().flatten()[[0, -1]].tolist() == [1, 224]


def test_response_norm_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    maps = torch.rand(2, 9, 3, 4, dtype=torch.float64) * 40
    expected = torch.empty_like(maps)
    for index in range(9):
        lowest, highest = max(0, index - 5 // 2), min(9 - 1, index + 5 // 2)
        squares = sum(maps[:, other] ** 2 for other in range(lowest, highest + 1))
        expected[:, index] = maps[:, index] / (2 + 1e-4 * squares) ** 0.75
    torch.testing.assert_close(response_norm()(maps), expected)


def test_dropout_is_on_the_first_two_linear_layers_and_in_training_alone() -> None:
    torch.manual_seed(0)
    model = models.create("alexnet_half", num_classes=4, width=64)
    kinds = [type(layer).__name__ for layer in model.get_submodule("classifier").children()]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    image = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert not torch.equal(model(image), model(image))
        model.eval()
        assert torch.equal(model(image), model(image))
