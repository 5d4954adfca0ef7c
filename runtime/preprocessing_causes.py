"""What was done to pixels that are not what they must be: usual mistakes, each tried on the very pictures.

Pillow and NumPy only, so that it works wherever a bundle does.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .manifest import Preprocessing
from .preprocessing import prepare

Pixels = NDArray[np.uint8]
Alteration = Callable[[bytes, Preprocessing], NDArray[Any]]
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
NEARLY = 0.25
"""Of the difference that is to be explained: a mistake that leaves less of it is nearly the one."""
CLOSE = 1
"""Levels of 255 that another rounding makes."""


@dataclass(frozen=True)
class PixelCause:
    """What makes of the pictures what was seen."""

    cause: str
    remedy: str
    confirmed: bool
    """Whether doing the same made the same pixels, to the bit."""


def pixel_cause(
    pictures: Sequence[bytes], seen: Sequence[NDArray[Any]], golden: Sequence[Pixels], preprocessing: Preprocessing
) -> PixelCause:
    """Why preprocessing makes `seen` of encoded `pictures` where it has to make `golden`."""
    nearest, smallest = None, NEARLY * _distance(list(golden), seen)
    for cause, remedy, alteration in _alterations(preprocessing):
        made = _made(alteration, pictures, preprocessing)
        if (distance := _distance(made, seen)) == 0:
            return PixelCause(cause, remedy, True)
        if distance < smallest:
            nearest, smallest = PixelCause(f"{cause}, or nearly so", remedy, False), distance
    for cause, altered in _parameters(preprocessing):
        if _distance(_made(prepare, pictures, altered), golden) == 0:
            return PixelCause(
                f"the manifest's preprocessing was changed: the golden pixels were made with {cause}",
                "take the bundle as it was exported, or export it again with the preprocessing of training",
                True,
            )
    if nearest:
        return nearest
    shapes = {pixels.shape for pixels in seen} | {np.asarray(pixels).dtype.name for pixels in seen}
    if any(pixels.shape != preprocessing.shape or pixels.dtype != np.uint8 for pixels in seen):
        told = f"the pixels have another shape or type, {', '.join(sorted(map(str, shapes)))}"
        return PixelCause(
            told, f"make uint8 {list(preprocessing.shape)} of each picture, as trueport's prepare does", True
        )
    largest = max(int(np.abs(a.astype(np.int16) - b).max()) for a, b in zip(seen, golden, strict=True))
    if largest <= CLOSE:
        return PixelCause(
            "pixels differ by one level: another decoder, another version of Pillow, or values rounded the other way",
            "prepare pictures by trueport's prepare, with the Pillow that the bundle was exported with",
            False,
        )
    return PixelCause(
        f"pixels differ by up to {largest} levels, and no usual mistake makes these: another decoder, crop or resize",
        "prepare pictures by trueport's prepare, with the manifest's parameters",
        False,
    )


def _made(alteration: Alteration, pictures: Sequence[bytes], preprocessing: Preprocessing) -> list[NDArray[Any]]:
    """Its pixels of each picture; none where such a mistake can't be made with these pictures or this size."""
    try:
        return [np.asarray(alteration(picture, preprocessing)) for picture in pictures]
    except (ImageError, ValueError):
        return []


def _distance(made: Sequence[NDArray[Any]], pixels: Sequence[NDArray[Any]]) -> float:
    """The mean difference in levels; 0 where all are the same to the bit, infinite where shapes or types differ."""
    if [(a.shape, a.dtype) for a in made] != [(b.shape, b.dtype) for b in pixels]:
        return float("inf")
    return float(np.mean([np.abs(a.astype(np.float64) - b).mean() for a, b in zip(made, pixels, strict=True)]))


OWN = "prepare pictures by trueport's prepare, which reads all of it from the manifest"


