"""The split is stratified, disjoint, and does not depend on anything but ids, classes, shares and seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from trueport.pipeline.data import Dataset, Split, open_dataset, split
from trueport.pipeline.data.dataset import Part
from trueport.runtime.errors import UsageError


class Named(Dataset):
    """A data set of names without pictures."""

    grey = True

    def __init__(self, members: dict[str, list[str]]) -> None:
        classes = sorted(members)
        pairs = sorted((sample, label) for label, name in enumerate(classes) for sample in members[name])
        super().__init__("named", classes, [sample for sample, _ in pairs], [label for _, label in pairs])

    def encoded(self, index: int) -> bytes:
        return self.ids[index].encode()


def members(count: int = 40) -> dict[str, list[str]]:
    return {name: [f"{name}/{index:03d}" for index in range(count)] for name in ("cat", "dog")}


def part_of(dataset: Dataset, parts: Split) -> dict[str, str]:
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    return {dataset.ids[index]: name for name, indices in named.items() for index in indices}


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_split_stratified_disjoint_and_whole(seed: int) -> None:
    digits = open_dataset("digits")
    parts = split(digits, 0.1, 0.2, seed)
    together = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(together) == list(range(1797))
    for indices, share in ((parts.train, 0.7), (parts.validation, 0.1), (parts.test, 0.2)):
        assert np.all(np.diff(indices) > 0)
        counts = np.bincount(digits.labels[indices], minlength=10)
        assert np.all(np.abs(counts - share * np.bincount(digits.labels)) <= 1)


def test_the_seed_and_nothing_else_decides() -> None:
    dataset = Named(members())
    first, again, other = (split(dataset, 0.1, 0.2, seed) for seed in (5, 5, 6))
    assert first.fingerprint == again.fingerprint
    assert np.array_equal(first.test, again.test)
    assert first.fingerprint != other.fingerprint
    assert not np.array_equal(first.test, other.test)


def test_the_order_in_which_samples_are_found_does_not_matter() -> None:
    shuffled = {name: list(reversed(ids)) for name, ids in reversed(members().items())}
    one, other = Named(members()), Named(shuffled)
    assert part_of(one, split(one, 0.1, 0.2, 0)) == part_of(other, split(other, 0.1, 0.2, 0))


@pytest.mark.parametrize("new", [f"cat/new{index}" for index in range(8)])
def test_a_new_picture_moves_at_most_neighbours_of_its_own_class(new: str) -> None:
    before, grown = members(), members()
    grown["cat"].append(new)
    one, other = Named(before), Named(grown)
    was, now = part_of(one, split(one, 0.1, 0.2, 0)), part_of(other, split(other, 0.1, 0.2, 0))
    moved = {sample for sample in was if was[sample] != now[sample]}
    assert all(sample.startswith("cat/") for sample in moved)
    assert len(moved) <= 2
    assert {(was[sample], now[sample]) for sample in moved} <= {
        ("test", "validation"),
        ("validation", "test"),
        ("validation", "train"),
        ("train", "validation"),
    }


def test_small_classes_have_a_sample_in_each_part_or_are_refused_by_name() -> None:
    three = split(Named(members(3)), 0.01, 0.01, 0)
    assert [len(three.train), len(three.validation), len(three.test)] == [2, 2, 2]
    with pytest.raises(UsageError, match="the class cat of named has 2 pictures, too few"):
        split(Named(members(2)), 0.1, 0.2, 0)


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.0, 0.2), (0.2, -0.1), (0.9, 0.3)])
def test_shares_that_leave_nothing_are_refused(validation: float, test: float) -> None:
    with pytest.raises(UsageError, match="leave something to train on"):
        split(Named(members()), validation, test, 0)


def test_calibration_comes_from_train_only() -> None:
    parts = split(Named(members()), 0.1, 0.2, 0)
    drawn = parts.calibration(10, seed=1)
    assert len(set(drawn.tolist())) == 10
    assert set(drawn) <= set(parts.train)
    assert np.array_equal(drawn, parts.calibration(10, seed=1))
    assert not np.array_equal(drawn, parts.calibration(10, seed=2))
    assert np.array_equal(parts.calibration(10_000), parts.train)


class Marked(Dataset):
    """Names with labels and parts of their own."""

    grey = True

    def __init__(self, labels: NDArray[np.integer[Any]], parts: Sequence[str | None] | None = None) -> None:
        ids = [f"{index:04d}" for index in range(len(labels))]
        classes = [f"c{index}" for index in range(labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1)]
        super().__init__("marked", classes, ids, labels, cast("Sequence[Part | None] | None", parts))

    def encoded(self, index: int) -> bytes:
        return self.ids[index].encode()


def test_a_test_part_of_its_own_stays_whole_and_the_share_is_of_the_rest() -> None:
    labels = np.arange(100) % 2
    data = Marked(labels, ["test"] * 20 + [None] * 80)
    parts = split(data, 0.1, 0.5, 0)
    assert parts.test.tolist() == list(range(20))
    assert len(parts.validation) == 8
    assert np.bincount(labels[parts.validation]).tolist() == [4, 4]
    as_train = split(Marked(labels, ["test"] * 20 + ["train"] * 80), 0.1, 0.5, 0)
    assert as_train.fingerprint == parts.fingerprint
    assert split(Marked(labels), 0.1, 0.2, 0).fingerprint != parts.fingerprint


def test_a_class_absent_from_train_or_test_is_named() -> None:
    labels = np.array([0, 1, 2, 0, 1, 0, 1, 2])
    with pytest.raises(UsageError, match="no picture of c2 is in the test part of marked: add pictures there"):
        split(Marked(labels, ["train"] * 3 + ["test"] * 2 + ["validation"] * 3), 0.1, 0.2, 0)
    with pytest.raises(UsageError, match="no picture of c2 is in the train part of marked"):
        split(Marked(labels, ["test"] * 3 + ["train"] * 2 + ["validation"] * 3), 0.1, 0.2, 0)
    with pytest.raises(
        UsageError,
        match=r"c2 of marked has 1 pictures beside the data's own parts, too few for train and val.* \(0\.1\) to",
    ):
        split(Marked(labels, ["train"] * 3 + ["test"] * 2 + ["train"] * 2 + ["test"]), 0.1, 0.2, 0)


def several(count: int = 1000, seed: int = 0) -> NDArray[np.uint8]:
    """Labels from common to rare, one in ten pictures without any."""
    random = np.random.default_rng(seed)
    labels = random.random((count, 6)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0.01]
    labels[random.random(count) < 0.1] = False
    return labels.astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_are_spread_as_the_shares_say(seed: int) -> None:
    labels = several(seed=seed)
    parts = split(Marked(labels), 0.1, 0.2, seed)
    together = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(together) == list(range(1000))
    for indices, share in ((parts.train, 0.7), (parts.validation, 0.1), (parts.test, 0.2)):
        assert abs(len(indices) - share * 1000) <= 3
        expected = share * labels.sum(axis=0)
        assert np.all(np.abs(labels[indices].sum(axis=0) - expected) <= np.maximum(2, 0.03 * expected))
    again = split(Marked(labels), 0.1, 0.2, seed)
    assert again.fingerprint == parts.fingerprint
    assert split(Marked(labels), 0.1, 0.2, seed + 1).fingerprint != parts.fingerprint


def test_a_rare_label_is_in_train_and_test_or_refused_by_name() -> None:
    labels = np.zeros((50, 2), np.uint8)
    labels[:, 0] = 1
    labels[[3, 30], 1] = 1
    for seed in range(20):
        parts = split(Marked(labels), 0.1, 0.1, seed)
        assert labels[parts.train, 1].sum() == labels[parts.test, 1].sum() == 1
    labels[30, 1] = 0
    with pytest.raises(UsageError, match="no picture of c1 is in the test part"):
        split(Marked(labels), 0.1, 0.2, 0)


def test_a_validation_part_without_any_label_is_refused() -> None:
    labels = np.ones((30, 2), np.uint8)
    labels[20:] = 0
    parts: tuple[Part, ...] = ("train", "test", "validation")
    own = [part for part in parts for _ in range(10)]
    with pytest.raises(UsageError, match="no picture in the validation part of marked has a label"):
        split(Marked(labels, own), 0.1, 0.2, 0)


def test_too_few_pictures_for_three_parts_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"marked has 2 pictures, too few for train, validation \(0\.1\) and test \(0\.2\)"
    ):
        split(Marked(np.ones((2, 1), np.uint8)), 0.1, 0.2, 0)


def test_labels_that_make_no_sense_are_refused() -> None:
    for labels in (np.full((3, 2), 2), np.array([0, -1])):
        with pytest.raises(ValueError, match="expected labels"):
            Marked(labels)
    with pytest.raises(ValueError, match="parts one for each picture"):
        Marked(np.array([0, 1]), ["train"])
