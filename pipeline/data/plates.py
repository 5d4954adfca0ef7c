"""Digits of licence plates, rendered: single crops of 50 x 30 pixels, in colour or grey, 6,000 of them.

Light characters on dark plates, as on the blue plates of China: a net that binarises at one threshold and takes the
share of white needs one polarity. The digits are drawn from strokes of our own in the manner of plate fonts, some in
two faces, and vary in weight, width, roundness, place, slant, lighting, dirt, blur and noise; into three crops of ten
a neighbour or the plate's rim comes in. No font is asked: what rasterises fonts differs between machines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .rendered import Rendered
from .rendering import (
    Field,
    Stream,
    axes,
    blurred,
    coverage,
    disc,
    grey_from_pixels,
    linear,
    mixed,
    pixels_from_planes,
    planes,
    segments,
)

PICTURES = 6000
REVISION = "f62f27d297ac3ec62eb177e7bace3ed62679bf26d1698c09ac67f3a808d97fd2"
"""`revision_of` this file's pictures in colour for seed 0: to be renewed with every change of what is drawn."""
HEIGHT, WIDTH = 50, 30
"""Pixels: twice the 25 x 15 of plate recognition's textbooks."""

GLYPH_WIDTH, GLYPH_HEIGHT = 10, 20
"""Of the box of centre lines that the outlines below are written in."""
CURVE_STEPS = 5
"""Straight pieces of a rounded corner."""

OUTLINES: tuple[tuple[str, ...], ...] = (
    ("M 5 0 C 10 0 10 5 L 10 15 C 10 20 5 20 C 0 20 0 15 L 0 5 C 0 0 5 0",),
    ("M 2 5 L 6.5 0 L 6.5 20", "M 2 4 L 6.5 0 L 6.5 20 M 2.5 20 L 10 20"),
    ("M 0 5 C 0 0 5 0 C 10 0 10 5 C 10 8.5 7.5 11.5 L 0 20 L 10 20",),
    (
        "M 0.3 4.5 C 0.3 0 5 0 C 9.6 0 9.6 4.7 C 9.6 9.4 5 9.4 L 4 9.4 "
        "M 5 9.4 C 10 9.4 10 14.7 C 10 20 5 20 C 0 20 0 15",
        "M 0.3 0 L 9.3 0 L 4.2 8 M 4.2 8 C 10 8 10 14 C 10 20 5 20 C 0 20 0 15",
    ),
    ("M 5.5 0 L 0 14.5 L 10 14.5 M 7.2 8.5 L 7.2 20", "M 10 14.5 L 0 14.5 L 7 0 L 7 20"),
    ("M 9.5 0 L 1 0 L 0.5 9 C 2 7.3 5 7.3 C 10 7.3 10 13.5 C 10 20 5 20 C 0 20 0 15.5",),
    (
        "M 7 0 L 1 10 C 0 12 0 14 C 0 20 5 20 C 10 20 10 14 C 10 8.2 5 8.2 C 2 8.2 0.6 11",
        "M 9.7 4.5 C 9.7 0 5 0 C 0 0 0 5 L 0 14.5 C 0 20 5 20 C 10 20 10 14.3 C 10 8.6 5 8.6 C 0 8.6 0 13",
    ),
    ("M 0 0 L 10 0 L 4 20", "M 0 3 L 0 0 L 10 0 C 5 8 4.5 20"),
    (
        "M 5 0 C 9.5 0 9.5 4.7 C 9.5 9.4 5 9.4 C 0.5 9.4 0.5 4.7 C 0.5 0 5 0 "
        "M 5 9.4 C 10 9.4 10 14.7 C 10 20 5 20 C 0 20 0 14.7 C 0 9.4 5 9.4",
    ),
    (
        "M 3 20 L 9 10 C 10 8 10 6 C 10 0 5 0 C 0 0 0 6 C 0 11.8 5 11.8 C 8 11.8 9.4 9",
        "M 0.3 15.5 C 0.3 20 5 20 C 10 20 10 15 L 10 5.5 C 10 0 5 0 C 0 0 0 5.7 C 0 11.4 5 11.4 C 10 11.4 10 7",
    ),
)
"""The faces of each digit as centre lines: M moves the pen, L draws a line, C rounds a corner (corner, then end)."""

PAINTS = (
    ((18, 62, 150), (240, 242, 245)),
    ((22, 22, 26), (238, 238, 234)),
    ((26, 24, 20), (242, 214, 96)),
    ((10, 92, 66), (236, 244, 238)),
    ((134, 26, 32), (244, 236, 232)),
)
"""Plate and character: white on blue, white and yellow on black, white on green and on red."""
DIRT = (96, 84, 70)


@dataclass(frozen=True)
class Face:
    """One way to write a digit."""

    lines: NDArray[np.float64]
    """(L, 2, 2): start, end."""
    curves: NDArray[np.float64]
    """(C, 3, 2): start, corner, end."""


def _face(outline: str) -> Face:
    """What an outline says."""
    lines, curves = [], []
    pen = (0.0, 0.0)
    for command, *numbers in (part.split() for part in re.findall(r"[MLC][^MLC]*", outline)):
        points = list(zip(map(float, numbers[::2]), map(float, numbers[1::2]), strict=True))
        if command == "L":
            lines.append([pen, *points])
        elif command == "C":
            curves.append([pen, *points])
        pen = points[-1]
    return Face(np.array(lines).reshape(-1, 2, 2), np.array(curves).reshape(-1, 3, 2))


