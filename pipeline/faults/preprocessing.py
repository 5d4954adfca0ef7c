"""Pictures that reach the network as other pixels: an application decodes, turns, resizes or crops in its own way."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import Pixels, prepare, upright

from ..deployment import Deployment
from .catalogue import DoesNotApplyError, Healthy, fault

if TYPE_CHECKING:
    from PIL import Image


def _prepared(healthy: Healthy, other: Callable[[bytes, Preprocessing], Any]) -> Deployment:
    """The deployment with other preprocessing, whose answer is made contiguous uint8 (H, W, C)."""

    def prepare_otherwise(encoded: bytes, wanted: Preprocessing) -> Pixels:
        pixels = np.asarray(other(encoded, wanted))
        return np.ascontiguousarray(pixels.reshape(wanted.shape))

    return replace(healthy.deployment, prepare=prepare_otherwise)


@fault("bgr", "red and blue are swapped", "preprocessing")
def swap_red_and_blue(healthy: Healthy) -> Deployment:
    """OpenCV decodes to BGR, and the conversion is forgotten."""
    if healthy.bundle.manifest.preprocessing.mode != "RGB":
        raise DoesNotApplyError("the pictures are grey")
    return _prepared(healthy, lambda encoded, wanted: prepare(encoded, wanted)[..., ::-1])


@fault("filter", "resized with another filter", "preprocessing")
def resize_with_another_filter(healthy: Healthy) -> Deployment:
    """Every library has another default: Pillow's is bicubic, torchvision's and OpenCV's bilinear."""
    own = healthy.bundle.manifest.preprocessing.resample
    other = "bicubic" if own == "bilinear" else "bilinear"
    return _prepared(healthy, lambda data, wanted: prepare(data, msgspec.structs.replace(wanted, resample=other)))


@fault("antialias", "shrunk without antialiasing", "preprocessing")
def shrink_without_antialiasing(healthy: Healthy) -> Deployment:
    """OpenCV's INTER_LINEAR, and torch's interpolate unless told, look at four pixels however many there are."""

    def sampled(encoded: bytes, wanted: Preprocessing) -> Any:
        from PIL import Image

        picture = upright(encoded, wanted.mode)
        size = _size_before_crop(picture, wanted)
        across, down = picture.width / size[0], picture.height / size[1]
        if wanted.resample == "nearest":
            return prepare(encoded, wanted)
        matrix = (across, 0, 0, 0, down, 0)
        # A transformation samples at the centres of pixels and never widens its filter, unlike Pillow's resize.
        resample = Image.Resampling.BICUBIC if wanted.resample == "bicubic" else Image.Resampling.BILINEAR
        small = picture.transform(size, Image.Transform.AFFINE, matrix, resample)
        return _centre(small, wanted)

    return _prepared(healthy, sampled)


@fault("crop", "the crop is another", "preprocessing")
def crop_otherwise(healthy: Healthy) -> Deployment:
    """A service crops the centre where training squashed the whole picture, or squashes where it cropped."""

    def other(encoded: bytes, wanted: Preprocessing) -> Any:
        kind = "shorter-side" if wanted.resize == "exact" else "exact"
        return prepare(encoded, msgspec.structs.replace(wanted, resize=kind, resize_to=None))

    return _prepared(healthy, other)


@fault("offset", "the picture is moved by one pixel", "preprocessing")
def move_by_one_pixel(healthy: Healthy) -> Deployment:
    """An off-by-one in a hand-written crop: rounding up in place of to the nearest."""
    return _prepared(healthy, lambda data, wanted: np.roll(prepare(data, wanted), 1, axis=1))


@fault("exif", "the EXIF orientation is ignored", "preprocessing")
def ignore_exif(healthy: Healthy) -> Deployment:
    """Pillow's Image.open and most decoders leave a phone's portrait on its side."""

    def unturned(encoded: bytes, wanted: Preprocessing) -> Any:
        from PIL import Image

        with Image.open(io.BytesIO(encoded)) as picture:
            picture.load()
            picture.getexif().clear()
            return prepare(_without_exif(picture), wanted)

    return _prepared(healthy, unturned)


@fault("thumbnail", "JPEGs are decoded at a reduced size", "preprocessing")
def decode_a_thumbnail(healthy: Healthy) -> Deployment:
    """Fast decoders and Pillow's thumbnail() let the JPEG's own transform do most of the shrinking."""

    def drafted(encoded: bytes, wanted: Preprocessing) -> Any:
        from PIL import Image, ImageOps

        with Image.open(io.BytesIO(encoded)) as picture:
            picture.draft(picture.mode, (wanted.width, wanted.height))
            return prepare(ImageOps.exif_transpose(picture), wanted)

    return _prepared(healthy, drafted)


@fault("grey", "colours are made grey by their plain mean", "preprocessing")
def average_the_colours(healthy: Healthy) -> Deployment:
    """A mean over the axis of channels, where training weighed green more, as ITU-R 601 and Pillow do."""
    if healthy.bundle.manifest.preprocessing.mode != "L":
        raise DoesNotApplyError("the pictures are in colour")

    def averaged(encoded: bytes, wanted: Preprocessing) -> Any:
        colours = np.asarray(upright(encoded, "RGB"), np.float64)
        return prepare(colours.mean(axis=-1).round().astype(np.uint8), wanted)

    return _prepared(healthy, averaged)


def _without_exif(picture: Image.Image) -> Image.Image:
    from PIL import Image

    bare = Image.new(picture.mode, picture.size)
    bare.paste(picture)
    return bare


def _size_before_crop(picture: Image.Image, wanted: Preprocessing) -> tuple[int, int]:
    if wanted.resize == "exact":
        return wanted.width, wanted.height
    shorter = wanted.resize_to or max(wanted.height, wanted.width)
    return picture.width * shorter // min(picture.size), picture.height * shorter // min(picture.size)


def _centre(picture: Image.Image, wanted: Preprocessing) -> Image.Image:
    left, top = round((picture.width - wanted.width) / 2), round((picture.height - wanted.height) / 2)
    return picture.crop((left, top, left + wanted.width, top + wanted.height))
