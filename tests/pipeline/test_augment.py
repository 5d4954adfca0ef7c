"""What training pictures go through: each operation reaches what it may and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trueport.pipeline.augment import Augmentation, Mixing, Moves, as_probabilities, mixed, moved
from trueport.pipeline.recipe import AugmentSection
from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import prepare

RGB = Preprocessing(height=32, width=32)
GREY = Preprocessing(height=32, width=32, mode="L")


def augmentation(preprocessing: Preprocessing = RGB, seed: int = 0, **section: Any) -> Augmentation:
    return Augmentation(AugmentSection(**section), preprocessing, seed)


def moves(shifts: list[list[int]], flips: list[list[bool]] | None = None) -> Moves:
    turned = np.array(flips) if flips else np.zeros((len(shifts), 2), bool)
    return Moves(np.array(shifts), turned, np.zeros(len(shifts), bool))


def coordinates(width: int, height: int) -> Image.Image:
    """Red tells the column and green the row, in steps of two."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns * 2, rows * 2, rows * 0], axis=2).astype(np.uint8))


def noise(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)


def test_moved_shifts_each_picture_and_repeats_its_border() -> None:
    image = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
    images = image.reshape(1, 3, 3, 1).repeat(3, axis=0).repeat(2, axis=3)
    found = moved(images, moves([[0, 0], [1, 0], [0, -2]]))
    assert found.dtype == np.uint8
    assert found[..., 0].tolist() == found[..., 1].tolist()
    assert found[0, ..., 0].tolist() == image.tolist()
    assert found[1, ..., 0].tolist() == [[1, 2, 3], [1, 2, 3], [4, 5, 6]]
    assert found[2, ..., 0].tolist() == [[3, 3, 3], [6, 6, 6], [9, 9, 9]]


def test_moved_flips_each_picture_by_itself_before_it_is_shifted() -> None:
    image = noise(2, 3, 3)
    flips = [[False, False], [True, False], [False, True], [True, True]]
    found = moved(np.stack([image] * 4), moves([[0, 0]] * 4, flips))
    for one, expected in zip(found, (image, image[::-1], image[:, ::-1], image[::-1, ::-1]), strict=True):
        assert np.array_equal(one, expected)
    both = moved(image[None], moves([[0, 1]], [[False, True]]))
    assert np.array_equal(both[0, :, 1:], image[:, ::-1][:, :-1])


def test_shifts_reach_every_place_allowed_and_no_other() -> None:
    drawn = augmentation(shift_px=1).moves(1, 500)
    assert {tuple(shift) for shift in drawn.shifts.tolist()} == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}
    assert not drawn.flips.any()
    assert not drawn.erased.any()


@pytest.mark.parametrize(("key", "column"), [("vertical_flip", 0), ("horizontal_flip", 1)])
def test_flips_come_as_often_as_asked_for(key: str, column: int) -> None:
    flips = augmentation(RGB, 0, **{key: 0.25}).moves(3, 4000).flips
    assert flips[:, column].mean() == pytest.approx(0.25, abs=0.03)
    assert not flips[:, 1 - column].any()
    assert augmentation(RGB, 0, **{key: 1.0}).moves(3, 50).flips[:, column].all()


def test_moves_differ_by_seed_and_epoch() -> None:
    drawn = {
        (seed, epoch): augmentation(seed=seed, shift_px=3, horizontal_flip=0.5).moves(epoch, 64)
        for seed in (0, 1)
        for epoch in (1, 2)
    }
    assert len({move.shifts.tobytes() for move in drawn.values()}) == 4
    assert len({move.flips.tobytes() for move in drawn.values()}) == 4


def test_a_crop_has_the_area_and_the_ratio_asked_for() -> None:
    picture = coordinates(120, 80)
    augment = augmentation(crop_scale=(0.25, 0.5), crop_ratio=(0.8, 1.25))
    corners = set()
    for row in range(60):
        pixels = np.asarray(augment.cropped(picture, 1, row), float)
        # Of the outer columns and rows of the result, half a pixel of it inside the box.
        left, right = pixels[16, [0, -1], 0] / 2
        top, bottom = pixels[[0, -1], 16, 1] / 2
        width, height = (right - left) * 32 / 31, (bottom - top) * 32 / 31
        assert 0.22 < width * height / (120 * 80) < 0.54
        assert 0.74 < width / height < 1.35
        corners.add((round(left), round(top)))
    assert len(corners) > 30
    assert max(left for left, _ in corners) - min(left for left, _ in corners) > 20


