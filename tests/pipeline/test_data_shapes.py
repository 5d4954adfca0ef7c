"""Rendered shapes in colour."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from trueport.pipeline.data import open_dataset
from trueport.pipeline.data.rendered import revision_of
from trueport.pipeline.data.rendering import Stream, axes, coverage
from trueport.pipeline.data.shapes import CONTRAST, REACH, REVISION, SHAPES, SIDE, Shapes, _colours

LENS = 0.64 * math.acos((0.25 + 0.64 - 1) / (2 * 0.5 * 0.8)) + math.acos((0.25 + 1 - 0.64) / (2 * 0.5))
LENS -= math.sqrt((-0.5 + 0.8 + 1) * (0.5 + 0.8 - 1) * (0.5 - 0.8 + 1) * (0.5 + 0.8 + 1)) / 2
"""Area that the crescent's two discs have in common."""
AREAS = {
    "arrow": 0.85 * 1.1 + 0.6,
    "crescent": math.pi - LENS,
    "cross": 2 * 2 * 0.66 - 0.66**2,
    "disc": math.pi * 0.95**2,
    "hexagon": 1.5 * math.sqrt(3) * 1.05**2,
    "ring": math.pi * (1 - 0.6**2),
    "square": 1.6**2,
    "star": 5 * 1.15**2 * math.cos(math.radians(72)) / math.cos(math.radians(36)) * math.sin(math.radians(36)),
    "triangle": 0.75 * math.sqrt(3) * 1.15**2,
}


def drawn(shape: str, radius: float = 60.0, side: int = 160) -> np.ndarray:
    """The shape's coverage, upright in the middle."""
    x, y = axes(side, side)
    middle = np.float32(side / 2)
    return coverage(
        SHAPES[shape]((x - middle) / np.float32(radius), (y - middle) / np.float32(radius)) * np.float32(radius)
    )


@pytest.mark.parametrize("shape", AREAS)
def test_a_shape_has_the_area_of_its_formula(shape: str) -> None:
    assert drawn(shape).sum(dtype=np.float64) / 60**2 == pytest.approx(AREAS[shape], rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_stays_within_its_reach(shape: str) -> None:
    x, y = axes(160, 160)
    outside = np.hypot(x - 80, y - 80) > 60 * REACH + 1
    assert not drawn(shape)[outside].any()
    assert drawn(shape).any()


def test_shapes_differ_even_where_they_overlap_most() -> None:
    masks = [drawn(name) > 0.5 for name in SHAPES]
    common = [(one & other).sum() / (one | other).sum() for one, other in itertools.combinations(masks, 2)]
    assert max(common) < 0.95


def test_there_are_as_many_of_each_shape() -> None:
    shapes = open_dataset("shapes")
    assert shapes.name == "shapes"
    assert shapes.classes == tuple(sorted(SHAPES)) == tuple(SHAPES)
    assert not shapes.grey
    assert Counter(shapes.labels.tolist()) == dict.fromkeys(range(10), 1000)


def test_the_pixels_are_the_same_on_every_machine() -> None:
    # Where the drawing was changed on purpose, this is the new REVISION: runs then know that their data is another.
    assert revision_of(Shapes()) == REVISION


def test_a_picture_follows_from_its_seed_and_index_and_no_two_are_the_same() -> None:
    shapes = Shapes()
    pixels = [shapes.pixels(index) for index in range(30)]
    assert {picture.shape for picture in pixels} == {(SIDE, SIDE, 3)}
    assert len({picture.tobytes() for picture in pixels}) == len(pixels)
    assert np.array_equal(np.asarray(shapes.image(29)), pixels[29])
    assert not np.array_equal(Shapes(seed=1).pixels(29), pixels[29])


def test_colour_tells_nothing_of_the_class() -> None:
    """Shape and ground have every colour: the means of classes differ no more than chance has it."""
    shapes = Shapes()
    means = np.array([shapes.pixels(index)[::8, ::8].mean((0, 1)) for index in range(200)]).reshape(20, 10, 3)
    between = means.mean(0).std(0)  # of classes, over 20 pictures each
    chance = means.std((0, 1)) / math.sqrt(20)
    assert (between < 2 * chance).all()


def test_a_shape_stands_out_from_its_ground() -> None:
    for index in range(50):
        paint, *grounds = _colours(Stream(index))
        assert min(np.abs(np.subtract(paint, ground)).sum() for ground in grounds) >= CONTRAST
