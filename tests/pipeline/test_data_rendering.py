"""What rendered pictures are drawn with, against brute force: distances, coverage, blur, random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from trueport.pipeline.data.rendering import (
    Field,
    Stream,
    axes,
    blurred,
    clouds,
    coverage,
    disc,
    grey_from_pixels,
    mixed,
    pentagram,
    pixels_from_planes,
    planes,
    pnm_from_pixels,
    polygon,
    segments,
)
from trueport.runtime.preprocessing import decode

CORNERS = [(10.0, 8.0), (50.0, 14.0), (44.0, 52.0), (16.0, 40.0)]
TIPS = [
    (round(32 + 30 * math.sin(k * math.tau / 5), 6), round(32 - 30 * math.cos(k * math.tau / 5), 6)) for k in range(5)
]
PENTAGRAM_AREA = 5 * 30**2 * math.cos(math.radians(72)) / math.cos(math.radians(36)) * math.sin(math.radians(36))


def shoelace(corners: list[tuple[float, float]]) -> float:
    pairs = zip(corners, [*corners[1:], corners[0]], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2


@pytest.mark.parametrize(
    ("outline", "area"),
    [
        (lambda x, y: disc(x, y, (30.3, 33.1), 20), math.pi * 400),
        (lambda x, y: polygon(x, y, CORNERS), shoelace(CORNERS)),
        (lambda x, y: pentagram(x, y, TIPS), PENTAGRAM_AREA),
        (lambda x, y: segments(x, y, np.array([[20, 20, 40, 35]], np.float32)) - 5, 25 * 10 + math.pi * 25),
    ],
    ids=["disc", "polygon", "pentagram", "segment"],
)
def test_the_sum_of_a_shape_s_coverage_is_its_area(outline: Callable[[Field, Field], Field], area: float) -> None:
    share = coverage(outline(*axes(64, 64)))
    assert share.shape == (64, 64)
    assert share.dtype == np.float32
    assert float(share.sum(dtype=np.float64)) == pytest.approx(area, rel=0.005)


def test_the_distance_to_segments_is_that_to_the_nearest_of_their_points() -> None:
    ends = np.array([[3, 4, 30, 9], [30, 9, 12, 28], [5, 25, 5, 25]], np.float32)
    share = np.linspace(0, 1, 4001)[:, np.newaxis]
    points = np.concatenate([(1 - share) * end[:2] + share * end[2:] for end in ends])  # (P, 2)
    x, y = axes(8, 32, top=10)
    expected = [[np.hypot(points[:, 0] - right, points[:, 1] - down).min() for right in x[0]] for down in y[:, 0]]
    np.testing.assert_allclose(segments(x, y, ends), expected, atol=0.01)


def test_the_distance_to_a_polygon_is_negative_inside_and_exact_beside_its_sides() -> None:
    x, y = axes(20, 20)
    distance = polygon(x, y, [(5, 5), (15, 5), (15, 15), (5, 15)])
    assert distance[10, 10] == -4.5
    assert distance[10, 18] == 3.5
    assert distance[2, 10] == 2.5


def test_a_window_s_coordinates_are_those_of_the_whole() -> None:
    x, y = axes(40, 50)
    part_x, part_y = axes(7, 9, top=12, left=30)
    assert np.array_equal(part_x, x[:, 30:39])
    assert np.array_equal(part_y, y[12:19])


def test_blur_weighs_neighbours_by_1_2_1_and_repeats_the_edge() -> None:
    picture = Stream(5).noise(2, 6, 7)
    padded = np.pad(picture, [(0, 0), (1, 1), (1, 1)], "edge")
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = sum(
        weights[row, column] * padded[:, row : row + 6, column : column + 7] for row in range(3) for column in range(3)
    )
    np.testing.assert_allclose(blurred(picture, 1), expected, atol=1e-6)
    assert blurred(picture, 0) is picture


def test_colours_are_mixed_by_their_share() -> None:
    share = np.array([[0.0, 0.5, 1.0]], np.float32)
    picture = mixed(planes((0, 100, 200)), planes((100, 0, 200)), share)
    assert picture.tolist() == [[[0, 50, 100]], [[100, 50, 0]], [[200, 200, 200]]]


def test_clouds_are_smooth_and_between_0_and_1() -> None:
    hills = clouds(Stream(1), 60, 40, 4)
    assert hills.shape == (60, 40)
    assert 0 <= hills.min() < 0.4
    assert 0.6 < hills.max() <= 1
    assert max(np.abs(np.diff(hills, axis=axis)).max() for axis in (0, 1)) < 0.2


def test_planes_become_interleaved_pixels_rounded_and_clipped() -> None:
    picture = np.array([[[-3.0, 1.6]], [[254.4, 300.0]], [[7.0, 8.0]]], np.float32)
    pixels = pixels_from_planes(picture)
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[[0, 254, 7], [2, 255, 8]]]


def test_grey_is_what_pillow_makes_of_it() -> None:
    from PIL import Image

    pixels = np.frombuffer(np.random.PCG64(3).random_raw(3 * 128).tobytes(), np.uint8).reshape(32, 32, 3)
    difference = grey_from_pixels(pixels).astype(int) - np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 3)])
def test_an_encoded_picture_is_decoded_to_its_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(np.asarray(decode(pnm_from_pixels(pixels))), pixels)


def test_a_stream_follows_from_its_key_alone() -> None:
    first, again, other = Stream(0, 7), Stream(0, 7), Stream(0, 8)
    assert np.array_equal(first.noise(5, 5), again.noise(5, 5))
    assert first.direction() == again.direction()
    assert first.uniform() == again.uniform() != other.uniform()


def test_random_numbers_are_spread_as_they_say() -> None:
    stream = Stream(11)
    values = [stream.uniform(-2, 6) for _ in range(4000)]
    assert -2 <= min(values) < -1.9
    assert 5.9 < max(values) < 6
    assert np.mean(values) == pytest.approx(2, abs=0.15)
    assert {stream.below(5) for _ in range(200)} == set(range(5))
    assert sum(stream.chance(0.3) for _ in range(4000)) == pytest.approx(1200, abs=120)
    directions = np.array([stream.direction() for _ in range(4000)])
    np.testing.assert_allclose((directions**2).sum(1), 1)
    np.testing.assert_allclose(directions.mean(0), 0, atol=0.05)
    noise = stream.noise(3, 100, 101)
    assert noise.shape == (3, 100, 101)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
