"""Writing so that a reader, a crash or a full disk only ever sees the old content or the new."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UsageError


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step; parents are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path` as UTF-8 in one step."""
    write_bytes(path, text.encode())


@contextmanager
def new_folder(path: Path, refuse: Callable[[Path], None]) -> Iterator[Path]:
    """Yield an empty folder beside `path`; when the block ends well it takes the place of `path`.

    Where `path` is a link, the folder that it leads to is replaced and the link stays.
    refuse: is given the folder and raises UsageError where it holds what must not be deleted.
    Raises what `refuse` does, UsageError for the folder that this process runs in, OSError as the file system does; the
    old folder then stays as it was.
    """
    path = replaceable(path, refuse)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent))
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())
        _sync(staging)
        _swap(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def replaceable(path: Path, refuse: Callable[[Path], None]) -> Path:
    """`path` with its links followed, where `new_folder` may replace it; raises as that does."""
    path = Path(os.path.realpath(path))
    if path.exists() and Path.cwd().is_relative_to(path):
        raise UsageError(f"can't replace {path} from inside it: change to another folder, or choose another name")
    refuse(path)
    return path


def is_filled(path: Path) -> bool:
    """Whether `path` is a folder with something in it. Raises UsageError where it is anything but a folder."""
    if not os.path.lexists(path):
        return False
    if not path.is_dir():
        kind = "file" if path.exists() else "link that leads nowhere"
        raise UsageError(f"{path} is a {kind}, expected a folder to write: choose another name")
    return any(path.iterdir())


def _swap(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
    elif _exchange(new, path):
        shutil.rmtree(new, ignore_errors=True)
    else:
        old = new.with_suffix(".old")
        path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(new: Path, path: Path) -> bool:
    """Swap two folders in one step (Linux renameat2, RENAME_EXCHANGE); False where that is not to be had."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    return renameat2 is not None and renameat2(here, os.fsencode(new), here, os.fsencode(path), exchange) == 0


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