def _alterations(preprocessing: Preprocessing) -> Iterator[tuple[str, str, Alteration]]:
    for cause, altered in _parameters(preprocessing):
        yield f"pictures are prepared with {cause}", OWN, _with(altered)
    for name in FILTERS:
        if name != preprocessing.resample:
            yield f"pictures are resized with the filter {name}, not {preprocessing.resample}", OWN, _framed(name)
    for name in ("nearest", "bilinear", "bicubic"):
        yield f"pictures are shrunk by {name} without antialiasing", OWN, _without_antialias(name)
    yield (
        "the EXIF orientation is ignored: pictures lie on their side",
        "turn pictures by their EXIF orientation first (Pillow: ImageOps.exif_transpose), or use prepare",
        lambda picture, wanted: prepare(_without_exif(picture), wanted),
    )
    yield "JPEGs are decoded at a reduced size, as by Pillow's draft() and thumbnail()", OWN, _drafted
    yield "the shorter side is fitted and the middle cut out", OWN, _framed(preprocessing.resample, "middle")
    yield "pictures are resized and cut out at the top left", OWN, _framed(preprocessing.resample, "corner")
    if preprocessing.mode == "L":
        yield "pictures are made grey by the plain mean of their channels", OWN, _mean_of_channels
    yield from _of_pixels(preprocessing)


def _of_pixels(preprocessing: Preprocessing) -> Iterator[tuple[str, str, Alteration]]:
    """Mistakes that are made of the right pixels."""
    grey = np.array([0.299, 0.587, 0.114])
    mistakes: list[tuple[str, str, Callable[[Pixels], NDArray[Any]]]] = [
        (
            "red and blue are swapped: pictures are read as BGR, as OpenCV does",
            "convert to RGB after decoding (cv2.cvtColor with COLOR_BGR2RGB), or use prepare",
            lambda pixels: pixels[..., ::-1],
        ),
        (
            "pictures are made grey",
            "keep all three channels, the model was trained on colour",
            lambda pixels: np.repeat((pixels @ grey).round().astype(np.uint8)[..., None], 3, axis=2),
        ),
        (
            "height and width are swapped",
            "keep rows first: (H, W, C)",
            lambda pixels: pixels.swapaxes(0, 1),
        ),
        (
            "channels come first: (C, H, W) where (H, W, C) belongs",
            "leave the transpose to the graph, it is inside",
            lambda pixels: pixels.transpose(2, 0, 1),
        ),
        (
            "rows of (C, H, W) are read as (H, W, C)",
            "leave the transpose to the graph, it is inside",
            lambda pixels: pixels.transpose(2, 0, 1).reshape(pixels.shape),
        ),
        (
            "rows of (H, W, C) are read as (C, H, W)",
            "leave the transpose to the graph, it is inside",
            lambda pixels: pixels.reshape(pixels.shape[2], *pixels.shape[:2]).transpose(1, 2, 0),
        ),
        (
            "pixels are scaled to 0 to 1 before they become integers",
            "hand over levels from 0 to 255: the division is inside the graph",
            lambda pixels: (pixels / 255).astype(np.uint8),
        ),
        (
            "pixels are inverted",
            "hand over levels as they are decoded, 0 is black",
            lambda pixels: 255 - pixels,
        ),
        *(
            (
                f"pictures are moved by {abs(shift)} pixel{'s' if abs(shift) > 1 else ''} along the {side}",
                "cut out the middle as prepare does, rounding offsets to the nearest",
                lambda pixels, shift=shift, axis=axis: np.roll(pixels, shift, axis),
            )
            for shift in (1, -1, 2, -2)
            for axis, side in ((1, "width"), (0, "height"))
        ),
        ("pictures are mirrored", "flip pictures in training alone", lambda pixels: pixels[:, ::-1]),
        ("pictures are upside down", "read rows from the top", lambda pixels: pixels[::-1]),
    ]
    for cause, remedy, change in mistakes:
        if preprocessing.channels == 3 or not cause.startswith(("red", "pictures are made grey")):
            yield cause, remedy, _of(change)


def _of(change: Callable[[Pixels], NDArray[Any]]) -> Alteration:
    return lambda picture, wanted: change(prepare(picture, wanted))


