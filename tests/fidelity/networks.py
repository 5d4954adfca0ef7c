"""Small networks, and bundles of them in every precision, for faults to be planted into.

`Everything` has a bit of all that an export can get wrong: batch norm, dropout, a pool that rounds up, a resize with
aligned corners, averages over padding, two layers of one shape, a square linear layer, an auxiliary classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from trueport import models
from trueport.export.bundle import Origin, write_bundle
from trueport.export.int8 import Int8Options
from trueport.export.original import Original
from trueport.export.variants import Material
from trueport.models import registry
from trueport.pipeline.data.digits import Digits
from trueport.runtime.manifest import Normalisation, Precision, Preprocessing

SIDE, CLASSES = 20, 10
TINTS = np.array([[1.0, 0.6, 0.3], [0.4, 1.0, 0.7], [0.7, 0.5, 1.0]])
"""Of the digits, so that channels are no copies of each other."""
MEAN, STD = (0.21, 0.28, 0.33), (0.32, 0.35, 0.4)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
Rows = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Everything(nn.Module):
    """Colour pictures of any size from 16 pixels on."""

    def __init__(self, num_classes: int, channels: int = 3, width: int = 12) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(width)
        self.mean = nn.AvgPool2d(3, stride=2, padding=1)
        self.fc1 = nn.Linear(width * 16, 32)
        self.fc2 = nn.Linear(32, 32)
        self.dropout = nn.Dropout(0.4)
        self.fc3 = nn.Linear(32, num_classes)
        self.auxiliary = nn.Linear(width, num_classes)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, K) of normalised pictures (B, C, H, W); in training the auxiliary classifier's after them."""
        maps = self.pool(functional.relu(self.bn1(self.conv1(image))))
        maps = functional.relu(self.conv2(maps))
        maps = functional.interpolate(maps, size=(15, 15), mode="bilinear", align_corners=True)
        early = maps.mean((2, 3))
        maps = self.mean(functional.relu(self.bn3(self.conv3(maps))))  # (B, width, 8, 8)
        hidden = functional.relu(self.fc1(functional.max_pool2d(maps, 2).flatten(1)))
        hidden = self.dropout(functional.relu(self.fc2(hidden)))
        logits: Tensor = self.fc3(hidden)
        return (logits, self.auxiliary(early)) if self.training else logits


@contextmanager
def registered() -> Iterator[None]:
    """`everything` in the catalogue for a while, so that its original can be rebuilt."""
    before = dict(registry._SPECS)
    models.register("everything", summary="-", paper="-", url="-", size=SIDE, minimum=16)(Everything)
    try:
        yield
    finally:
        registry._SPECS.clear()
        registry._SPECS.update(before)


def coloured_digits(side: int = SIDE, seed: int = 0) -> tuple[Rows, Labels]:
    """The scanned digits, enlarged and tinted: uint8 (1797, side, side, 3) and their classes."""
    data, chance = Digits(), np.random.default_rng(seed)
    grey = np.stack([data.pixels(index) for index in range(len(data.ids))])
    where = np.arange(side) * grey.shape[1] // side
    large = grey[:, where][:, :, where, None] / 255
    tint = TINTS[chance.integers(0, len(TINTS), len(grey))][:, None, None, :]
    noise = chance.normal(0, 0.03, (*large.shape[:3], 3))
    return (255 * np.clip(large * tint + noise + 0.05, 0, 1)).astype(np.uint8), data.labels.astype(np.int64)


def trained(network: nn.Module, images: Rows, labels: Labels, epochs: int, rate: float = 3e-3) -> nn.Module:
    """Trained on normalised pictures, a few seconds of it."""
    pixels = (
        torch.from_numpy(images).float().div(255).sub(torch.tensor(MEAN)).div(torch.tensor(STD)).permute(0, 3, 1, 2)
    )
    truth = torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, epochs * -(-len(images) // 64))
    network.train()
    for _ in range(epochs):
        for rows in torch.chunk(torch.randperm(len(images)), -(-len(images) // 64)):
            answer = network(pixels[rows])
            parts = answer if isinstance(answer, tuple) else (answer,)
            loss = torch.stack([functional.cross_entropy(part, truth[rows]) for part in parts]).sum()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.eval()


def digits_bundle(
    folder: Path,
    arch: str = "everything",
    side: int = SIDE,
    precisions: tuple[Precision, ...] = PRECISIONS,
    *,
    epochs: int = 3,
    rows: int = 600,
) -> Path:
    """An architecture trained on tinted digits, as a bundle with so many evaluation pictures."""
    torch.manual_seed(0)
    images, labels = coloured_digits(side)
    held, seen = slice(0, rows), slice(rows, None)
    network = trained(models.create(arch, num_classes=CLASSES), images[seen], labels[seen], epochs)
    original = Original(
        network,
        tuple(str(digit) for digit in range(CLASSES)),
        Preprocessing(height=side, width=side),
        Normalisation(MEAN, STD),
        arch,
    )
    write_bundle(
        original,
        folder,
        name=arch,
        origin=Origin("tinted digits", "ab" * 32, "cd" * 32, 0, {}),
        golden=images[held][:24],
        pictures=(),
        evaluation=(images[held], labels[held]),
        precisions=precisions,
        material=Material(images[seen][:128], images[seen][-300:], labels[seen][-300:]),
        max_drop=1.0,
        int8=Int8Options("minmax", 64),
    )
    return folder
