"""Published data sets: downloaded from loopback in the published format, unpacked safely, read as published."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trueport.pipeline.data import dataset_names, open_dataset, prepare_dataset, split
from trueport.pipeline.data import named as registry
from trueport.pipeline.data.archives import gunzip, untar
from trueport.pipeline.data.download import Remote
from trueport.pipeline.data.named import NAMED
from trueport.pipeline.data.published import Published
from trueport.runtime.errors import MissingError, UsageError

Publish = Callable[[str, int, dict[str, bytes]], Published]
RANDOM = np.random.default_rng(0)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publish]:
    """Put small files in the place of a data set's own, on a server of ours; the data folder is a new one."""
    served = tmp_path / "served"
    served.mkdir()
    monkeypatch.setenv("TRUEPORT_DATA", str(tmp_path / "data"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def publish(name: str, pictures: int, files: dict[str, bytes]) -> Published:
            published = NAMED[name]
            assert isinstance(published, Published)
            assert [remote.file for remote in published.remotes] == list(files)
            remotes = []
            for file, body in files.items():
                (served / file).write_bytes(body)
                url = f"http://127.0.0.1:{http.server_port}/{file}"
                remotes.append(Remote((url,), len(body), hashlib.sha256(body).hexdigest()))
            small = dataclasses.replace(published, pictures=pictures, remotes=tuple(remotes))
            monkeypatch.setitem(registry.NAMED, name, small)
            return small

        yield publish
        http.shutdown()
        thread.join()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, body in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return buffer.getvalue()


def jpeg(size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (size, size, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def idx(array: NDArray[np.uint8]) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def idx_files(train: int = 40, test: int = 10) -> tuple[dict[str, bytes], dict[str, NDArray[np.uint8]]]:
    arrays = {
        "train-images-idx3-ubyte": RANDOM.integers(0, 256, (train, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": (np.arange(train) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": RANDOM.integers(0, 256, (test, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": (np.arange(test) % 10).astype(np.uint8),
    }
    return {f"{name}.gz": idx(array) for name, array in arrays.items()}, arrays


@pytest.mark.parametrize(("name", "first"), [("mnist", "0"), ("fashion_mnist", "T-shirt/top")])
def test_mnist_has_its_own_test_part(publish: Publish, tmp_path: Path, name: str, first: str) -> None:
    files, arrays = idx_files()
    publish(name, 50, files)
    data = open_dataset(name)
    assert (data.name, len(data), data.classes[0], data.grey) == (name, 50, first, True)
    assert data.ids[:1] + data.ids[10:11] == ("test/00000", "train/00000")
    for index, (part, place) in {0: ("t10k", 0), 9: ("t10k", 9), 10: ("train", 0), 49: ("train", 39)}.items():
        pixels = arrays[f"{part}-images-idx3-ubyte"][place]
        assert np.array_equal(np.asarray(data.image(index)), pixels)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data.encoded(index)))), pixels)
        assert data.labels[index] == arrays[f"{part}-labels-idx1-ubyte"][place]
    parts = split(data, 0.25, 0.2, 0)
    assert parts.test.tolist() == list(range(10))
    assert [len(parts.validation), len(parts.train)] == [10, 30]
    assert not list((tmp_path / "data" / "downloads" / name).iterdir())
    assert open_dataset(name).fingerprint == data.fingerprint


def test_cifar10_is_read_from_its_records(publish: Publish) -> None:
    pictures = RANDOM.integers(0, 256, (60, 32, 32, 3), np.uint8)
    labels = np.arange(60) % 10
    records = [
        bytes([label]) + picture.transpose(2, 0, 1).tobytes() for label, picture in zip(labels, pictures, strict=True)
    ]
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    batches = {f"cifar-10-batches-bin/{name}": b"".join(records[10 * k : 10 * k + 10]) for k, name in enumerate(names)}
    publish("cifar10", 60, {"cifar-10-binary.tar.gz": tarred(batches)})
    data = open_dataset("cifar10")
    assert data.classes[3] == "cat"
    assert not data.grey
    assert data.parts.count("test") == 10
    for index, place in ((0, 50), (9, 59), (10, 0), (59, 49)):
        assert np.array_equal(np.asarray(data.image(index)), pictures[place])
        assert data.labels[index] == labels[place]


def test_flowers_are_class_folders_beside_a_licence(publish: Publish, tmp_path: Path) -> None:
    classes = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    files = {f"flower_photos/{name}/{index}.jpg": jpeg() for name in classes for index in range(10)}
    publish("flowers", 50, {"flower_photos.tgz": tarred({"flower_photos/LICENSE.txt": b"CC BY", **files})})
    data = open_dataset("flowers")
    assert (data.name, data.classes) == ("flowers", classes)
    assert data.encoded(0) == files["flower_photos/daisy/0.jpg"]
    parts = split(data, 0.1, 0.1, 0)
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [40, 5, 5]
    (tmp_path / "data" / "flowers" / "flower_photos" / "roses" / "3.jpg").unlink()
    with pytest.raises(
        UsageError, match="holds 49 pictures of 5 classes, expected 50 of 5: delete it and run `trueport"
    ):
        open_dataset("flowers")


def test_imagenette_has_names_and_holds_val_out(publish: Publish) -> None:
    from trueport.pipeline.data.imagenette import CLASSES

    files = {
        f"imagenette2-320/{part}/{wnid}/{index}.JPEG": jpeg()
        for part, count in (("train", 4), ("val", 1))
        for wnid in CLASSES
        for index in range(count)
    }
    publish("imagenette", 50, {"imagenette2-320.tgz": tarred(files)})
    data = open_dataset("imagenette")
    assert data.classes[:3] == ("tench", "English springer", "cassette player")
    parts = split(data, 0.25, 0.2, 0)
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [30, 10, 10]
    assert all(data.ids[index].startswith("val/") for index in parts.test)


def test_prepare_downloads_once_and_where_it_is_told(publish: Publish, tmp_path: Path, capsys: Any) -> None:
    files, _ = idx_files()
    small = publish("mnist", 50, files)
    assert prepare_dataset("mnist", tmp_path / "elsewhere") == tmp_path / "elsewhere" / "mnist"
    assert capsys.readouterr().err.count("downloading ") == 4
    assert small.is_here(tmp_path / "elsewhere")
    assert not small.is_here()
    prepare_dataset("mnist", tmp_path / "elsewhere")
    assert not capsys.readouterr().err
    assert prepare_dataset("digits") is None
    with pytest.raises(UsageError, match="did you mean mnist"):
        prepare_dataset("mnits")


def test_a_file_put_there_by_hand_is_used_and_stays(publish: Publish, tmp_path: Path) -> None:
    files, _ = idx_files()
    publish("mnist", 50, files)
    (tmp_path / "served" / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(MissingError, match=r"404 File not found.*by hand"):
        open_dataset("mnist")
    by_hand = tmp_path / "data" / "downloads" / "mnist" / "train-images-idx3-ubyte.gz"
    by_hand.write_bytes(files[by_hand.name])
    assert len(open_dataset("mnist")) == 50
    assert list(by_hand.parent.iterdir()) == [by_hand]


def test_what_can_t_be_unpacked_leaves_no_half_data_set(publish: Publish, tmp_path: Path) -> None:
    files, _ = idx_files()
    files["t10k-images-idx3-ubyte.gz"] = files["t10k-images-idx3-ubyte.gz"][:-9]
    publish("mnist", 50, files)
    with pytest.raises(UsageError, match=r"t10k-images-idx3-ubyte\.gz can't be unpacked"):
        open_dataset("mnist")
    assert [path.name for path in sorted((tmp_path / "data").iterdir())] == ["downloads"]
    files["t10k-images-idx3-ubyte.gz"] = gzip.compress(b"\0\0\x08\x01????")
    (tmp_path / "other").mkdir()
    publish("mnist", 50, files)
    for file in (tmp_path / "data" / "downloads" / "mnist").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match="is no IDX file of 3 axes of uint8"):
        open_dataset("mnist")


def test_two_processes_at_once_download_once(publish: Publish, capsys: Any) -> None:
    files, _ = idx_files()
    small = publish("mnist", 50, files)
    threads = [threading.Thread(target=small.prepare) for _ in range(2)]  # each opens the lock's file by itself
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert small.is_here()
    assert capsys.readouterr().err.count("downloading ") == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../outside.jpg"}, "outside the destination"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "neither file nor folder"),
        ({"type": tarfile.LNKTYPE, "linkname": "../x"}, "neither file nor folder"),
        ({"type": tarfile.CHRTYPE}, "neither file nor folder"),
    ],
)
def test_a_tar_can_t_reach_out_of_its_folder(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    member = tarfile.TarInfo("inside.jpg")
    for key, value in change.items():
        setattr(member, key, value)
    with tarfile.open(tmp_path / "bad.tgz", "w:gz") as archive:
        archive.addfile(member, io.BytesIO())
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match=message):
        untar(tmp_path / "bad.tgz", tmp_path / "in")
    assert not list((tmp_path / "in").iterdir())
    assert not (tmp_path / "outside.jpg").exists()


def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueport.pipeline.data.archives.SLACK_BYTES", 0)
    (tmp_path / "bomb.tgz").write_bytes(tarred({"zeros": bytes(1_000_000)}))
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(3_000_000)))
    with pytest.raises(UsageError, match="unpacks to far more"):
        untar(tmp_path / "bomb.tgz", tmp_path)
    with pytest.raises(UsageError, match="unpacks to far more"):
        gunzip(tmp_path / "bomb.gz", tmp_path / "bomb")
    assert not (tmp_path / "zeros").exists()


def test_what_is_known_of_data_sets_is_what_they_are() -> None:
    for name in dataset_names():
        known = NAMED[name]
        if isinstance(known, Published):
            assert all(len(remote.sha256) == 64 and remote.size > 0 for remote in known.remotes)
            assert len({remote.file for remote in known.remotes}) == len(known.remotes)
        else:
            data = known.open()
            facts = (data.name, len(data), len(data.classes), "grey" if data.grey else "colour")
            assert facts == (known.name, known.pictures, known.classes, known.pixels)


def test_data_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cifar = NAMED["cifar10"]
    assert isinstance(cifar, Published)
    monkeypatch.delenv("TRUEPORT_DATA", raising=False)
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path))
    assert cifar.folder() == tmp_path / "data" / "cifar10"
    monkeypatch.setenv("TRUEPORT_DATA", str(tmp_path / "own"))
    assert cifar.folder() == tmp_path / "own" / "cifar10"
