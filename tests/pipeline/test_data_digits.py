"""scikit-learn's digits as pictures."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from trueport.pipeline.data import open_dataset
from trueport.runtime.errors import MissingError


def test_digits_are_the_scans_on_a_scale_of_0_to_255() -> None:
    digits = open_dataset("digits")
    assert len(digits) == 1797
    assert digits.classes == tuple("0123456789")
    assert digits.grey
    source = load_digits()
    for index in (0, 900, 1796):
        pixels = np.asarray(digits.image(index))
        assert pixels.shape == (8, 8)
        assert pixels.dtype == np.uint8
        assert np.array_equal(np.round(pixels / 255 * 16), source.images[index])
        assert digits.labels[index] == source.target[index]


def test_the_fingerprint_is_that_of_the_data_and_not_of_a_library() -> None:
    expected = "ffca23c126da0a0eaba24b22b513a5508c280a56fe7b10785a0ca97e2f6b9e73"
    assert open_dataset("digits").fingerprint == expected


def test_without_scikit_learn_the_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingError, match=r"scikit-learn.*trueport\[train\]"):
        open_dataset("digits")
