"""Data sets, how they are split, and their pictures prepared as arrays."""

from __future__ import annotations

from pathlib import Path

from trueport.runtime.errors import UsageError, unknown_name

from .csv_manifest import CsvManifest
from .dataset import Dataset, verify
from .folder import Folder
from .named import NAMED
from .published import Published
from .split import Split, split
from .tensors import prepared

__all__ = [
    "CsvManifest",
    "Dataset",
    "Folder",
    "Split",
    "dataset_names",
    "open_dataset",
    "prepare_dataset",
    "prepared",
    "split",
    "verify",
]


def dataset_names() -> list[str]:
    """The data sets that have a name of their own."""
    return sorted(NAMED)


def open_dataset(source: str | Path) -> Dataset:
    """The data set of this name, else the folder or the CSV file at this path (`./digits` is always a folder).

    One that others published is downloaded where it is not here. Raises UsageError for an unknown name, a missing path
    or one that holds no data set, and MissingError where a package is not installed or a download fails.
    """
    if isinstance(source, str) and source in NAMED:
        return NAMED[source].open()
    path = Path(source).expanduser()
    if path.suffix.lower() == ".csv" and path.is_file():
        return CsvManifest(path)
    if path.exists():
        return Folder(path)
    if path.suffix.lower() == ".csv":
        raise UsageError(f"there is no file {path}: expected a CSV file with the columns image and label")
    if isinstance(source, Path) or len(path.parts) > 1 or source.startswith((".", "~")):
        raise UsageError(f"there is no folder {path}: expected a folder of class folders, such as {path}/cat/1.jpg")
    raise unknown_name("data set or folder", source, dataset_names())


def prepare_dataset(name: str, root: Path | None = None) -> Path | None:
    """Download a data set unless it is here: its folder, or None for one that needs no download.

    root: where it goes, in place of the user's cache. Raises UsageError for an unknown name, MissingError as `fetch`.
    """
    if name not in NAMED:
        raise unknown_name("data set", name, NAMED)
    known = NAMED[name]
    return known.prepare(root) if isinstance(known, Published) else None
