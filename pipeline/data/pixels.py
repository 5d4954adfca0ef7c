"""Data sets whose pictures are arrays of pixels and no files; some of them with a test part of their own."""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import UsageError

from .dataset import Dataset, Part

if TYPE_CHECKING:
    from PIL import Image

Labelled = tuple[NDArray[np.uint8], NDArray[Any]]
"""Pixels (N, H, W) or (N, H, W, 3), and the class of each (N,)."""


class PixelDataset(Dataset):
    """Pictures that are encoded only for who asks for a file."""

    @abstractmethod
    def pixels(self, index: int) -> NDArray[np.uint8]:
        """One picture, uint8 (H, W, 3) or, grey, (H, W)."""

    def encoded(self, index: int) -> bytes:
        """One picture as PNG."""
        file = io.BytesIO()
        self.source(index).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def source(self, index: int) -> Image.Image:
        """One picture."""
        from PIL import Image

        return Image.fromarray(self.pixels(index))

    def content(self, index: int) -> bytes:
        """The pixels themselves: PNG bytes change with the version of the compressor."""
        return self.pixels(index).tobytes()


class DividedPixels(PixelDataset):
    """Pictures in memory or mapped from a file; an id is the part and the place in it: `train/00042`."""

    grey = True

    def __init__(self, name: str, classes: tuple[str, ...], train: Labelled, test: Labelled) -> None:
        for pixels, labels in (train, test):
            if len(pixels) != len(labels) or not len(labels) or labels.max() >= len(classes):
                raise UsageError(
                    f"{name} has {len(pixels):,} pictures and {len(labels):,} labels, expected as many, of "
                    f"{len(classes)} classes: delete its folder, and prepare it anew"
                )
        self._test, self._train = test[0], train[0]
        self.grey = train[0].ndim == 3
        ids = [
            f"{part}/{index:05d}"
            for part, found in (("test", test), ("train", train))
            for index in range(len(found[0]))
        ]
        own: Part = "test"
        parts = [*[own] * len(test[0]), *[None] * len(train[0])]
        super().__init__(name, classes, ids, [*test[1].tolist(), *train[1].tolist()], parts)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """One picture, uint8 (H, W, 3) or, grey, (H, W)."""
        before = len(self._test)
        return np.array(self._test[index] if index < before else self._train[index - before])
