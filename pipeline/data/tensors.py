"""Pictures in memory: prepared as one uint8 array by the very preprocessing that ships, or whole for random crops."""

from __future__ import annotations

import math
import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import prepare, upright

from .dataset import Dataset, Done, Indices, each

if TYPE_CHECKING:
    from PIL import Image

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
        pictures[row] = prepare(dataset.source(index), preprocessing)

    each(dataset, place, indices.tolist(), progress)
    return pictures


def _room(shape: tuple[int, ...], scratch: Path | None) -> NDArray[np.uint8]:
    if math.prod(shape) <= IN_MEMORY_BYTES:
        return np.empty(shape, np.uint8)
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=scratch) as file:  # the mapping outlives the closed file
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, and not a signal later
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        return np.memmap(file, np.uint8, "w+", shape=shape)


class WholePictures:
    """Decoded and upright pictures, all there are, or as many as there is room for; the others are decoded each time.

    room: bytes. With enough of it every picture is decoded here, and a broken one is found before training starts.
    Raises one UsageError that names every picture that was decoded here and can't be.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Indices,
        mode: Literal["RGB", "L"],
        progress: Done | None = None,
        *,
        room: int = IN_MEMORY_BYTES,
    ) -> None:
        self._dataset = dataset
        self._indices = indices.tolist()
        self._mode = mode
        self._kept: list[Image.Image | None] = [None] * len(self._indices)
        bytes_a_pixel = 1 if mode == "L" else 4  # Pillow pads RGB
        counting = threading.Lock()

        def keep(row: int, index: int) -> None:
            nonlocal room
            if room > 0:
                image = upright(dataset.source(index), mode)
                with counting:
                    room -= image.width * image.height * bytes_a_pixel
                self._kept[row] = image

        each(dataset, keep, self._indices, progress)

    def __getitem__(self, row: int) -> Image.Image:
        """The picture at `indices[row]`. Raises ImageError."""
        kept = self._kept[row]
        return upright(self._dataset.source(self._indices[row]), self._mode) if kept is None else kept
