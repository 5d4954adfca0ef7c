"""Data sets whose pictures are files: found by their suffix, read one by one, hashed once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trueport.runtime.errors import ImageError, UsageError
from trueport.runtime.preprocessing import FORMATS

from .dataset import Dataset, Done, Part, displayed, shortened
from .hashes import HashCache

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
"""What is taken from a folder, here and by `predict`."""
CLUTTER = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})
"""What systems leave in folders, beside the names with a leading dot."""
GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"})


class FileDataset(Dataset):
    """Pictures by their path: from `root` where it is relative, with slashes on every system; that path is the id."""

    def __init__(
        self,
        root: Path,
        name: str,
        classes: Sequence[str],
        ids: Sequence[str],
        labels: Iterable[int] | NDArray[Any],
        parts: Sequence[Part | None] | None = None,
    ) -> None:
        self.root = root
        super().__init__(name, classes, ids, labels, parts)

    @cached_property
    def grey(self) -> bool:
        """Whether every picture is stored in a grey mode, read from the headers; broken ones don't count."""
        return all(_is_grey(self.root / sample) for sample in self.ids)

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        try:
            return (self.root / self.ids[index]).read_bytes()
        except OSError as error:
            raise ImageError(f"can't be read: {error.strerror or error}") from error

    def digests(self, done: Done | None = None) -> list[str]:
        """SHA-256 of each file; one that has not changed since it was last hashed is not read again."""
        return HashCache(self.root).digests(self, done)


def is_picture(path: str) -> bool:
    """By its suffix."""
    return path.lower().endswith(SUFFIXES)


def folders_in(folder: Path) -> list[str]:
    """The names of the folders directly inside, sorted, hidden ones left out. Raises UsageError as `files_below`."""
    try:
        return sorted(entry.name for entry in _entries(str(folder)) if _is_folder(entry))
    except OSError as error:
        raise _unreadable([error]) from error


def files_below(folder: Path) -> list[str]:
    """Paths below `folder`, from there and with slashes, hidden ones left out.

    Raises UsageError that names the folders that can't be read.
    """
    failures: list[OSError] = []
    found = list(_walk(str(folder), "", failures))
    if failures:
        raise _unreadable(failures)
    return found


def _walk(folder: str, prefix: str, failures: list[OSError]) -> Iterator[str]:
    try:
        entries = _entries(folder)
    except OSError as error:
        failures.append(error)
        return
    for entry in entries:
        if not _is_folder(entry):
            yield prefix + entry.name
        elif not entry.is_symlink():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", failures)


def _unreadable(failures: list[OSError]) -> UsageError:
    told = shortened([f"{displayed(str(error.filename))} ({error.strerror})" for error in failures])
    return UsageError(
        f"can't read the folder{'s' * (len(failures) > 1)} {told}: allow it, or move the pictures elsewhere"
    )


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as opened:
        return [entry for entry in opened if not entry.name.startswith(".") and entry.name not in CLUTTER]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _is_grey(path: Path) -> bool:
    """By the header alone; True where there is no readable one."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.mode != "P" or image.palette is None:
                return image.mode in GREY_MODES
            colours = image.palette.tobytes() if image.palette.mode == "RGB" else b"\0\1\2"
            return colours[0::3] == colours[1::3] == colours[2::3]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True