@pytest.mark.parametrize("preprocessing", [RGB, GREY, Preprocessing(height=20, width=32, resample="bicubic")])
def test_a_crop_of_everything_is_the_plain_preprocessing(preprocessing: Preprocessing) -> None:
    picture = Image.fromarray(noise(60, 60, 3)).convert(preprocessing.mode)
    whole = augmentation(preprocessing, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    for row in range(3):
        found = np.asarray(whole.cropped(picture, 1, row)).reshape(preprocessing.shape)
        assert np.array_equal(found, prepare(picture, preprocessing))


@pytest.mark.parametrize("preprocessing", [RGB, GREY])
def test_randaugment_varies_the_picture_and_not_its_shape(preprocessing: Preprocessing) -> None:
    picture = Image.fromarray(noise(32, 32, 3)).convert(preprocessing.mode)
    before = picture.tobytes()
    augment = augmentation(preprocessing, randaugment=2)
    found = [augment.recoloured(picture, 1, row) for row in range(20)]
    assert {(one.size, one.mode) for one in found} == {(picture.size, picture.mode)}
    assert len({one.tobytes() for one in found}) > 10
    assert picture.tobytes() == before
    assert found[7] == augmentation(preprocessing, randaugment=2).recoloured(picture, 1, 7)
    assert found[7] != augmentation(preprocessing, 1, randaugment=2).recoloured(picture, 1, 7)
    assert augmentation(preprocessing).recoloured(picture, 1, 7) is picture


def test_erasing_fills_one_rectangle_with_noise_and_leaves_the_rest() -> None:
    augment = augmentation(erase=1.0)
    places = set()
    for row in range(40):
        pixels = np.zeros(RGB.shape, np.uint8)
        augment.erase(pixels, 1, row)
        rows, columns, _ = np.nonzero(pixels)
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        inside = pixels[top:bottom, left:right]
        assert 0.01 < inside.size / pixels.size < 0.35
        assert np.count_nonzero(inside) > 0.9 * inside.size
        assert np.count_nonzero(inside) == np.count_nonzero(pixels)
        places.add((int(top), int(left)))
    assert len(places) > 20
    assert augmentation(erase=0.25).moves(1, 4000).erased.mean() == pytest.approx(0.25, abs=0.03)


def test_nothing_is_drawn_from_the_generator_of_the_training() -> None:
    augment = augmentation(crop_scale=(0.1, 1.0), randaugment=2, erase=1.0, mixup=0.2, cutmix=1.0, shift_px=2)
    before = torch.get_rng_state()
    augment.moves(1, 8)
    pixels = np.array(augment.recoloured(augment.cropped(coordinates(50, 40), 1, 0), 1, 0))
    augment.erase(pixels, 1, 0)
    augment.mixing(1, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_both_kinds_of_mixing_are_drawn_evenly_and_each_alone_where_asked() -> None:
    assert augmentation().mixing(1, 0) is None
    both = [augmentation(mixup=0.4, cutmix=1.0).mixing(1, batch) for batch in range(200)]
    kinds = [one.box is None for one in both if one is not None]
    assert 70 < sum(kinds) < 130
    assert len(kinds) == 200
    shares = [one.share for one in both if one is not None]
    assert all(0 <= share <= 1 for share in shares)
    assert len(set(shares)) > 150
    for batch in range(10):
        mixup, cutmix = augmentation(mixup=0.4).mixing(1, batch), augmentation(cutmix=0.4).mixing(1, batch)
        assert mixup is not None
        assert mixup.box is None
        assert cutmix is not None
        assert cutmix.box is not None


def test_mixup_is_the_convex_combination_of_pictures_and_targets() -> None:
    images = torch.from_numpy(noise(3, 4, 4, 3))
    targets = as_probabilities(torch.tensor([0, 1, 2]), 3)
    found, shares = mixed(images, targets, 2, torch.tensor([2, 0]), Mixing(0.75, None))
    expected = 0.75 * images[:2].double() + 0.25 * images[[2, 0]].double()
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert shares.tolist() == [[0.75, 0, 0.25], [0.25, 0.75, 0]]


def test_cutmix_pastes_the_box_and_nothing_else() -> None:
    images = torch.from_numpy(noise(2, 4, 6, 1))
    targets = as_probabilities(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]), 3)
    found, shares = mixed(images, targets, 2, torch.tensor([1, 0]), Mixing(0.75, (1, 0, 4, 2)))
    assert found.dtype == torch.uint8
    assert torch.equal(found[0, :2, 1:4], images[1, :2, 1:4])
    kept = torch.ones(4, 6, dtype=torch.bool)
    kept[:2, 1:4] = False
    assert torch.equal(found[:, kept], images[:, kept])
    assert shares.tolist() == [[0.75, 1.0, 0.25], [0.25, 1.0, 0.75]]


def test_the_share_of_cutmix_is_what_of_the_picture_is_left() -> None:
    for batch in range(20):
        mixing = augmentation(cutmix=1.0).mixing(1, batch)
        assert mixing is not None
        assert mixing.box is not None
        left, top, right, bottom = mixing.box
        assert mixing.share == pytest.approx(1 - (right - left) * (bottom - top) / 32**2)
