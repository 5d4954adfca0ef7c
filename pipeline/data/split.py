"""Train, validation and test: stratified, seeded, never overlapping, the same on every machine.

Within a class the order is by SHA-256 of seed and id, not by a random generator: it depends neither on the file system
nor on a library's version, and a new picture moves no other one by more than one place in it.

Parts that the data set has of its own are taken as they are. One that it lacks is drawn from the pictures that are in
no part; where all are in one, from its train part: MNIST has its own test part, and validation is a share of the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import get_args

import numpy as np

from trueport.runtime.errors import UsageError

from .dataset import Dataset, Indices, Part, shortened

Members = dict[Part, list[int]]


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
    """Divide the data by the shares `validation` and `test`, class by class; train takes the rest.

    A share is not needed for a part that the data set has of its own, and is of what is left where it has another.
    Raises UsageError for shares that leave no training data, for a class too small to be in all parts that are drawn,
    and for one that is in train or test of the data's own parts not at all.
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise UsageError(
            f"validation and test must be positive and leave something to train on, found {validation} + {test}"
        )
    parts, left = _own(dataset)
    shares: dict[Part, float] = {"test": test, "validation": validation}
    shares = {part: share for part, share in shares.items() if not parts[part]}
    left.sort(key=lambda index: _rank(f"split {seed}", dataset.ids[index]))
    draw = _drawn_by_class if dataset.task == "classification" else _drawn_by_labels
    for part, members in draw(dataset, left, shares).items():
        parts[part] += members
    if not all(parts.values()):
        raise _too_small(dataset.name, f"{len(dataset)} pictures", shares)
    _refuse_absent(dataset, parts)
    return Split(
        train=_ascending(parts["train"]),
        validation=_ascending(parts["validation"]),
        test=_ascending(parts["test"]),
        fingerprint=_fingerprint(dataset, parts),
    )


def _own(dataset: Dataset) -> tuple[Members, list[int]]:
    """The data set's own parts, and what is left to draw the others from."""
    own: Members = {part: [] for part in get_args(Part)}
    left: list[int] = []
    for index, part in enumerate(dataset.parts):
        (left if part is None else own[part]).append(index)
    if not left and not (own["validation"] and own["test"]):
        left, own["train"] = own["train"], []
    return own, left


def _drawn_by_class(dataset: Dataset, left: list[int], shares: dict[Part, float]) -> Members:
    """Of each class the first go to test, the next to validation, the rest to train; `left` is in order of rank."""
    drawn: Members = {"test": [], "validation": [], "train": []}
    of_class: dict[int, list[int]] = {label: [] for label in range(len(dataset.classes))}
    for index in left:
        of_class[int(dataset.labels[index])].append(index)
    for label, members in of_class.items():
        counts = {part: max(1, round(len(members) * share)) for part, share in shares.items()}
        if left and counts and sum(counts.values()) >= len(members):
            beside = " beside the data's own parts" if len(left) < len(dataset) else ""
            raise _too_small(
                f"the class {dataset.classes[label]} of {dataset.name}", f"{len(members)} pictures{beside}", shares
            )
        counts["train"] = len(members) - sum(counts.values())
        remaining = iter(members)
        for part, count in counts.items():
            drawn[part] += islice(remaining, count)
    return drawn


def _drawn_by_labels(dataset: Dataset, left: list[int], shares: dict[Part, float]) -> Members:
    """Iterative stratification: the rarest label first, each picture to the part that lacks most of that label.

    Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-label Data (2011).
    https://doi.org/10.1007/978-3-642-23808-6_10
    """
    names: list[Part] = [*shares, "train"]
    share = np.array([*shares.values(), 1 - sum(shares.values())])
    labels = dataset.labels[left].astype(np.int64)  # (rows, K), rows in order of rank
    room = share * len(left)  # pictures that each part still has to get
    wanted = np.maximum(share[:, None] * labels.sum(axis=0), 1)  # (parts, K), of rare labels one each where it can be
    remaining = labels.sum(axis=0)  # (K,)
    open_rows = np.ones(len(left), bool)
    drawn: Members = {part: [] for part in names}

    def give(row: int, part: int) -> None:
        drawn[names[part]].append(left[row])
        room[part] -= 1
        wanted[part] -= labels[row]
        remaining[:] -= labels[row]
        open_rows[row] = False

    while remaining.any():
        label = int(np.argmin(np.where(remaining > 0, remaining, len(left) + 1)))
        for row in np.flatnonzero(open_rows & (labels[:, label] == 1)).tolist():
            give(row, max(range(len(names)), key=lambda part: (wanted[part, label], room[part])))
    for row in np.flatnonzero(open_rows).tolist():
        give(row, int(np.argmax(room)))
    return drawn


def _refuse_absent(dataset: Dataset, parts: Members) -> None:
    if dataset.task == "multilabel" and parts["validation"] and not dataset.labels[parts["validation"]].any():
        raise UsageError(
            f"no picture in the validation part of {dataset.name} has a label, so that no epoch could be chosen by it: "
            "add pictures there, or have the parts drawn"
        )
    for part in ("train", "test"):
        labels = dataset.labels[np.array(parts[part], np.int64)]
        if dataset.task == "classification":
            counts = np.bincount(labels, minlength=len(dataset.classes))
        else:
            counts = labels.sum(axis=0)
        if absent := [name for name, count in zip(dataset.classes, counts, strict=True) if not count]:
            raise UsageError(
                f"no picture of {shortened(absent)} is in the {part} part of {dataset.name}: "
                "add pictures there, leave the class out, or have the parts drawn"
            )


def _too_small(what: str, has: str, shares: dict[Part, float]) -> UsageError:
    told = " and ".join(f"{part} ({share})" for part, share in reversed(shares.items()))
    parts = f"train, {told}" if len(shares) > 1 else f"train and {told}"
    return UsageError(f"{what} has {has}, too few for {parts} to have one each: add pictures or leave the class out")


def _rank(salt: str, sample: str) -> bytes:
    # An id is a file's name: on POSIX any bytes, which Python holds as surrogates where they are not UTF-8.
    return hashlib.sha256(f"{salt}\n{sample}".encode("utf-8", "surrogatepass")).digest()


def _ascending(indices: Iterable[int]) -> Indices:
    return np.array(sorted(indices), dtype=np.int64)


def _fingerprint(dataset: Dataset, parts: Members) -> str:
    part_of = {index: part for part, members in parts.items() for index in members}
    lines = [f"{part_of[index]} {sample!r}" for index, sample in enumerate(dataset.ids)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
