"""Data sets whose pictures are drawn when they are asked for: each follows from the seed and its index alone."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .pixels import PixelDataset
from .rendering import Stream, pnm_from_pixels


class Rendered(PixelDataset):
    """Picture `index` is of class index mod the number of classes.

    revision: `revision_of` the drawing code. It stands for the pixels in the fingerprint, which is then there at once.
    """

    def __init__(self, name: str, classes: Sequence[str], pictures: int, *, revision: str, seed: int) -> None:
        self.revision, self.seed = revision, seed
        ids = [f"{index:04d}" for index in range(pictures)]
        super().__init__(name, classes, ids, (index % len(classes) for index in range(pictures)))

    @abstractmethod
    def drawn(self, label: int, stream: Stream) -> NDArray[np.uint8]:
        """A new picture of a class, uint8 (H, W, 3) or, grey, (H, W)."""

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """One picture, uint8 (H, W, 3) or, grey, (H, W)."""
        return self.drawn(int(self.labels[index]), Stream(self.seed, index))

    def encoded(self, index: int) -> bytes:
        """One picture as PPM or PGM, drawn anew."""
        return pnm_from_pixels(self.pixels(index))

    def content(self, index: int) -> bytes:
        """What the pixels follow from."""
        return f"{self.revision} {self.seed} {index}".encode()


def revision_of(dataset: Rendered, pictures: int = 100) -> str:
    """SHA-256 over the pixels of the first pictures, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for index in range(pictures):
        digest.update(dataset.pixels(index).tobytes())
    return digest.hexdigest()