def _with(altered: Preprocessing) -> Alteration:
    return lambda picture, _: prepare(picture, altered)


def _parameters(preprocessing: Preprocessing) -> Iterator[tuple[str, Preprocessing]]:
    """Other values of the manifest's parameters that leave height, width and mode."""
    replace = msgspec.structs.replace
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        if name != preprocessing.resample:
            yield f"the filter {name}, where {preprocessing.resample} is stated", replace(preprocessing, resample=name)
    if preprocessing.resize == "exact":
        longest = max(preprocessing.height, preprocessing.width)
        for shorter in sorted({longest, round(longest * 256 / 224), round(longest / 0.875), round(longest / 0.9)}):
            cut = replace(preprocessing, resize="shorter-side", resize_to=shorter)
            yield f"the shorter side fitted to {shorter} and the middle cut out, where the whole is resized", cut
        return
    yield "the whole resized, where the middle is cut out", replace(preprocessing, resize="exact", resize_to=None)
    longest, stated = max(preprocessing.height, preprocessing.width), preprocessing.resize_to
    for shorter in sorted({longest, round(longest * 256 / 224), round(longest / 0.875), round(longest / 0.9)}):
        if shorter != (stated or longest):
            told = f"a shorter side of {shorter}, where {stated or longest} is stated"
            yield told, replace(preprocessing, resize_to=shorter)


def _without_exif(picture: bytes) -> Any:
    from PIL import Image

    image = Image.open(io.BytesIO(picture))
    image.load()
    bare = Image.fromarray(np.asarray(image)) if image.mode in {"RGB", "L"} else image.copy()
    bare.getexif().clear()
    return bare


def _drafted(picture: bytes, wanted: Preprocessing) -> Any:
    """The JPEG's own transform does the first part of the shrinking."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(picture)) as image:
        image.draft(None, (wanted.width, wanted.height))
        return prepare(ImageOps.exif_transpose(image), wanted)


def _mean_of_channels(picture: bytes, wanted: Preprocessing) -> Any:
    from .preprocessing import upright

    mean = np.asarray(upright(picture, "RGB"), np.float64).mean(axis=2)
    return prepare(mean.round().astype(np.uint8), wanted)


def _framed(name: str, place: str = "") -> Alteration:
    """Another filter, or another part of the picture; the size is the manifest's."""

    def altered(picture: bytes, wanted: Preprocessing) -> NDArray[Any]:
        from PIL import Image

        from .preprocessing import upright

        image = upright(picture, wanted.mode)
        width, height = wanted.width, wanted.height
        resample = Image.Resampling[name.upper()]
        if wanted.resize == "exact" and not place:
            return _array(image.resize((width, height), resample))
        shorter = wanted.resize_to or max(width, height)
        size = (image.width * shorter // min(image.size), image.height * shorter // min(image.size))
        image = image.resize(size, resample)
        left, top = (0, 0) if place == "corner" else ((size[0] - width) // 2, (size[1] - height) // 2)
        if not place:
            left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        return _array(image.crop((left, top, left + width, top + height)))

    return altered


def _without_antialias(name: str) -> Alteration:
    """By sampling the picture at points half a pixel in, as torch's interpolate does without `antialias`."""

    def altered(picture: bytes, wanted: Preprocessing) -> NDArray[Any]:
        from PIL import Image

        from .preprocessing import upright

        if wanted.resize != "exact":
            raise ValueError("only where the whole picture is resized")
        image = upright(picture, wanted.mode)
        # An affine transform takes its filter at each point of the target, however far apart these lie in the source.
        across, down = image.width / wanted.width, image.height / wanted.height
        resample = Image.Resampling[name.upper()]
        size = (wanted.width, wanted.height)
        return _array(image.transform(size, Image.Transform.AFFINE, (across, 0, 0, 0, down, 0), resample))

    return altered


def _array(image: Any) -> NDArray[Any]:
    pixels = np.asarray(image, np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis]
