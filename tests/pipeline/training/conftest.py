"""Small pictures of three classes, and a small network with all that makes training hard to repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from trueport import models
from trueport.models import registry
from trueport.pipeline.recipe import Recipe, recipe_from_table

COUNTS = {"cross": 12, "lying": 24, "upright": 36}
"""Pictures of each class: unlike, for class weights to matter."""


class Tiny(nn.Module):
    """Batch norm on maps of one pixel, dropout, and an auxiliary classifier that answers in training alone."""

    def __init__(self, num_classes: int, channels: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 5, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.auxiliary = nn.Linear(4, num_classes)
        self.hidden = nn.Linear(4, 8)
        self.hidden_norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        maps = functional.relu(self.norm(self.conv(image))).mean((2, 3))
        logits: torch.Tensor = self.head(self.dropout(functional.relu(self.hidden_norm(self.hidden(maps)))))
        return (logits, self.auxiliary(maps)) if self.training else logits


@pytest.fixture(scope="session", autouse=True)
def tiny() -> Iterator[None]:
    """`tiny` in the catalogue."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_SPECS", dict(registry._SPECS))
        models.register("tiny", summary="-", paper="-", url="-", size=16, channels=(1, 3))(Tiny)
        yield


@pytest.fixture(scope="session")
def strokes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crosses, lying and upright strokes in noise."""
    root = tmp_path_factory.mktemp("data") / "strokes"
    chance = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = chance.integers(0, 100, (16, 16), np.uint8)
            row, column = chance.integers(2, 12, 2)
            if name != "upright":
                pixels[row : row + 3] = 255
            if name != "lying":
                pixels[:, column : column + 3] = 255
            Image.fromarray(pixels).save(root / name / f"{index:02d}.png")
    return root


@pytest.fixture(scope="session")
def recipe_of(strokes: Path) -> Callable[..., Recipe]:
    """A recipe for them with these changes: `recipe_of(train={"epochs": 1}, augment={"mixup": 0.2})`."""

    def make(**sections: dict[str, Any]) -> Recipe:
        table: dict[str, Any] = {
            "name": "strokes",
            "data": {"source": str(strokes), "validation": 0.15, "test": 0.15},
            "model": {"arch": "tiny"},
            "train": {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "device": "cpu", "workers": 0},
        }
        for name, changes in sections.items():
            table[name] = table.get(name, {}) | changes
        return recipe_from_table(table)

    return make
