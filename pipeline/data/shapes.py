"""Ten shapes in colour, rendered: 10,000 pictures of 256 x 256 pixels, enough to exercise nets for 224 x 224.

Neither colour, place, size nor direction tells the class: shapes and grounds are painted at random in colours that
differ, shapes are turned and stretched, grounds are flat, sloping, striped, chequered or cloudy, and strokes lie about.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .rendered import Rendered
from .rendering import (
    Colour,
    Field,
    Stream,
    axes,
    clouds,
    coverage,
    disc,
    linear,
    mixed,
    pentagram,
    pixels_from_planes,
    planes,
    polygon,
    segments,
)

PICTURES = 10_000
REVISION = "5c8039a4dcd220acd10fe1e970f251b16b958430d1fbe94163c7bb57b397a3b3"
"""`revision_of` this file's pictures for seed 0: to be renewed with every change of what is drawn."""
SIDE = 256
"""Pixels, both ways."""
REACH = 1.2
"""No shape extends farther from its centre, in units of its radius."""
CONTRAST = 180
"""The least sum of the differences of red, green and blue between a shape and its ground."""


def _corners(count: int, radius: float = 1.0) -> list[tuple[float, float]]:
    """Of a regular polygon, the first at the top, clockwise on the screen; rounded, as sines differ in the last bit."""
    angles = [2 * math.pi * corner / count for corner in range(count)]
    return [(round(radius * math.sin(angle), 9), round(-radius * math.cos(angle), 9)) for angle in angles]


def _box(x: Field, y: Field, width: float, height: float) -> Field:
    return np.maximum(np.abs(x) - np.float32(width / 2), np.abs(y) - np.float32(height / 2))


def _arrow(x: Field, y: Field) -> Field:
    head = polygon(x, y, [(0, -1.1), (0.85, 0), (-0.85, 0)])
    return np.minimum(head, _box(x, y - np.float32(0.45), 0.6, 1.1))


def _crescent(x: Field, y: Field) -> Field:
    return np.maximum(disc(x, y, (0, 0), 1), -disc(x, y, (0.5, 0), 0.8))


def _cross(x: Field, y: Field) -> Field:
    return np.minimum(_box(x, y, 2, 0.66), _box(x, y, 0.66, 2))


def _heart(x: Field, y: Field) -> Field:
    lobes = disc(np.abs(x), y, (0.48, -0.36), 0.56)
    # The long sides touch the lobes.
    body = polygon(x, y, [(0, -0.5), (0.48, -0.36), (0.911, -0.003), (0, 1.1), (-0.911, -0.003), (-0.48, -0.36)])
    return np.minimum(lobes, body)


SHAPES: dict[str, Callable[[Field, Field], Field]] = {
    "arrow": _arrow,
    "crescent": _crescent,
    "cross": _cross,
    "disc": lambda x, y: disc(x, y, (0, 0), 0.95),
    "heart": _heart,
    "hexagon": lambda x, y: polygon(x, y, _corners(6, 1.05)),
    "ring": lambda x, y: np.abs(disc(x, y, (0, 0), 0.8)) - np.float32(0.2),
    "square": lambda x, y: _box(x, y, 1.6, 1.6),
    "star": lambda x, y: pentagram(x, y, _corners(5, 1.15)),
    "triangle": lambda x, y: polygon(x, y, _corners(3, 1.15)),
}
"""Distance to the outline of each class, around (0, 0) and in units of the shape's radius."""


class Shapes(Rendered):
    """Ten classes, 1,000 pictures each, uint8 (256, 256, 3)."""

    grey = False

    def __init__(self, name: str = "shapes", *, seed: int = 0) -> None:
        super().__init__(name, list(SHAPES), PICTURES, revision=REVISION, seed=seed)

    def drawn(self, label: int, stream: Stream) -> NDArray[np.uint8]:
        """A new picture of a class."""
        return scene(self.classes[label], stream)


def scene(shape: str, stream: Stream) -> NDArray[np.uint8]:
    """Draw one picture of the shape, uint8 (256, 256, 3)."""
    paint, ground, second = _colours(stream)
    picture = mixed(planes(ground), planes(second), _texture(stream))
    for _ in range(stream.below(4)):
        _draw_stroke(picture, stream)
    _draw_shape(picture, shape, paint, stream)
    grain = stream.noise(SIDE, SIDE)
    grain *= np.float32(stream.uniform(1, 14))
    picture *= _light(stream)
    picture += grain
    return pixels_from_planes(picture)


def _colours(stream: Stream) -> tuple[Colour, Colour, Colour]:
    """A shape's colour and two of its ground, each far enough from the shape's."""
    while True:
        paint, ground, second = ([stream.uniform(10, 245) for _ in range(3)] for _ in range(3))
        if min(_contrast(paint, ground), _contrast(paint, second)) >= CONTRAST:
            return paint, ground, second


