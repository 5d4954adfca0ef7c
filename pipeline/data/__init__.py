"""Data sets, how they are split, and their pictures prepared as arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trueport.runtime.errors import UsageError, unknown_name

from .dataset import Dataset, verify
from .digits import Digits
from .folder import Folder
from .split import Split, split
from .tensors import prepared

__all__ = ["Dataset", "Folder", "Split", "dataset_names", "open_dataset", "prepared", "split", "verify"]

_DATASETS: dict[str, Callable[[], Dataset]] = {"digits": Digits}


def dataset_names() -> list[str]:
    """The data sets that have a name of their own."""
    return sorted(_DATASETS)


def open_dataset(source: str | Path) -> Dataset:
    """The data set of this name, else the folder of class folders at this path (`./digits` is always a folder).

    Raises UsageError for an unknown name, a missing folder or one that is not made of class folders, and MissingError
    where the data needs a package that is not installed.
    """
    if isinstance(source, str) and source in _DATASETS:
        return _DATASETS[source]()
    path = Path(source).expanduser()
    if path.exists():
        return Folder(path)
    if isinstance(source, Path) or len(path.parts) > 1 or source.startswith((".", "~")):
        raise UsageError(f"there is no folder {path}: expected a folder of class folders, such as {path}/cat/1.jpg")
    raise unknown_name("data set or folder", source, dataset_names())
