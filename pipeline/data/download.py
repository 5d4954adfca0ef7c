"""A published file, downloaded and proved: its size and SHA-256 are known before the first byte is asked for.

What arrived of a broken transfer is kept and gone on from (HTTP Range, RFC 9110 section 14).
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from trueport.runtime.errors import MissingError, UsageError

from ..progress import Lines

if TYPE_CHECKING:
    import http.client

Received = Callable[[int], None]
"""Told how many bytes are here."""

CHUNK_BYTES = 2**20
ATTEMPTS = 3
"""Of each address; every one goes on where the one before ended."""


@dataclass(frozen=True)
class Remote:
    """One file as it was published."""

    urls: tuple[str, ...]
    """Where it can be had, the first choice first."""
    size: int
    """Bytes."""
    sha256: str
    """64 hexadecimal digits."""

    @property
    def file(self) -> str:
        """Its name, without any folder."""
        return self.urls[0].rpartition("/")[2]

    @property
    def hosts(self) -> str:
        """The names of the servers."""
        return " or ".join(urlsplit(url).hostname or url for url in self.urls)


def fetch(remote: Remote, folder: Path, timeout_s: float = 30.0) -> Path:
    """The published file in `folder`: the one that lies there, else downloaded, and proved in either case.

    timeout_s: longest silence of a server.
    Raises UsageError for a file of another content that lies in its place, and MissingError where it can't be had.
    """
    path = folder / remote.file
    if path.exists():
        if reason := _difference(remote, path):
            raise UsageError(f"{path} is not the published file: {reason}; delete it, or put the whole file there")
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with disk_full_is_missing(path), _shown_transfer(remote) as received:
        partial_file = path.with_name(f"{path.name}.part")
        _refuse_lack_of_room(folder, remote.size)
        _download(remote, partial_file, path, received, timeout_s)
        partial_file.replace(path)
    return path


def _download(remote: Remote, target: Path, final: Path, received: Received, timeout_s: float) -> None:
    """Try each address until the file at `target` is the published one. Raises MissingError."""
    failures: list[str] = []
    for url in remote.urls:
        for _ in range(ATTEMPTS):
            before = _size(target)
            failure = _transfer(url, remote, target, received, timeout_s)
            if not failure and not (failure := _difference(remote, target)):
                return
            if _size(target) >= remote.size:
                target.unlink()  # whole and wrong; where it was begun by another server, this one may still be right
            if _size(target) == before:
                break
        failures.append(f"{urlsplit(url).hostname}: {failure}")
    raise MissingError(
        f"{remote.file} can't be downloaded ({'; '.join(failures)}): try again, or put the file at {final} by hand, "
        "where it is verified and used"
    )


def _transfer(url: str, remote: Remote, target: Path, received: Received, timeout_s: float) -> str:
    """Receive what is missing of `target`; why it broke off, or nothing."""
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    begin = _size(target)
    if begin >= remote.size:
        return ""
    headers = {"User-Agent": "trueport", "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    try:
        # Addresses are ours, and what comes is proved by its hash, also through a redirect.
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s) as response:  # noqa: S310
            goes_on = response.status == http.client.PARTIAL_CONTENT and _starts_at(response.headers, begin)
            with target.open("ab" if goes_on else "wb") as file:
                return _receive(response, file, remote.size, begin if goes_on else 0, received)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            target.unlink()
        return f"it answered {error.code} {' '.join(str(error.reason).split())}"
    except urllib.error.URLError as error:
        return f"it can't be reached, {getattr(error.reason, 'strerror', None) or error.reason}"
    except TimeoutError:
        return f"it was silent for {timeout_s:g} s"
    except (http.client.HTTPException, ConnectionError, ssl.SSLError) as error:
        return f"the connection broke, {error}"


def _receive(response: IO[bytes], file: IO[bytes], size: int, begin: int, received: Received) -> str:
    """Write up to `size` bytes; a server that has more to say is not listened to."""
    here = begin
    while here < size and (chunk := response.read(min(CHUNK_BYTES, size - here))):
        file.write(chunk)
        here += len(chunk)
        received(here)
    if here < size:
        return f"it sent {here:,} of {size:,} bytes"
    return f"it sends more than {size:,} bytes" if response.read(1) else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _starts_at(headers: http.client.HTTPMessage, begin: int) -> bool:
    return (headers.get("Content-Range") or "").startswith(f"bytes {begin}-")


def _difference(remote: Remote, path: Path) -> str:
    """What tells the file from the published one; nothing where it is that one."""
    size = path.stat().st_size
    if size != remote.size:
        return f"expected {remote.size:,} bytes, found {size:,}"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == remote.sha256 else f"expected SHA-256 {remote.sha256}, found {found}"


def _refuse_lack_of_room(folder: Path, size: int) -> None:
    """Raise MissingError where the disk can't take it; unpacked it needs about as much again."""
    free = shutil.disk_usage(folder).free
    if free < 2 * size:
        raise MissingError(
            f"{folder} has {shown_bytes(free)} free, {shown_bytes(2 * size)} are needed: "
            "make room, or name another folder in TRUEPORT_DATA"
        )


@contextmanager
def disk_full_is_missing(path: Path) -> Iterator[None]:
    """Turn a full disk into MissingError; `path` is what was being written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MissingError(
            f"the disk is full, {path} is not whole: make room, or name another folder in TRUEPORT_DATA"
        ) from error


@contextmanager
def _shown_transfer(remote: Remote) -> Iterator[Received]:
    """One line on standard error, and on a terminal a bar that vanishes when it is done."""
    Lines(sys.stderr).say(f"downloading {remote.file}, {shown_bytes(remote.size)}, from {remote.hosts}")
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=remote.size)
        yield lambda here: bar.update(task, completed=here)


def shown_bytes(count: int) -> str:
    """In megabytes of a million, as download pages count them."""
    return f"{count / 1e6:,.{0 if count >= 1e7 else 1}f} MB"
