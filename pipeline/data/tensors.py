"""Prepared pictures as one uint8 array, made by the very preprocessing that ships."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import prepare

from .dataset import Dataset, Done, Indices, each

IN_MEMORY_BYTES = 4 * 2**30
"""Above this the array lies in a temporary file that the system pages in and out."""


def prepared(
    dataset: Dataset,
    indices: Indices,
    preprocessing: Preprocessing,
    progress: Done | None = None,
    *,
    scratch: Path | None = None,
) -> NDArray[np.uint8]:
    """The pictures at `indices` as uint8 (N, H, W, C), in that order.

    scratch: folder of the temporary file where one is needed; None: the system's.
    Raises one UsageError that names every picture that can't be decoded.
    """
    pictures = _room((len(indices), *preprocessing.shape), scratch)

    def place(row: int, index: int) -> None:
        pictures[row] = prepare(dataset.encoded(index), preprocessing)

    each(dataset, place, indices.tolist(), progress)
    return pictures


def _room(shape: tuple[int, ...], scratch: Path | None) -> NDArray[np.uint8]:
    if math.prod(shape) <= IN_MEMORY_BYTES:
        return np.empty(shape, np.uint8)
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as file:  # the mapping outlives the closed file
        return np.memmap(file, np.uint8, "w+", shape=shape)
