"""LeNet-5 has the paper's sizes and, where asked for, its table of connections."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trueport import models
from trueport.models.lenet5 import TABLE, TableConv2d


@pytest.mark.parametrize(("channels", "parameters"), [(1, 61_706), (3, 62_006)])
def test_parameters(channels: int, parameters: int) -> None:
    model = models.create("lenet5", num_classes=10, channels=channels)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_sizes(output_shapes: Callable[..., list[tuple[int, ...]]]) -> None:
    model = models.create("lenet5", num_classes=10)
    shapes = output_shapes(model, torch.rand(2, 3, 32, 32), nn.Conv2d, nn.AvgPool2d, nn.Linear)
    assert shapes == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120, 1, 1), (84,), (10,)]


def test_table_leaves_1516_parameters_of_c3() -> None:
    assert sum(len(row) for row in TABLE) * 25 + 16 == 1516
    assert sorted(len(row) for row in TABLE) == [3] * 6 + [4] * 9 + [6]
    assert len(set(TABLE)) == 16
    # Every map of S2 is seen by ten maps of C3: each row of the paper's table has ten crosses.
    assert [sum(source in row for row in TABLE) for source in range(6)] == [10] * 6


def test_a_map_of_c3_sees_the_maps_of_its_row_and_no_others() -> None:
    torch.manual_seed(0)
    layer = TableConv2d(TABLE, 6, 5)
    maps = torch.rand(1, 6, 14, 14)
    with torch.inference_mode():
        before = layer(maps)
        for source in range(6):
            changed = maps.clone()
            changed[:, source] += 1
            moved = (layer(changed) - before).abs().amax((0, 2, 3)) > 0
            assert moved.tolist() == [source in row for row in TABLE]


def test_unknown_connections_are_refused() -> None:
    with pytest.raises(models.ModelArgumentError, match="full or table, found 'some'"):
        models.create("lenet5", num_classes=10, connections="some")
