"""Pictures without files are prepared from their pixels, to the bit as from the files they would be encoded in."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from trueport.pipeline.data import open_dataset, prepared
from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import prepare


@pytest.mark.parametrize("name", ["digits", "plates", "plates_grey", "shapes"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_pixels_are_prepared_as_their_file_would_be(
    name: str, mode: Literal["L", "RGB"], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(name)
    width, height = data.image(0).size
    # Of the picture's own size, and yet to be resized and cropped: an array would be taken as it is.
    to = max(height, width) + 9
    preprocessing = Preprocessing(height=height, width=width, mode=mode, resize="shorter-side", resize_to=to)
    expected = [prepare(data.encoded(index), preprocessing) for index in range(3)]
    monkeypatch.setattr(type(data), "encoded", None)  # nobody asks for it
    found = prepared(data, np.arange(3), preprocessing)
    assert np.array_equal(found, expected)
    assert not np.array_equal(found[0], found[1])
