"""LeNet is the one of the course."""

from __future__ import annotations

import pytest
import torch

from trueport import models


@pytest.mark.parametrize(("channels", "classes", "parameters"), [(3, 10, 121_182), (1, 10, 120_382), (3, 2, 120_502)])
def test_parameters(channels: int, classes: int, parameters: int) -> None:
    model = models.create("lenet", num_classes=classes, channels=channels)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_rows_do_not_see_each_other() -> None:
    model = models.create("lenet", num_classes=4, channels=1).eval()
    batch = torch.rand(3, 1, 32, 32)
    with torch.inference_mode():
        together, alone = model(batch), model(batch[1:2])
    torch.testing.assert_close(together[1:2], alone)
