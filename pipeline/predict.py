"""predict: pictures in, labels out; a picture that can't be decoded fails alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from trueport.runtime.errors import ImageError, UsageError
from trueport.runtime.session import Score, Session

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""What is taken from a folder; a file named by itself is tried whatever its suffix."""
STDIN = "-"


class Classified(msgspec.Struct, frozen=True, omit_defaults=True):
    """One picture: its best classes, or why there are none."""

    picture: str
    top: tuple[Score, ...] = ()
    error: str = ""


def predict(session: Session, sources: Iterable[str], top: int = 5) -> Iterator[Classified]:
    """Classify files, folders (recursively, in order of their paths) and `-`, standard input's encoded bytes.

    Raises UsageError for a path that does not exist and a folder without pictures, before anything is classified.
    """
    files = [file for source in sources for file in _files(source)]
    size = session.batcher.limits.max_batch_rows
    for start in range(0, len(files), size):
        yield from _classified(session, files[start : start + size], top)


def _classified(session: Session, files: list[str], top: int) -> Iterator[Classified]:
    rows, errors = {}, {}
    for file in files:
        try:
            rows[file] = session.prepare(sys.stdin.buffer.read() if file == STDIN else file)
        except ImageError as error:
            errors[file] = str(error)
    predictions = session.predictions(session.run(np.stack(list(rows.values()))), top) if rows else []
    answers = dict(zip(rows, predictions, strict=True))
    for file in files:
        yield Classified(file, answers[file].top) if file in answers else Classified(file, error=errors[file])


def _files(source: str) -> list[str]:
    path = Path(source)
    if source == STDIN or path.is_file():
        return [source]
    if not path.is_dir():
        raise UsageError(f"{source} does not exist: expected a picture, a folder of pictures, or - for standard input")
    found = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise UsageError(f"{source} has no pictures: expected files ending in {', '.join(sorted(SUFFIXES))}")
    return found
