"""scikit-learn's 1,797 scanned handwritten digits, 8 x 8 and grey: real data without a download.

Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998).
https://doi.org/10.24432/C50P49
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import missing_extra

from .pixels import PixelDataset

GREY_LEVELS = 16
"""The data's own scale is 0 to 16: inked pixels in blocks of 4 x 4."""


class Digits(PixelDataset):
    """Ten classes named by their digit; ink is bright."""

    grey = True

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise missing_extra("scikit-learn", "train", "the data set digits") from error
        data = load_digits()
        self._digits = np.rint(data.images * (255 / GREY_LEVELS)).astype(np.uint8)  # (1797, 8, 8)
        ids = [f"{index:04d}" for index in range(len(self._digits))]
        super().__init__("digits", [str(digit) for digit in range(10)], ids, data.target)

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """One digit, uint8 (8, 8)."""
        digit: NDArray[np.uint8] = self._digits[index]
        return digit
