"""CIFAR-10: 60,000 colour pictures of 32 x 32 in ten classes, of which 10,000 are its own test part.

Krizhevsky: Learning Multiple Layers of Features from Tiny Images (2009). https://www.cs.toronto.edu/~kriz/cifar.html
Size and SHA-256 are those of TensorFlow Datasets (url_checksums/cifar10.txt).

The binary version, as the other one is made of pickles: a record is the class in a byte, then 32 x 32 bytes of red,
as many of green and of blue, row by row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import UsageError

from .archives import untar
from .dataset import Dataset
from .download import Remote
from .pixels import DividedPixels, Labelled
from .published import Published

SIDE = 32
RECORD = 1 + 3 * SIDE * SIDE
"""Bytes."""
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = ("test_batch.bin",)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_records(path: Path) -> Labelled:
    """Pixels (N, 32, 32, 3) and classes (N,) of one batch. Raises UsageError where it is not made of whole records."""
    data = np.fromfile(path, np.uint8)
    if len(data) % RECORD or not len(data):
        raise UsageError(
            f"{path} has {len(data):,} bytes, expected records of {RECORD:,}: delete its folder, and prepare it anew"
        )
    records = data.reshape(-1, RECORD)
    planes = records[:, 1:].reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].copy()


def _unpack(downloads: Path, folder: Path) -> None:
    untar(downloads / CIFAR10.remotes[0].file, folder)


def _read(folder: Path) -> Dataset:
    def part(names: tuple[str, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        batches = [read_records(folder / "cifar-10-batches-bin" / name) for name in names]
        return np.concatenate([pixels for pixels, _ in batches]), np.concatenate([labels for _, labels in batches])

    return DividedPixels("cifar10", CLASSES, part(TRAIN), part(TEST))


CIFAR10 = Published(
    "cifar10",
    pictures=60_000,
    classes=len(CLASSES),
    pixels="colour",
    remotes=(
        Remote(
            ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    unpack=_unpack,
    read=_read,
)
