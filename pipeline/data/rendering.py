"""What rendered data sets are drawn with: a stream of random numbers, distances to outlines, colour, noise, blur.

A picture is the same to the bit on every machine: it is computed from the raw bits of PCG64, whose stream NumPy keeps,
with nothing but operations that IEEE 754 rounds exactly (+, -, *, /, square root, comparisons, rounding). Sine and
exponential are in the last bit what a machine's library makes of them, sums of floats depend on the order: neither is
used here.

Coordinates are in pixels, x to the right and y down, a pixel's centre lies at (column + 0.5, row + 0.5). A distance is
negative inside. Pictures are planes, float32 (3, H, W) on a scale of 0 to 255, until they are done.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""One number a pixel (H, W), or planes of them."""
Colour = Sequence[float]
"""Red, green, blue, 0 to 255."""

EVEN_BYTES = np.uint64(0x00FF_00FF_00FF_00FF)
NOISE_STEPS = 104.51
"""The standard deviation of the sum of two random bytes."""


class Stream:
    """Random numbers that follow from a key alone, such as (seed, index)."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def below(self, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self.uniform(0, count))

    def chance(self, probability: float) -> bool:
        """True as often as that."""
        return self.uniform() < probability

    def direction(self) -> tuple[float, float]:
        """A unit vector; every angle is equally likely, and none is computed."""
        while True:
            x, y = self.uniform(-1, 1), self.uniform(-1, 1)
            if 0.01 < x * x + y * y < 1:
                length = math.sqrt(x * x + y * y)
                return x / length, y / length

    def noise(self, *shape: int) -> Field:
        """Independent numbers of mean 0 and standard deviation 1, in the triangle between -2.44 and 2.44."""
        count = math.prod(shape)
        words = self._bits.random_raw((count + 3) // 4)
        pairs = (words & EVEN_BYTES) + ((words >> np.uint64(8)) & EVEN_BYTES)  # four sums of two bytes, 0 to 510 each
        values = pairs.astype("<u8", copy=False).view("<u2")[:count].astype(np.float32)
        values -= np.float32(255)
        values *= np.float32(1 / NOISE_STEPS)
        return values.reshape(shape)


def axes(height: int, width: int, top: int = 0, left: int = 0) -> tuple[Field, Field]:
    """Of the pixels' centres x (1, width) and y (height, 1); the first lie in column `left` and row `top`."""
    x = np.arange(left, left + width, dtype=np.float32)[np.newaxis, :] + np.float32(0.5)
    y = np.arange(top, top + height, dtype=np.float32)[:, np.newaxis] + np.float32(0.5)
    return x, y


def linear(x: Field, y: Field, across: float, down: float, offset: float) -> Field:
    """What grows evenly to one side: across * x + down * y + offset (H, W)."""
    result: Field = (np.float32(across) * x + np.float32(offset)) + np.float32(down) * y
    return result


def disc(x: Field, y: Field, centre: tuple[float, float], radius: float) -> Field:
    """Distance to a circle (H, W)."""
    right, down = x - np.float32(centre[0]), y - np.float32(centre[1])
    distance: Field = np.sqrt(right * right + down * down) - np.float32(radius)
    return distance


def half_planes(x: Field, y: Field, corners: Sequence[tuple[float, float]]) -> Iterator[Field]:
    """Distance to each line from one corner to the next (H, W), negative to the right of the way."""
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        length = math.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
        across, down = (y1 - y0) / length, (x0 - x1) / length
        yield linear(x, y, across, down, -(across * x0 + down * y0))


def polygon(x: Field, y: Field, corners: Sequence[tuple[float, float]]) -> Field:
    """Distance to a convex polygon (H, W), exact but outside its corners; they go round clockwise on the screen."""
    return functools.reduce(np.maximum, half_planes(x, y, corners))


def pentagram(x: Field, y: Field, tips: Sequence[tuple[float, float]]) -> Field:
    """Distance to a star of five tips (H, W), given clockwise on the screen.

    Inside are the points that lie inside at least four of the five lines: what counts is the second largest distance.
    """
    lines = half_planes(x, y, [tips[tip] for tip in (0, 2, 4, 1, 3)])
    first, other = next(lines), next(lines)
    largest, distance = np.maximum(first, other), np.minimum(first, other)
    for line in lines:
        distance = np.maximum(distance, np.minimum(largest, line))
        largest = np.maximum(largest, line)
    return distance