FACES = tuple(tuple(map(_face, faces)) for faces in OUTLINES)


class Plates(Rendered):
    """Ten classes named by their digit, 600 pictures each, uint8 (50, 30, 3) or, grey, (50, 30)."""

    def __init__(self, name: str = "plates", *, grey: bool = False, seed: int = 0) -> None:
        self._grey = grey
        super().__init__(name, [str(digit) for digit in range(10)], PICTURES, revision=REVISION, seed=seed)

    @property
    def grey(self) -> bool:
        """Whether this is the grey variant: the same pictures without their colours."""
        return self._grey

    def drawn(self, label: int, stream: Stream) -> NDArray[np.uint8]:
        """A new picture of a digit."""
        pixels = plate_digit(label, stream)
        return grey_from_pixels(pixels) if self._grey else pixels

    def content(self, index: int) -> bytes:
        """What the pixels follow from."""
        return super().content(index) + b" grey" * self._grey


def plate_digit(digit: int, stream: Stream) -> NDArray[np.uint8]:
    """Draw one crop, uint8 (50, 30, 3)."""
    x, y = axes(HEIGHT, WIDTH)
    plate, ink = (planes(colour) for colour in PAINTS[stream.below(len(PAINTS))])
    stroke = stream.uniform(3.4, 5.6)  # pixels
    share = coverage(segments(x, y, _placed(digit, stroke, stream)) - np.float32(stroke / 2))
    if stream.chance(0.3):
        share = np.maximum(share, _strip(x, y, stream))
    picture = mixed(plate, ink, share)
    for _ in range(stream.below(4)):
        picture = mixed(picture, planes(DIRT), _smudge(x, y, stream))
    picture = blurred(picture * _light(x, y, stream), stream.below(7))
    grain = stream.noise(HEIGHT, WIDTH) * np.float32(stream.uniform(2, 16))
    tint = stream.noise(3, HEIGHT, WIDTH) * np.float32(stream.uniform(1, 6))
    return pixels_from_planes(picture + grain + tint)


def _placed(digit: int, stroke: float, stream: Stream) -> Field:
    """A digit's centre lines as segments in pixels (S, 4), with this crop's proportions, slant, turn and place."""
    faces = FACES[digit]
    pieces = _flattened(faces[stream.below(len(faces))], stream.uniform(0.55, 0.75))  # (S, 2 ends, 2)
    width = stream.uniform(0.62, 0.82) * WIDTH - stroke
    height = stream.uniform(0.76, 0.92) * HEIGHT - stroke
    slant, turn = stream.uniform(-0.18, 0.18), stream.uniform(-0.08, 0.08)
    left, top = stream.uniform(-2, 2), stream.uniform(-2.5, 2.5)
    x = (pieces[:, :, 0] / GLYPH_WIDTH - 0.5) * width
    y = (pieces[:, :, 1] / GLYPH_HEIGHT - 0.5) * height
    placed = np.stack([x + y * slant + (WIDTH / 2 + left), y + x * turn + (HEIGHT / 2 + top)], axis=2)
    return placed.reshape(-1, 4).astype(np.float32)


def _flattened(face: Face, roundness: float) -> NDArray[np.float64]:
    """Centre lines as straight pieces (S, 2 ends, 2); roundness: how far a curve reaches into its corner, 0.55 to 1."""
    start, corner, end = (face.curves[:, place, np.newaxis, :] for place in range(3))  # (C, 1, 2)
    near, far = start + roundness * (corner - start), end + roundness * (corner - end)
    share = (np.arange(CURVE_STEPS + 1) / CURVE_STEPS)[:, np.newaxis]  # (steps + 1, 1)
    rest = 1 - share
    curves = rest * rest * (rest * start + 3 * share * near) + share * share * (3 * rest * far + share * end)
    pieces = np.stack([curves[:, :-1], curves[:, 1:]], axis=2)  # (C, steps, 2 ends, 2)
    return np.concatenate([face.lines, pieces.reshape(-1, 2, 2)])


def _strip(x: Field, y: Field, stream: Stream) -> Field:
    """How much of each pixel (H, W) belongs to a neighbour or to the plate's rim that a crop cut too wide lets in."""
    depth = np.float32(stream.uniform(0.5, 2.5))
    distance = (x, WIDTH - x, y, HEIGHT - y)[stream.below(4)] - depth
    return coverage(distance + np.zeros((HEIGHT, WIDTH), np.float32))


def _light(x: Field, y: Field, stream: Stream) -> Field:
    """How bright each pixel is lit (H, W): a level, and a slope across the crop."""
    level = stream.uniform(0.8, 1.12)
    across, down = stream.uniform(-0.22, 0.22) / WIDTH, stream.uniform(-0.22, 0.22) / HEIGHT
    return linear(x, y, across, down, level - across * WIDTH / 2 - down * HEIGHT / 2)


def _smudge(x: Field, y: Field, stream: Stream) -> Field:
    """A soft spot's opacity (H, W)."""
    centre = (stream.uniform(0, WIDTH), stream.uniform(0, HEIGHT))
    radius = stream.uniform(1.5, 4)
    edge = disc(x, y, centre, radius) * np.float32(1 / radius)
    return coverage(edge) * np.float32(stream.uniform(0.3, 0.8))
