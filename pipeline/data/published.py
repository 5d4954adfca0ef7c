"""Data sets that others published: downloaded once, verified, unpacked beside their final place and moved there whole.

They lie below `TRUEPORT_DATA`, else in `data` of trueport's cache (runtime/folders.py):

    NAME/            unpacked; it is there when it is complete
    downloads/NAME/  what is being downloaded, and where files can be put by hand
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trueport.runtime.atomic import new_folder
from trueport.runtime.errors import UsageError
from trueport.runtime.folders import cache_folder

from ..progress import Lines
from .dataset import Dataset
from .download import Remote, disk_full_is_missing, fetch


@dataclass(frozen=True)
class Published:
    """What is known of a data set before it is here."""

    name: str
    pictures: int
    classes: int
    pixels: Literal["grey", "colour"]
    remotes: tuple[Remote, ...]
    unpack: Callable[[Path, Path], None]
    """Given the folder of the downloaded files and an empty one to fill."""
    read: Callable[[Path], Dataset]
    """The data set in the folder that `unpack` filled."""

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(remote.size for remote in self.remotes)

    def folder(self, root: Path | None = None) -> Path:
        """Where it lies. root: in place of the data folder."""
        return (root or data_root()) / self.name

    def is_here(self, root: Path | None = None) -> bool:
        """Whether it can be opened without a network."""
        return self.folder(root).is_dir()

    def open(self) -> Dataset:
        """The data set, which is downloaded where it is not here. Raises as `prepare` does."""
        return self._complete(self.prepare())

    def prepare(self, root: Path | None = None, timeout_s: float = 30.0) -> Path:
        """Download, verify and unpack, unless that was done before; the folder. Other processes wait meanwhile.

        Raises MissingError where a file can't be had or the disk is full, and UsageError for a file that is not the
        published one.
        """
        folder = self.folder(root)
        if folder.is_dir():
            return folder
        downloads = folder.parent / "downloads" / self.name
        downloads.mkdir(parents=True, exist_ok=True)
        with _locked(downloads.with_suffix(".lock"), self.name):
            if not folder.is_dir():  # another process may have been quicker
                by_hand = {remote.file for remote in self.remotes if (downloads / remote.file).exists()}
                files = [fetch(remote, downloads, timeout_s) for remote in self.remotes]
                with disk_full_is_missing(folder), new_folder(folder, lambda _: None) as staging:
                    self.unpack(downloads, staging)
                    self._complete(staging)
                for file in files:
                    if file.name not in by_hand:
                        file.unlink()
        return folder

    def _complete(self, folder: Path) -> Dataset:
        data = self.read(folder)
        if len(data) != self.pictures or len(data.classes) != self.classes:
            raise UsageError(
                f"{folder} holds {len(data):,} pictures of {len(data.classes)} classes, expected {self.pictures:,} of "
                f"{self.classes}: delete it and run `trueport data prepare {self.name}`"
            )
        data.name = self.name
        return data


def data_root() -> Path:
    """The folder of downloaded data sets."""
    own = os.environ.get("TRUEPORT_DATA")
    return Path(own).expanduser() if own else cache_folder() / "data"


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Wait for every other process that prepares this data set; any end unlocks it."""
    if sys.platform == "win32":  # two at once then both download, and the last one's folder stays
        yield
        return
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Lines(sys.stderr).say(f"waiting for another process that prepares {name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
