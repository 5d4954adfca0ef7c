"""The small ResNets have the paper's depths, parameters and parameter-free shortcuts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trueport import models
from trueport.models.resnet import BasicBlock
from trueport.models.resnet_cifar import PaddedIdentity

MILLIONS = {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7", 1202: "19.4"}
"""The paper's table 6."""


@pytest.mark.parametrize("layers", MILLIONS)
def test_layers_and_parameters_are_the_papers(layers: int) -> None:
    with torch.device("meta"):
        model = models.create(f"resnet{layers}", num_classes=10)
    paper = MILLIONS[layers]
    counted = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{counted:.{len(paper.partition('.')[2])}f}" == paper
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules()) == layers


def test_sizes(output_shapes: Callable[..., list[tuple[int, ...]]]) -> None:
    model = models.create("resnet20", num_classes=10).eval()
    shapes = output_shapes(model, torch.rand(1, 3, 32, 32), BasicBlock)
    assert shapes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


@pytest.mark.parametrize("size", [8, 7])
def test_padded_shortcut_takes_every_other_pixel_and_adds_maps_of_zeros(size: int) -> None:
    maps = torch.rand(2, 3, size, size)
    passed = PaddedIdentity(3, 6, 2)(maps)
    assert passed.shape == (2, 6, (size + 1) // 2, (size + 1) // 2)
    for y in range(passed.shape[2]):
        for x in range(passed.shape[3]):
            assert torch.equal(passed[:, :3, y, x], maps[:, :, 2 * y, 2 * x])
    assert not passed[:, 3:].any()


def test_projection_has_parameters_where_the_shape_changes_and_nowhere_else() -> None:
    padded, projected = (
        models.create("resnet32", num_classes=10, shortcut=shortcut) for shortcut in ("pad", "projection")
    )
    added = set(projected.state_dict()) - set(padded.state_dict())
    assert {name.rpartition("downsample")[0] for name in added} == {"layer2.0.", "layer3.0."}
    difference = sum(p.numel() for p in projected.parameters()) - sum(p.numel() for p in padded.parameters())
    assert difference == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert projected(torch.rand(2, 3, 29, 31)).shape == (2, 10)


def test_other_shortcuts_are_refused() -> None:
    with pytest.raises(models.ModelArgumentError, match="pad or projection, found 'none'"):
        models.create("resnet20", num_classes=10, shortcut="none")
