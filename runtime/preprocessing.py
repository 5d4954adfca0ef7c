"""From a picture to the network's uint8 (H, W, C): decode, orientation, colour mode, resize, crop.

Values are taken as they are stored: embedded colour profiles are not applied, as training's usual loaders don't.
Training evaluates through this very code, so there is no second implementation to differ from. Pillow and NumPy only.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .manifest import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

    Encoded = str | Path | bytes | bytearray | memoryview
    Picture = Encoded | Image.Image | NDArray[Any]

Pixels = NDArray[np.uint8]
_ACCEPTED = "a path, encoded bytes, a PIL image or a uint8 array (H, W), (H, W, 1) or (H, W, 3)"

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's decoders that are let near a user's bytes; of several pictures in a file, the first is taken."""

WHITE_16 = 65535
TILE = 2048
"""Pixels along each side of what is laid on white at once."""
STRANGERS = (
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "SVG or other XML"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC/HEIF"),
    (4, b"ftypmi", "HEIC/HEIF"),
    (4, b"ftypms", "HEIC/HEIF"),
)
"""Formats that are not accepted, by the bytes at a place near their beginning."""


@dataclass(frozen=True)
class ImageLimits:
    """What a picture may cost; checked on the header, before anything is decoded."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000

    def check(self, size: tuple[int, int], name: str) -> None:
        """Raise ImageError where (width, height) has too many pixels."""
        width, height = size
        if width * height > self.max_pixels:
            raise ImageError(
                f"{name} has {width} x {height} pixels, at most {self.max_pixels:,} are accepted: shrink or crop it"
            )


DEFAULT_LIMITS = ImageLimits()


def prepare(
    source: Picture,
    preprocessing: Preprocessing,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Pixels:
    """Turn one picture into uint8 (H, W, C), C-contiguous.

    An array is taken as RGB or grey pixels; one that already has the shape (H, W, C) asked for is not touched.
    Raises ImageError for what can't be decoded or is outside the limits.
    """
    if isinstance(source, np.ndarray):
        if source.dtype == np.uint8 and source.shape == preprocessing.shape:
            return np.ascontiguousarray(source)
        image = _from_array(source)
    else:
        image = decode(source, limits)
    with _converting(image.size, image.mode, preprocessing.mode):
        image = _in_mode(image, preprocessing.mode)  # what was decoded goes here, not after the resizing
        return _pixels(_framed(image, preprocessing, limits))


def upright(
    source: Encoded | Image.Image, mode: Literal["RGB", "L"], limits: ImageLimits = DEFAULT_LIMITS
) -> Image.Image:
    """What `prepare` resizes: the whole picture, turned by its EXIF orientation and in this mode. Raises ImageError."""
    image = decode(source, limits)
    with _converting(image.size, image.mode, mode):
        return _in_mode(image, mode)


def decode(source: Encoded | Image.Image, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode a picture whole and turn it upright by its EXIF orientation. Raises ImageError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(source, Image.Image):
        name, data = "the picture", b""
    else:
        name, data = _encoded(source, limits)
    try:
        image = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(data), formats=FORMATS)
        limits.check(image.size, name)
        image.load()
        if image is source:
            return ImageOps.exif_transpose(image)
        ImageOps.exif_transpose(image, in_place=True)  # else it would copy what is upright already
        return image
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"there is no memory left to decode {name}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is {_stranger(data)} ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsing of hostile bytes trips on
        raise ImageError(f"{name} is damaged and can't be decoded: {error}") from error


def _encoded(source: Encoded, limits: ImageLimits) -> tuple[str, bytes]:
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        name, size = "the picture", len(data)
    elif isinstance(source, str | Path):
        path = Path(source)
        name = str(path)
        try:
            size = path.stat().st_size
            data = path.read_bytes() if size <= limits.max_bytes else b""
        except OSError as error:
            raise ImageError(f"can't read {name}: {error.strerror or error}") from error
        except ValueError as error:  # a NUL in the path
            raise ImageError(f"can't read {name!r}: {error}") from error
    else:
        raise ImageError(f"expected {_ACCEPTED}, found {type(source).__name__}")
    if size > limits.max_bytes:
        raise ImageError(f"{name} has {size:,} bytes, at most {limits.max_bytes:,} are accepted")
    if size == 0:
        raise ImageError(f"{name} is empty")
    return name, data


def _stranger(data: bytes) -> str:
    start = data[:16].lstrip() if data[:1].isspace() else data[:16]
    for place, mark, kind in STRANGERS:
        if start[place:].startswith(mark):
            return f"{kind}, which is not accepted: convert it to a known format"
    return "not a picture of a known format"


def _from_array(array: NDArray[Any]) -> Image.Image:
    from PIL import Image

    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not (grey or colour) or 0 in array.shape:
        raise ImageError(f"expected {_ACCEPTED}, found an array of {array.dtype} {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


@contextmanager
def _converting(size: tuple[int, int], mode: str, wanted: str) -> Iterator[None]:
    """Tell what goes wrong with a picture of this size and mode; the picture itself is not kept alive by it."""
    try:
        yield
    except MemoryError as error:
        raise ImageError(f"there is no memory left for a picture of {_shown(size)} pixels") from error
    except ValueError as error:  # Pillow's word for a mode that it can't convert
        raise ImageError(f"pixels of mode {mode} can't be made {wanted}: {error}") from error


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Bring any of Pillow's modes to RGB or L; transparency is laid on white, 16 bits are scaled to 8."""
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(image))
    elif image.mode == "F":
        raise ImageError("a picture of floating-point pixels has no defined white: convert it to 8 or 16 bits")
    elif image.has_transparency_data:
        return _on_white(image, mode)
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image, mode: str) -> Image.Image:
    """A picture with transparency laid on white, in this mode.

    Tile by tile: four channels of the whole picture, of white and of both together would be held at once.
    """
    from PIL import Image

    width, height = image.size
    laid = Image.new(mode, image.size)
    for top, left in product(range(0, height, TILE), range(0, width, TILE)):
        tile = image.crop((left, top, min(left + TILE, width), min(top + TILE, height)))
        if tile.mode != "RGBA":
            tile = tile.convert("RGBA")
        if tile.getchannel("A").getextrema() != (255, 255):
            tile = Image.alpha_composite(Image.new("RGBA", tile.size, "white"), tile)
        laid.paste(tile.convert(mode), (left, top))
    return laid


