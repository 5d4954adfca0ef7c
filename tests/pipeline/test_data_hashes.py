"""Hashes of files are kept while the files are unchanged, and never a day longer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trueport.pipeline.data import CsvManifest, Folder
from trueport.pipeline.data import hashes as module
from trueport.pipeline.data.files import FileDataset


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures that are large enough to be worth it, and settled for long."""
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "WORTH_BYTES", 1)
    monkeypatch.setattr(module, "RACY_S", -60.0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("L", (8, 8), index).save(tmp_path / "pets" / name / f"{index}.png")
    return tmp_path / "pets"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the files that are read."""
    found: list[str] = []
    before = FileDataset.encoded

    def encoded(self: FileDataset, index: int) -> bytes:
        found.append(self.ids[index])
        return before(self, index)

    monkeypatch.setattr(FileDataset, "encoded", encoded)
    return found


def test_what_has_not_changed_is_not_read_again(pets: Path, read: list[str]) -> None:
    first = Folder(pets).fingerprint
    assert len(read) == 6
    read.clear()
    done: list[int] = []
    assert Folder(pets).fingerprinted(done.append) == first
    assert not read
    assert sum(done) == 6


def test_any_change_is_seen(pets: Path, read: list[str]) -> None:
    first = Folder(pets).fingerprint
    file = pets / "dog" / "1.png"
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time, as `cp -p` would leave it
    read.clear()
    assert Folder(pets).fingerprint != first
    assert read == ["dog/1.png"]
    (pets / "cat" / "9.png").write_bytes(data)
    read.clear()
    assert len(Folder(pets)) == 7
    Folder(pets).fingerprint  # noqa: B018
    assert read == ["cat/9.png"]


def test_a_file_that_just_changed_is_not_trusted(pets: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RACY_S", 60.0)
    Folder(pets).fingerprint  # noqa: B018
    Folder(pets).fingerprint  # noqa: B018
    assert len(read) == 12


def test_absolute_paths_of_a_manifest_are_known_again(pets: Path, read: list[str], tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"image,label\npets/cat/1.png,cat\n{pets}/dog/2.png,dog\n")
    first = CsvManifest(tmp_path / "list.csv").fingerprint
    assert read == [f"{pets}/dog/2.png", "pets/cat/1.png"]
    assert CsvManifest(tmp_path / "list.csv").fingerprint == first
    assert len(read) == 2


def test_a_damaged_cache_is_made_again(pets: Path, read: list[str], tmp_path: Path) -> None:
    first = Folder(pets).fingerprint
    (file,) = (tmp_path / "cache" / "hashes").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert Folder(pets).fingerprint == first
    read.clear()
    assert Folder(pets).fingerprint == first
    assert not read


def test_small_data_leaves_no_cache(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_BYTES", 10**6)
    assert Folder(pets).fingerprint
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_twenty_thousand_files_are_opened_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "WORTH_BYTES", 1)
    monkeypatch.setattr(module, "RACY_S", -60.0)
    body = np.random.default_rng(0).bytes(4000)
    for index in range(20_000):
        folder = tmp_path / "many" / f"c{index % 20:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:05d}.jpg").write_bytes(body + index.to_bytes(4, "big"))
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        data = Folder(tmp_path / "many")
        seconds.append(time.perf_counter() - begin)
        data.fingerprint  # noqa: B018
        seconds.append(time.perf_counter() - begin)
    assert seconds[3] < seconds[1], "the second time nothing is read"
    assert max(seconds) < 60
