"""Train, validation and test: stratified, seeded, never overlapping, the same on every machine.

Within a class the order is by SHA-256 of seed and id, not by a random generator: it depends neither on the file system
nor on a library's version, and a new picture moves no other one by more than one place in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trueport.runtime.errors import UsageError

from .dataset import Dataset, Indices


@dataclass(frozen=True)
class Split:
    """Indices into a data set, ascending in each part."""

    train: Indices
    validation: Indices
    test: Indices
    fingerprint: str
    """SHA-256 over every id and its part, as 64 hexadecimal digits."""

    def calibration(self, count: int, seed: int = 0) -> Indices:
        """At most `count` pictures to calibrate quantization with: from train, and from nowhere else."""
        drawn = sorted((_rank(f"calibration {seed}", str(index)), index) for index in self.train.tolist())
        return _ascending(index for _, index in drawn[:count])


def split(dataset: Dataset, validation: float, test: float, seed: int) -> Split:
    """Divide each class by the shares `validation` and `test`; train takes the rest, each part has every class.

    Raises UsageError for shares that leave no training data and for a class too small to be in all three parts.
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise UsageError(
            f"validation and test must be positive and leave something to train on, found {validation} + {test}"
        )
    parts: dict[str, list[int]] = {"test": [], "validation": [], "train": []}
    for label, name in enumerate(dataset.classes):
        members = np.flatnonzero(dataset.labels == label).tolist()
        members.sort(key=lambda index: _rank(f"split {seed}", dataset.ids[index]))
        tested, validated = (max(1, round(len(members) * share)) for share in (test, validation))
        if tested + validated >= len(members):
            raise UsageError(
                f"the class {name} of {dataset.name} has {len(members)} pictures, too few for train, "
                f"validation ({validation}) and test ({test}) to have one each: add pictures or leave the class out"
            )
        parts["test"] += members[:tested]
        parts["validation"] += members[tested : tested + validated]
        parts["train"] += members[tested + validated :]
    return Split(
        train=_ascending(parts["train"]),
        validation=_ascending(parts["validation"]),
        test=_ascending(parts["test"]),
        fingerprint=_fingerprint(dataset, parts),
    )


def _rank(salt: str, sample: str) -> bytes:
    # An id is a file's name: on POSIX any bytes, which Python holds as surrogates where they are not UTF-8.
    return hashlib.sha256(f"{salt}\n{sample}".encode("utf-8", "surrogatepass")).digest()


def _ascending(indices: Iterable[int]) -> Indices:
    return np.array(sorted(indices), dtype=np.int64)


def _fingerprint(dataset: Dataset, parts: dict[str, list[int]]) -> str:
    part_of = {index: part for part, members in parts.items() for index in members}
    lines = [f"{part_of[index]} {sample!r}" for index, sample in enumerate(dataset.ids)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