def _eight_bits(image: Image.Image) -> Pixels:
    """Grey levels of 16 bits as 8 (H, W), the one that a PNG may name as transparent as white."""
    values = np.asarray(image)  # 16 or 32 bits, as they are: a picture may hold many of them
    if values.min() < 0 or values.max() > WHITE_16:
        raise ImageError(
            f"a picture of grey levels from {values.min():,} to {values.max():,} has no defined white: "
            "convert it to 8 or 16 bits"
        )
    levels = np.empty(values.shape, np.uint8)
    np.floor_divide(values, 257, out=levels, casting="unsafe")  # at most 255, as was just seen
    if isinstance(transparent := image.info.get("transparency"), int):
        levels[values == transparent] = 255
    return levels


def _framed(image: Image.Image, preprocessing: Preprocessing, limits: ImageLimits) -> Image.Image:
    """Resize, and crop where the aspect ratio is kept: a sliver of few pixels may then become very long."""
    from PIL import Image

    height, width = preprocessing.height, preprocessing.width
    resample = Image.Resampling[preprocessing.resample.upper()]
    if preprocessing.resize == "exact":
        return image if image.size == (width, height) else image.resize((width, height), resample)
    shorter = preprocessing.resize_to or max(height, width)
    # Rounding down, and the offsets below, are torchvision's Resize and CenterCrop, so that users' models see the same.
    size = (image.width * shorter // min(image.size), image.height * shorter // min(image.size))
    if image.size != size:
        limits.check(size, f"a picture of {_shown(image.size)} pixels, resized to a shorter side of {shorter},")
        image = image.resize(size, resample)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _pixels(image: Image.Image) -> Pixels:
    pixels = np.asarray(image, np.uint8)
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[:, :, np.newaxis])