def segments(x: Field, y: Field, ends: NDArray[np.float32]) -> Field:
    """Distance to the nearest of many line segments (H, W); ends (S, 4): x0, y0, x1, y1."""
    x0, y0, x1, y1 = ends.T[:, :, np.newaxis, np.newaxis]
    across, down = x1 - x0, y1 - y0
    length2 = np.maximum(across * across + down * down, np.float32(1e-12))
    right, below = x - x0, y - y0
    along = right * (across / length2) + below * (down / length2)  # (S, H, W): where on each the nearest point lies
    np.clip(along, 0, 1, out=along)
    apart = right - along * across
    apart *= apart
    along *= -down
    along += below
    along *= along
    apart += along
    distance: Field = np.sqrt(apart.min(axis=0))
    return distance


def coverage(distance: Field) -> Field:
    """The share of each pixel that lies inside an outline, from the distance of its centre in pixels."""
    share = np.float32(0.5) - distance
    return np.clip(share, 0, 1, out=share)


def planes(colour: Colour) -> Field:
    """A colour as (3, 1, 1)."""
    return np.array(colour, np.float32)[:, np.newaxis, np.newaxis]


def mixed(below: Field, above: Field, share: Field) -> Field:
    """`above` laid on `below` as far as `share` says."""
    result: Field = share * (above - below)
    result += below
    return result


def blurred(picture: Field, passes: int) -> Field:
    """Each pass weighs neighbours along both axes by 1, 2, 1; edges are repeated. One is a deviation of 0.71 pixels."""
    for _ in range(passes):
        for axis in (-2, -1):
            end = picture.shape[axis] - 1
            first, last = picture.take([0], axis), picture.take([end], axis)
            before = np.concatenate([first, picture.take(range(end), axis)], axis)
            after = np.concatenate([picture.take(range(1, end + 1), axis), last], axis)
            picture = (before + after) * np.float32(0.25) + picture * np.float32(0.5)
    return picture


def clouds(stream: Stream, height: int, width: int, cells: int) -> Field:
    """Smooth random hills (H, W) in 0 to 1: a lattice of random heights, interpolated."""
    lattice = np.clip(stream.noise(cells + 1, cells + 1) * np.float32(0.2) + np.float32(0.5), 0, 1)
    for length in (height, width):  # interpolate the first axis, then turn
        place = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / length)
        cell = place.astype(np.int64)
        share = place - cell.astype(np.float32)
        share = (share * share * (np.float32(3) - np.float32(2) * share))[:, np.newaxis]
        lattice = (lattice[cell] + share * (lattice[cell + 1] - lattice[cell])).T
    return np.ascontiguousarray(lattice)


def pixels_from_planes(picture: Field) -> NDArray[np.uint8]:
    """Make uint8 (H, W, 3); what is below 0 or above 255 is clipped. The planes are rounded where they lie."""
    np.clip(picture, 0, 255, out=picture)
    np.rint(picture, out=picture)
    pixels = np.empty((*picture.shape[1:], 3), np.uint8)
    for channel, plane in enumerate(picture):
        pixels[:, :, channel] = plane
    return pixels


def grey_from_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Luma (H, W) of RGB (H, W, 3) by ITU-R BT.601, in whole numbers."""
    red, green, blue = pixels.astype(np.uint32).transpose(2, 0, 1)
    luma = (299 * red + 587 * green + 114 * blue + 500) // 1000
    return np.asarray(luma, np.uint8)


def pnm_from_pixels(pixels: NDArray[np.uint8]) -> bytes:
    """A PPM file of RGB (H, W, 3), a PGM file of grey (H, W): a header and the pixels, the same with every library."""
    magic = "P6" if pixels.ndim == 3 else "P5"
    height, width = pixels.shape[:2]
    return f"{magic}\n{width} {height}\n255\n".encode() + pixels.tobytes()
