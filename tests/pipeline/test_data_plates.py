"""Rendered digits of licence plates."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from trueport.pipeline.data import open_dataset
from trueport.pipeline.data.dataset import Dataset
from trueport.pipeline.data.plates import HEIGHT, REVISION, WIDTH, Plates
from trueport.pipeline.data.rendered import revision_of
from trueport.pipeline.data.rendering import grey_from_pixels


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    """The first pictures."""
    plates = Plates()
    return [plates.pixels(index) for index in range(300)]


@pytest.mark.parametrize("name", ["plates", "plates_grey"])
def test_there_are_as_many_of_each_digit(name: str) -> None:
    plates = open_dataset(name)
    assert plates.name == name
    assert plates.classes == tuple("0123456789")
    assert Counter(plates.labels.tolist()) == dict.fromkeys(range(10), 600)


def test_the_pixels_are_the_same_on_every_machine() -> None:
    # Where the drawing was changed on purpose, this is the new REVISION: runs then know that their data is another.
    assert revision_of(Plates()) == REVISION


def test_a_picture_follows_from_its_seed_and_index(pixels: list[np.ndarray]) -> None:
    plates = Plates()
    assert np.array_equal(plates.pixels(123), pixels[123])
    assert np.array_equal(np.asarray(plates.image(123)), pixels[123])
    assert not np.array_equal(Plates(seed=1).pixels(123), pixels[123])


def test_no_two_pictures_are_the_same(pixels: list[np.ndarray]) -> None:
    assert {picture.shape for picture in pixels} == {(HEIGHT, WIDTH, 3)}
    assert len({picture.tobytes() for picture in pixels}) == len(pixels)


def test_the_grey_variant_is_the_luma_of_the_other(pixels: list[np.ndarray]) -> None:
    grey, colour = open_dataset("plates_grey"), open_dataset("plates")
    assert (grey.grey, colour.grey) == (True, False)
    for index in (0, 17, 298):
        image = grey.image(index)
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), grey_from_pixels(pixels[index]))


def test_the_fingerprint_tells_seeds_and_variants_apart_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Plates, "drawn")
    monkeypatch.setattr(Plates, "__abstractmethods__", frozenset())
    every: list[Dataset] = [Plates(), Plates(grey=True), Plates(seed=1)]
    assert len({plates.fingerprint for plates in every}) == 3
    assert Plates().fingerprint == every[0].fingerprint


def test_characters_are_lighter_than_their_plate(pixels: list[np.ndarray]) -> None:
    """A digit fills the lesser part of its crop, so that what lies above the middle grey is the lesser part too."""
    lighter = [(grey_from_pixels(picture) > 127).mean() for picture in pixels]
    assert min(lighter) > 0.02
    assert max(lighter) < 0.6
    assert 0.2 < np.mean(lighter) < 0.4


def test_digits_differ_more_than_the_pictures_of_one(pixels: list[np.ndarray]) -> None:
    """The nearest mean, of 5 x 5 shares of white, is the own digit's for most: a sanity check, no classifier."""
    white = np.stack([grey_from_pixels(picture) > 127 for picture in pixels])  # (N, 50, 30)
    shares = white.reshape(-1, 5, 10, 5, 6).mean((2, 4)).reshape(-1, 25)
    labels = np.arange(len(pixels)) % 10
    means = np.stack([shares[:200][labels[:200] == digit].mean(0) for digit in range(10)])
    nearest = ((shares[200:, np.newaxis] - means) ** 2).sum(2).argmin(1)
    assert (nearest == labels[200:]).mean() > 0.6