def _contrast(one: Colour, other: Colour) -> float:
    return sum(abs(first - second) for first, second in zip(one, other, strict=True))


def _texture(stream: Stream) -> Field:
    """How much of the ground's second colour shows (H, W), 0 to 1."""
    kind, strength = stream.below(5), np.float32(stream.uniform(0.2, 0.9))
    if kind == 0:
        share, strength = clouds(stream, SIDE, SIDE, 3), np.float32(0.1)  # nearly flat
    elif kind == 1:
        share = clouds(stream, SIDE, SIDE, 2 + stream.below(10))
    elif kind == 2:
        share = _slope(stream)
    else:
        share = _bands(stream, crossed=kind == 4)
    share *= strength
    return share


def _slope(stream: Stream) -> Field:
    """From 0 on one side to 1 on the other."""
    x, y = axes(SIDE, SIDE)
    right, down = stream.direction()
    slope = linear(x, y, right / SIDE, down / SIDE, 0.5 - (right + down) / 2)
    return np.clip(slope, 0, 1, out=slope)


def _bands(stream: Stream, *, crossed: bool) -> Field:
    """Stripes, or the squares of a board where two sets of them cross."""
    x, y = axes(SIDE, SIDE)
    right, down = stream.direction()
    pitch = stream.uniform(14, 60)  # pixels
    stripes = _wave(linear(x, y, right / pitch, down / pitch, 0), pitch)
    if not crossed:
        return stripes
    stripes -= _wave(linear(x, y, -down / pitch, right / pitch, 0), pitch)
    return np.abs(stripes, out=stripes)


def _wave(phase: Field, pitch: float) -> Field:
    """Bands of 0 and 1, one of each while the phase grows by 1 in `pitch` pixels; their edges are a pixel wide."""
    edge: Field = phase - np.floor(phase)
    edge -= np.float32(0.5)
    np.abs(edge, out=edge)
    edge -= np.float32(0.25)
    edge *= np.float32(-pitch)
    return coverage(edge)


def _window(centre: tuple[float, float], reach: float) -> tuple[slice, slice, Field, Field]:
    """The part of the picture that lies no farther from `centre` than `reach`, and its coordinates."""
    left, top = (max(0, math.floor(place - reach)) for place in centre)
    right, bottom = (min(SIDE, math.ceil(place + reach)) for place in centre)
    x, y = axes(bottom - top, right - left, top, left)
    return slice(top, bottom), slice(left, right), x, y


def _draw_stroke(picture: Field, stream: Stream) -> None:
    """A short line of any colour."""
    length, width = stream.uniform(8, 50), stream.uniform(2, 6)
    x0, y0 = stream.uniform(0, SIDE), stream.uniform(0, SIDE)
    right, down = stream.direction()
    ends = np.array([[x0, y0, x0 + right * length, y0 + down * length]], np.float32)
    rows, columns, x, y = _window((x0, y0), length + width)
    share = coverage(segments(x, y, ends) - np.float32(width / 2))
    colour = planes([stream.uniform(0, 255) for _ in range(3)])
    picture[:, rows, columns] = mixed(picture[:, rows, columns], colour, share)


def _draw_shape(picture: Field, shape: str, paint: Colour, stream: Stream) -> None:
    """The shape, turned, stretched by up to an eighth and wholly inside; its paint may fade to one side."""
    radius = stream.uniform(0.24, 0.38) * SIDE
    stretch = stream.uniform(0.88, 1.0)
    reach = radius * REACH
    centre = (stream.uniform(reach, SIDE - reach), stream.uniform(reach, SIDE - reach))
    right, down = stream.direction()
    rows, columns, x, y = _window(centre, reach + 1)
    along = linear(x, y, right / radius, down / radius, -(right * centre[0] + down * centre[1]) / radius)
    aside = linear(x, y, -down / radius, right / radius, (down * centre[0] - right * centre[1]) / radius)
    share = coverage(SHAPES[shape](along, aside * np.float32(1 / stretch)) * np.float32(radius))
    fade = along * np.float32(stream.uniform(0, 25))
    picture[:, rows, columns] = mixed(picture[:, rows, columns], planes(paint) + fade, share)


def _light(stream: Stream) -> Field:
    """How bright each pixel is lit (H, W): a level, and a slope across the picture."""
    x, y = axes(SIDE, SIDE)
    level = stream.uniform(0.8, 1.1)
    right, down = stream.direction()
    slope = stream.uniform(0, 0.4)
    return linear(x, y, right * slope / SIDE, down * slope / SIDE, level - (right + down) * slope / 2)
