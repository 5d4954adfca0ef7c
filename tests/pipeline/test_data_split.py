"""The split is stratified, disjoint, and does not depend on anything but ids, classes, shares and seed."""

from __future__ import annotations

import numpy as np
import pytest

from trueport.pipeline.data import Dataset, Split, open_dataset, split
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
