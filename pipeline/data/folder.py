"""A folder of class folders, `flowers/rose/1.jpg`: the folder's name is the class, classes are sorted by name.

Pictures may lie deeper inside a class folder. Hidden files are passed over in silence, files that are not pictures are
passed over and counted in `ignored`.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path, PurePosixPath

from trueport.runtime.errors import ImageError, UsageError
from trueport.runtime.preprocessing import FORMATS

from .dataset import Dataset, displayed, shortened

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What is taken from a folder, here and by `predict`."""
GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L"})
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
CLUTTER = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})
"""What systems leave in folders, beside the names with a leading dot."""


class Folder(Dataset):
    """Pictures below `root`; an id is the path from there, with slashes on every system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        classes = _classes(root)
        found = {name: files_below(root / name) for name in classes}
        samples = sorted(
            (f"{name}/{path}", label) for label, name in enumerate(classes) for path in found[name] if is_picture(path)
        )
        _refuse_empty(root, classes, found)
        super().__init__(root.resolve().name, classes, [sample for sample, _ in samples], (it for _, it in samples))
        self.ignored = tuple(
            displayed(f"{name}/{path}") for name in classes for path in sorted(found[name]) if not is_picture(path)
        )

    @cached_property
    def grey(self) -> bool:
        """Whether every picture is stored in a grey mode, read from the headers; broken ones don't count."""
        modes = (_mode(self.root / sample) for sample in self.ids)
        return all(mode is None or mode in GREY_MODES for mode in modes)

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        try:
            return (self.root / self.ids[index]).read_bytes()
        except OSError as error:
            raise ImageError(f"can't be read: {error.strerror or error}") from error


def _classes(root: Path) -> list[str]:
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder, expected a folder of class folders such as {root}/cat/1.jpg")
    try:
        entries = [entry for entry in root.iterdir() if not _is_hidden(entry.name)]
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise _unreadable([error]) from error
    if not classes:
        loose = sum(is_picture(entry.name) for entry in entries)
        raise UsageError(
            f"{root} has no class folders ({loose} pictures lie directly in it), "
            f"expected one folder for each class, such as {root}/cat/1.jpg"
        )
    if SPLIT_NAMES.issuperset(name.lower() for name in classes):
        raise UsageError(
            f"{root} holds {', '.join(classes)}, which are parts and not classes: "
            f"give one folder of class folders, such as {root / classes[0]}; it is split by the recipe"
        )
    if len(classes) == 1:
        raise UsageError(f"{root} has the one class folder {classes[0]}, expected at least two to tell apart")
    if unnamed := [displayed(name) for name in classes if name != displayed(name)]:
        raise UsageError(
            f"the names of class folders become labels, expected UTF-8, "
            f"found {shortened(unnamed)} in {displayed(str(root))}: rename them"
        )
    return classes


def files_below(folder: Path) -> list[str]:
    """Paths below `folder`, from there and with slashes, hidden ones left out.

    Raises UsageError that names the folders that can't be read.
    """
    found: list[str] = []
    failures: list[OSError] = []
    for here, folders, files in os.walk(folder, onerror=failures.append):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        inside = PurePosixPath(Path(here).relative_to(folder).as_posix())
        found += [str(inside / name) for name in files if not _is_hidden(name)]
    if failures:
        raise _unreadable(failures) from failures[0]
    return found


def is_picture(path: str) -> bool:
    """By its suffix."""
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def _unreadable(failures: list[OSError]) -> UsageError:
    told = shortened([f"{displayed(str(error.filename))} ({error.strerror})" for error in failures])
    return UsageError(
        f"can't read the folder{'s' * (len(failures) > 1)} {told}: allow it, or move the pictures elsewhere"
    )


def _refuse_empty(root: Path, classes: list[str], found: dict[str, list[str]]) -> None:
    empty = [name for name in classes if not any(map(is_picture, found[name]))]
    if empty:
        others = sorted({PurePosixPath(path).suffix or path for name in empty for path in found[name]})
        seen = f", only {', '.join(others[:5])} files" if others else ""
        raise UsageError(
            f"no pictures in the class folder{'s' * (len(empty) > 1)} {', '.join(empty)} of {root}{seen}: "
            f"add pictures ({', '.join(FORMATS)}) or remove the folder"
        )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in CLUTTER


def _mode(path: Path) -> str | None:
    """Pillow's mode by the header alone; None where there is no readable one."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
