"""Hashes of files, kept in the user's cache: hashing ImageNet means to read 150 GB, and a run should not do it twice.

A file is taken as unchanged while size, inode, and the times of its last change and modification are the same; the
system sets the former, nobody else can. One that changed just before it was hashed is not kept, since it may have
changed again within the clock's step, which git calls racy: https://git-scm.com/docs/racy-git
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from trueport.runtime.atomic import write_bytes
from trueport.runtime.folders import cache_folder

from .dataset import Dataset, Done, each

WORTH_BYTES = 64 * 2**20
"""Less than that is read again as fast as it is looked up."""
RACY_S = 2.0
"""Longest step of a file system's clock; FAT's."""

State = tuple[int, int, int, int]
"""Of a file: bytes, nanoseconds of its last modification and of its last change, inode."""
Known = dict[bytes, tuple[State, bytes]]


class HashCache:
    """The hashes of the files below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.realpath(root))
        key = hashlib.sha256(os.fsencode(self._root)).hexdigest()[:32]
        self._file = cache_folder() / "hashes" / f"{key}.msgpack"

    def digests(self, dataset: Dataset, done: Done | None = None) -> list[str]:
        """SHA-256 of every file of a data set whose ids are paths from the folder. Raises UsageError, see `each`."""
        now = time.time_ns()
        states = [self._state(sample) for sample in dataset.ids]
        worth = sum(state[0] for state in states if state) >= WORTH_BYTES
        known = self._load() if worth else {}
        digests = [_recalled(known, sample, state) for sample, state in zip(dataset.ids, states, strict=True)]
        unknown = [index for index, digest in enumerate(digests) if not digest]
        if done is not None:
            done(len(digests) - len(unknown))
        hashed = each(dataset, lambda _, index: hashlib.sha256(dataset.content(index)).digest(), unknown, done)
        for index, digest in zip(unknown, hashed, strict=True):
            digests[index] = digest
            if (state := states[index]) and max(state[1:3]) < now - RACY_S * 1e9:
                known[_key(dataset.ids[index])] = (state, digest)
        if worth and unknown:
            self._save(known)
        return [digest.hex() for digest in digests]

    def _state(self, sample: str) -> State | None:
        try:
            # A Path costs more than the call does, a million times.
            found = os.stat(os.path.join(self._root, sample))  # noqa: PTH116, PTH118
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino

    def _load(self) -> Known:
        """Nothing where there is no cache, or a damaged one: it can be made again."""
        try:
            return msgspec.msgpack.decode(self._file.read_bytes(), type=Known)
        except (OSError, msgspec.MsgspecError):
            return {}

    def _save(self, known: Known) -> None:
        with suppress(OSError):  # a cache that can't be written costs time and nothing else
            write_bytes(self._file, msgspec.msgpack.encode(known))


def _recalled(known: Known, sample: str, state: State | None) -> bytes:
    found = known.get(_key(sample)) if known else None
    return found[1] if found and found[0] == state else b""


def _key(sample: str) -> bytes:
    return sample.encode("utf-8", "surrogatepass")  # a file's name may be any bytes
