"""predict: pictures in, labels out; a picture that can't be decoded fails alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

import msgspec
import numpy as np

from trueport.runtime.errors import ImageError, UsageError
from trueport.runtime.machine import available_cores
from trueport.runtime.preprocessing import DEFAULT_LIMITS, Pixels
from trueport.runtime.session import Score, Session

from .data.dataset import displayed
from .data.files import SUFFIXES, files_below, is_picture

STDIN = "-"


class Classified(msgspec.Struct, frozen=True, omit_defaults=True):
    """One picture: its best classes, or why there are none."""

    picture: str
    """Its path; bytes of it that are not UTF-8 are escaped."""
    top: tuple[Score, ...] = ()
    error: str = ""


def predict(session: Session, sources: Iterable[str], top: int = 5, above: float | None = None) -> Iterator[Classified]:
    """Classify files, folders (recursively, in order of their paths) and `-`, standard input's encoded bytes.

    above: only classes of a larger score, perhaps none; 0.5 is what a model of several labels says is in the picture.
    A file that is named is tried whatever its suffix, and may be a pipe; of a folder, hidden files are passed over.
    Raises UsageError for a path that does not exist, a folder without pictures and one that can't be read, before
    anything is classified.
    """
    files = [file for source in sources for file in _files(source)]
    size = session.batcher.limits.max_batch_rows
    with ThreadPoolExecutor(available_cores()) as pool:  # Pillow frees the interpreter while it decodes and resizes
        for start in range(0, len(files), size):
            chunk = files[start : start + size]
            yield from _classified(session, chunk, list(pool.map(partial(_prepared, session), chunk)), top, above)


def _classified(
    session: Session, files: list[str], prepared: list[Pixels | ImageError], top: int, above: float | None
) -> Iterator[Classified]:
    rows = [pixels for pixels in prepared if not isinstance(pixels, ImageError)]
    predictions = iter(session.predictions(session.run(np.stack(rows)), top) if rows else [])
    for file, pixels in zip(files, prepared, strict=True):
        if isinstance(pixels, ImageError):
            yield Classified(displayed(file), error=displayed(str(pixels)))
        else:
            prediction = next(predictions)
            yield Classified(displayed(file), prediction.top if above is None else prediction.above(above))


def _prepared(session: Session, file: str) -> Pixels | ImageError:
    try:
        return session.prepare(file) if Path(file).is_file() and file != STDIN else _from_stream(session, file)
    except ImageError as error:
        return error


def _from_stream(session: Session, file: str) -> Pixels:
    """Of standard input, a pipe or a device, none of which tells its size: no more is read than a picture may have."""
    name = "standard input" if file == STDIN else file
    try:
        if file == STDIN:
            data = _bounded(sys.stdin.buffer)
        else:
            with Path(file).open("rb") as opened:
                data = _bounded(opened)
    except OSError as error:
        raise ImageError(f"can't read {name}: {error.strerror or error}") from error
    if len(data) > DEFAULT_LIMITS.max_bytes:
        raise ImageError(f"{name} has more than {DEFAULT_LIMITS.max_bytes:,} bytes, which is the most that is accepted")
    try:
        return session.prepare(data)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def _bounded(stream: IO[bytes]) -> bytes:
    return stream.read(DEFAULT_LIMITS.max_bytes + 1)


def _files(source: str) -> list[str]:
    path = Path(source)
    if source == STDIN:
        return [source]
    try:
        path.stat()
    except FileNotFoundError as error:
        raise UsageError(
            f"{source} does not exist: expected a picture, a folder of pictures, or - for standard input"
        ) from error
    except OSError as error:
        raise UsageError(f"can't read {source}: {error.strerror}") from error
    if not path.is_dir():
        return [source]
    found = sorted(str(path / name) for name in files_below(path) if is_picture(name) and _may_hold(path / name))
    if not found:
        raise UsageError(f"{source} has no pictures: expected files ending in {', '.join(sorted(SUFFIXES))}")
    return found


def _may_hold(path: Path) -> bool:
    """Whether a picture: a pipe that lies in a folder would be waited for; a broken link is to be told of."""
    return path.is_file() or not path.exists()
