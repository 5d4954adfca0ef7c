"""What published files are unpacked with: tar and gzip, never more than was stated, and nothing but plain files."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path

from trueport.runtime.errors import UsageError

GROWTH = 4
"""Unpacked size by packed size at most; photos and IDX labels stay far below, a bomb does not."""
SLACK_BYTES = 64 * 2**20
"""Beside that: headers and the room that small archives need."""
CHUNK_BYTES = 2**20


def untar(archive: Path, folder: Path) -> None:
    """Unpack the files and folders of a compressed tar below `folder`.

    Raises UsageError for a damaged archive, for links and devices, for names that lead out of the folder, and for more
    bytes than `GROWTH` allows.
    """
    left = archive.stat().st_size * GROWTH + SLACK_BYTES
    try:
        with tarfile.open(archive, "r:*") as opened:
            for member in opened:
                left -= member.size
                if left < 0:
                    raise _too_large(archive)
                if not (member.isfile() or member.isdir()):
                    raise UsageError(f"{archive} holds {member.name}, which is neither file nor folder: don't use it")
                opened.extract(member, folder, set_attrs=False, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{archive} can't be unpacked: {error}; delete it, and it is downloaded anew") from error


def gunzip(archive: Path, target: Path) -> None:
    """Unpack one gzip file, without the suffix, to `target`. Raises UsageError as `untar` does."""
    left = archive.stat().st_size * GROWTH * 4 + SLACK_BYTES  # digits on black are packed closer than photos
    try:
        with gzip.open(archive) as packed, target.open("wb") as file:
            while chunk := packed.read(CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise _too_large(archive)
                file.write(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{archive} can't be unpacked: {error}; delete it, and it is downloaded anew") from error


def _too_large(archive: Path) -> UsageError:
    return UsageError(f"{archive} unpacks to far more than its size allows: don't use it")
