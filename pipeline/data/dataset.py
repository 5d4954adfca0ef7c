"""What every data set offers: classes, sorted ids, labels, encoded pictures and a fingerprint of all of it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import ImageError, UsageError
from trueport.runtime.manifest import Task
from trueport.runtime.preprocessing import decode

if TYPE_CHECKING:
    from PIL import Image

Indices = NDArray[np.int64]
Part = Literal["train", "validation", "test"]
Done = Callable[[int], None]
"""Told how many more pictures are done."""

Result = TypeVar("Result")


class Dataset(ABC):
    """Labelled pictures in an order that does not depend on the file system: ascending by id."""

    def __init__(self, name: str, classes: Sequence[str], ids: Sequence[str], labels: Iterable[int]) -> None:
        self.name = displayed(name)
        self.ignored: tuple[str, ...] = ()
        """Files that lie among the pictures and are none."""
        self.classes = tuple(classes)
        self.ids = tuple(ids)
        self.labels: Indices = np.fromiter(labels, np.int64, count=len(self.ids))
        """Of each picture: its class (N,); for several labels a picture 0 or 1 for each class (N, K)."""
        self.parts: tuple[Part | None, ...] = (None,) * len(self.ids)
        """The part a picture belongs to where the data set has parts of its own; None: the split decides."""
        if list(self.ids) != sorted(set(self.ids)):
            raise ValueError(f"the ids of {name} must be unique and sorted")

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

    def image(self, index: int) -> Image.Image:
        """One picture, decoded and upright. Raises ImageError."""
        return decode(self.encoded(index))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over classes, ids, labels and contents, as 64 hexadecimal digits. Raises UsageError, see `each`."""
        digests = each(self, lambda _, index: hashlib.sha256(self.content(index)).hexdigest(), range(len(self)))
        lines = [f"class {name!r}" for name in self.classes]
        samples = zip(digests, self.labels.tolist(), self.ids, strict=True)
        lines += [f"{digest} {label} {sample!r}" for digest, label, sample in samples]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def each(
    dataset: Dataset, work: Callable[[int, int], Result], indices: Iterable[int], done: Done | None = None
) -> list[Result]:
    """Do `work(position, index)` for each of `indices`, on all cores, and answer in their order.

    Raises one UsageError that names the pictures for which it raised ImageError.
    """
    results: list[Result] = []
    failures: list[tuple[str, ImageError]] = []

    def attempt(position: int, index: int) -> Result | ImageError:
        try:
            return work(position, index)
        except ImageError as error:
            return error

    indices = list(indices)
    with ThreadPoolExecutor() as pool:  # Pillow frees the interpreter while it decodes and resizes
        for index, result in zip(indices, pool.map(attempt, range(len(indices)), indices), strict=True):
            if isinstance(result, ImageError):
                failures.append((dataset.ids[index], result))
            else:
                results.append(result)
            if done is not None:
                done(1)
    if failures:
        raise _bad_pictures(dataset, failures, len(indices))
    return results


def verify(dataset: Dataset, done: Done | None = None) -> None:
    """Decode every picture whole. Raises one UsageError that names those that can't be."""

    def decode_whole(_: int, index: int) -> None:
        dataset.image(index)

    each(dataset, decode_whole, range(len(dataset)), done)


def _bad_pictures(dataset: Dataset, failures: list[tuple[str, ImageError]], total: int) -> UsageError:
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
