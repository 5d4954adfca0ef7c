"""What every data set offers: classes, sorted ids, labels, encoded pictures and a fingerprint of all of it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import ImageError, UsageError
from trueport.runtime.manifest import Task
from trueport.runtime.preprocessing import decode

if TYPE_CHECKING:
    from PIL import Image

Indices = NDArray[np.int64]
Labels = NDArray[np.int64] | NDArray[np.uint8]
Part = Literal["train", "validation", "test"]
Done = Callable[[int], None]
"""Told how many more pictures are done."""

Result = TypeVar("Result")
BLOCK = 16
"""Pictures that a thread takes at a time; a task for each would cost more than hashing a small one."""


class Dataset(ABC):
    """Labelled pictures in an order that does not depend on the file system: ascending by id."""

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        ids: Sequence[str],
        labels: Iterable[int] | NDArray[Any],
        parts: Sequence[Part | None] | None = None,
    ) -> None:
        self.name = displayed(name)
        self.ignored: tuple[str, ...] = ()
        """Files that lie among the pictures and are none."""
        self.classes = tuple(classes)
        self.ids = tuple(ids)
        self.labels: Labels = _labels(labels, len(self.ids), len(self.classes))
        """Of each picture: its class (N,); for several labels a picture 0 or 1 for each class (N, K)."""
        self.parts: tuple[Part | None, ...] = (None,) * len(self.ids) if parts is None else tuple(parts)
        """The part a picture belongs to where the data set has parts of its own; None: the split decides."""
        self._fingerprint = ""
        if any(not first < second for first, second in pairwise(self.ids)):
            raise ValueError(f"the ids of {name} must be unique and sorted")
        if len(set(self.classes)) != len(self.classes) or len(self.parts) != len(self.ids):
            raise ValueError(f"the classes of {name} must be unique, and its parts one for each picture")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def task(self) -> Task:
        """One label a picture, or several."""
        return "classification" if self.labels.ndim == 1 else "multilabel"

    @property
    @abstractmethod
    def grey(self) -> bool:
        """Whether all of the pictures are grey."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """One picture as a file of a common format holds it. Raises ImageError where it can't be read."""

    def content(self, index: int) -> bytes:
        """What of a picture enters the fingerprint."""
        return self.encoded(index)

    def source(self, index: int) -> bytes | Image.Image:
        """One picture as `prepare` takes it: encoded, or its pixels where there is no file. Raises ImageError."""
        return self.encoded(index)

    def image(self, index: int) -> Image.Image:
        """One picture, decoded and upright. Raises ImageError."""
        return decode(self.source(index))

    def digests(self, done: Done | None = None) -> list[str]:
        """SHA-256 of each picture's content. Raises UsageError, see `each`."""
        return each(self, lambda _, index: hashlib.sha256(self.content(index)).hexdigest(), range(len(self)), done)

    @property
    def fingerprint(self) -> str:
        """See `fingerprinted`."""
        return self.fingerprinted()

    def fingerprinted(self, done: Done | None = None) -> str:
        """SHA-256 over classes, ids, labels and contents, as 64 hexadecimal digits; computed once.

        The parts a data set has of its own are in the split's fingerprint. Raises UsageError, see `each`.
        """
        if not self._fingerprint:
            lines = [f"class {name!r}" for name in self.classes]
            samples = zip(self.digests(done), _shown(self.labels), self.ids, strict=True)
            lines += [f"{digest} {label} {sample!r}" for digest, label, sample in samples]
            self._fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return self._fingerprint


def each(
    dataset: Dataset, work: Callable[[int, int], Result], indices: Iterable[int], done: Done | None = None
) -> list[Result]:
    """Do `work(position, index)` for each of `indices`, on all cores, and answer in their order.

    Raises one UsageError that names the pictures for which it raised ImageError.
    """
    results: list[Result] = []
    failures: list[tuple[str, ImageError]] = []
    indices = list(indices)

    def attempt(block: range) -> list[Result | ImageError]:
        found: list[Result | ImageError] = []
        for position in block:
            try:
                found.append(work(position, indices[position]))
            except ImageError as error:
                found.append(error)
        return found

    blocks = [range(start, min(start + BLOCK, len(indices))) for start in range(0, len(indices), BLOCK)]
    with ThreadPoolExecutor() as pool:  # Pillow frees the interpreter while it decodes and resizes
        for block, found in zip(blocks, pool.map(attempt, blocks), strict=True):
            for position, result in zip(block, found, strict=True):
                if isinstance(result, ImageError):
                    failures.append((dataset.ids[indices[position]], result))
                else:
                    results.append(result)
            if done is not None:
                done(len(block))
    if failures:
        raise bad_pictures(dataset, failures, len(indices))
    return results


def _labels(labels: Iterable[int] | NDArray[Any], count: int, classes: int) -> Labels:
    """One class a picture (N,), or a row of 0 and 1 for each (N, K). Raises ValueError for anything else."""
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        marks = np.ascontiguousarray(labels, np.uint8)
        if marks.shape != (count, classes) or marks.max(initial=0) > 1:
            raise ValueError(f"expected labels of 0 and 1, {count} x {classes}, found {labels.shape}")
        return marks
    indices: Indices = np.fromiter(labels, np.int64, count=count)
    if indices.min(initial=0) < 0 or indices.max(initial=0) >= max(classes, 1):
        raise ValueError(f"expected labels from 0 to {classes - 1}, found {indices.min()} to {indices.max()}")
    return indices


def _shown(labels: Labels) -> list[str]:
    """Each picture's class, or its classes between slashes."""
    if labels.ndim == 1:
        return [str(label) for label in labels.tolist()]
    return ["/".join(map(str, np.flatnonzero(row).tolist())) for row in labels]


def verify(dataset: Dataset, done: Done | None = None) -> None:
    """Decode every picture whole. Raises one UsageError that names those that can't be."""

    def decode_whole(_: int, index: int) -> None:
        dataset.image(index)

    each(dataset, decode_whole, range(len(dataset)), done)


def bad_pictures(dataset: Dataset, failures: list[tuple[str, ImageError]], total: int) -> UsageError:
    """The one error for all the pictures that raised ImageError, by their ids."""
    told = shortened([f"{displayed(sample)} ({error})" for sample, error in failures])
    return UsageError(
        f"{len(failures)} of {total} pictures of {dataset.name} can't be used: {told}: "
        "repair them or move them out of the data"
    )


def displayed(name: str) -> str:
    """A file's name as text that UTF-8 and JSON can hold: bytes of it that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def shortened(names: Sequence[str], shown: int = 3) -> str:
    """The first few of many, and how many more there are."""
    more = [f"and {len(names) - shown} more"] if len(names) > shown else []
    return ", ".join([*names[:shown], *more])
