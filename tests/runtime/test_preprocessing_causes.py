"""Usual mistakes of preprocessing are recognised by the pixels that they make, without torch."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import prepare
from trueport.runtime.preprocessing_causes import pixel_cause

Prepare = Callable[[bytes], Any]
EXACT = Preprocessing(height=24, width=24)
CROPPED = Preprocessing(height=24, width=24, resize="shorter-side", resize_to=28)


def picture(seed: int, size: tuple[int, int], kind: str, orientation: int) -> bytes:
    chance = np.random.default_rng(seed)
    small = Image.fromarray(chance.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    small.save(buffer, kind, exif=exif)
    return buffer.getvalue()


PICTURES = (picture(0, (97, 61), "PNG", 6), picture(1, (131, 77), "JPEG", 3))


def altered(wanted: Preprocessing, **changes: Any) -> Prepare:
    return lambda data: prepare(data, msgspec.structs.replace(wanted, **changes))


def of_pixels(wanted: Preprocessing, change: Callable[[NDArray[np.uint8]], NDArray[Any]]) -> Prepare:
    return lambda data: change(prepare(data, wanted))


def unturned(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as opened:
        return prepare(Image.fromarray(np.asarray(opened)), EXACT)


def sampled(data: bytes) -> Any:
    from PIL import ImageOps

    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened)
    matrix = (upright.width / 24, 0, 0, 0, upright.height / 24, 0)
    return np.asarray(upright.transform((24, 24), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def at_the_corner(data: bytes) -> Any:
    whole = prepare(data, Preprocessing(height=28, width=28, resize="shorter-side", resize_to=28))
    assert whole.shape == (28, 28, 3)
    from trueport.runtime.preprocessing import upright

    image = upright(data, "RGB")
    size = (image.width * 28 // min(image.size), image.height * 28 // min(image.size))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR).crop((0, 0, 24, 24)))


MISTAKES: dict[str, tuple[Preprocessing, Prepare, str]] = {
    "filter": (EXACT, altered(EXACT, resample="bicubic"), "the filter bicubic, where bilinear is stated"),
    "nearest": (EXACT, altered(EXACT, resample="nearest"), "the filter nearest"),
    "antialias": (EXACT, sampled, "by bilinear without antialiasing"),
    "exif": (EXACT, unturned, "the EXIF orientation is ignored"),
    "bgr": (EXACT, of_pixels(EXACT, lambda pixels: pixels[..., ::-1]), "red and blue are swapped"),
    "unit": (EXACT, of_pixels(EXACT, lambda pixels: (pixels / 255).astype(np.uint8)), "scaled to 0 to 1"),
    "planes": (EXACT, of_pixels(EXACT, lambda pixels: pixels.transpose(2, 0, 1)), "channels come first"),
    "sides": (EXACT, of_pixels(EXACT, lambda pixels: pixels.swapaxes(0, 1)), "height and width are swapped"),
    "moved": (EXACT, of_pixels(EXACT, lambda pixels: np.roll(pixels, 1, axis=1)), "moved by 1 pixel along the width"),
    "crop": (EXACT, altered(EXACT, resize="shorter-side"), "the middle cut out"),
    "whole": (CROPPED, altered(CROPPED, resize="exact", resize_to=None), "the whole resized"),
    "shorter": (CROPPED, altered(CROPPED, resize_to=24), "a shorter side of 24, where 28 is stated"),
    "corner": (CROPPED, at_the_corner, "cut out at the top left"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_usual_mistake_is_recognised_to_the_bit(name: str) -> None:
    wanted, mistaken, cause = MISTAKES[name]
    golden = [prepare(data, wanted) for data in PICTURES]
    seen = [np.asarray(mistaken(data)) for data in PICTURES]
    found = pixel_cause(PICTURES, seen, golden, wanted)
    assert cause in found.cause
    assert found.confirmed
    assert found.remedy


def test_parameters_that_were_changed_in_the_manifest_are_told_as_such() -> None:
    stated = msgspec.structs.replace(EXACT, resample="lanczos")
    golden = [prepare(data, EXACT) for data in PICTURES]
    found = pixel_cause(PICTURES, [prepare(data, stated) for data in PICTURES], golden, stated)
    # Both are true: the pixels seen are those of the manifest, the golden ones are of another filter.
    assert "the golden pixels were made with the filter bilinear, where lanczos is stated" in found.cause
    assert found.confirmed


def test_what_is_nearly_a_mistake_is_told_and_not_confirmed() -> None:
    golden = [prepare(data, EXACT) for data in PICTURES]
    swapped = [pixels[..., ::-1].copy() for pixels in golden]
    swapped[0][0, 0, 0] ^= 3
    found = pixel_cause(PICTURES, swapped, golden, EXACT)
    assert "red and blue are swapped: pictures are read as BGR, as OpenCV does, or nearly so" in found.cause
    assert not found.confirmed


def test_what_no_mistake_makes_is_told_by_its_size() -> None:
    golden = [prepare(data, EXACT) for data in PICTURES]
    chance = np.random.default_rng(0)
    noise = [chance.integers(0, 256, pixels.shape, dtype=np.uint8) for pixels in golden]
    found = pixel_cause(PICTURES, noise, golden, EXACT)
    assert "no usual mistake makes these" in found.cause
    assert not found.confirmed
    rounded = [np.where(pixels < 255, pixels + 1, pixels).astype(np.uint8) for pixels in golden]
    assert "differ by one level" in pixel_cause(PICTURES, rounded, golden, EXACT).cause
    floats = [pixels / 255 for pixels in golden]
    assert "another shape or type" in pixel_cause(PICTURES, floats, golden, EXACT).cause
