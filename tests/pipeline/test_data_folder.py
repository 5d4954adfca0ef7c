"""A folder of class folders: what is found, what is passed over, what is refused."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trueport.pipeline.data import Folder, dataset_names, open_dataset, prepared, split, verify
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Preprocessing
from trueport.runtime.preprocessing import prepare


def picture(path: Path, value: int = 0, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (24, 20, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for index in range(3):
        picture(root / "dog" / f"{index}.png", index)
        picture(root / "cat" / f"{index}.jpg", 10 + index)
    picture(root / "cat" / "indoors" / "9.webp", 99)
    return root


def test_classes_ids_and_labels(pets: Path) -> None:
    dataset = open_dataset(pets)
    assert dataset.name == "pets"
    assert dataset.classes == ("cat", "dog")
    assert dataset.ids == (
        *("cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "cat/indoors/9.webp"),
        *("dog/0.png", "dog/1.png", "dog/2.png"),
    )
    assert dataset.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert dataset.image(4).size == (20, 24)
    verify(dataset)


def test_hidden_files_are_passed_over_and_others_counted(pets: Path) -> None:
    before = open_dataset(pets)
    (pets / ".cache").mkdir()
    (pets / "dog" / ".DS_Store").write_bytes(b"x")
    (pets / "dog" / "Thumbs.db").write_bytes(b"x")
    (pets / "dog" / "notes.txt").write_text("x")
    after = Folder(pets)
    assert after.ids == before.ids
    assert after.fingerprint == before.fingerprint
    assert after.ignored == ("dog/notes.txt",)


def test_the_fingerprint_follows_contents_names_and_classes_not_place(pets: Path, tmp_path: Path) -> None:
    original = open_dataset(pets).fingerprint
    copy = tmp_path / "elsewhere" / "pets"
    shutil.copytree(pets, copy)
    assert open_dataset(copy).fingerprint == original
    (copy / "dog" / "0.png").rename(copy / "dog" / "7.png")
    renamed = open_dataset(copy).fingerprint
    (copy / "dog" / "7.png").rename(copy / "dog" / "0.png")
    (copy / "dog").rename(copy / "fox")
    relabelled = open_dataset(copy).fingerprint
    (copy / "fox").rename(copy / "dog")
    assert open_dataset(copy).fingerprint == original
    picture(copy / "dog" / "0.png", 77)
    assert len({original, renamed, relabelled, open_dataset(copy).fingerprint}) == 4


def test_grey_only_where_every_picture_is(pets: Path, tmp_path: Path) -> None:
    assert not open_dataset(pets).grey
    for index in range(2):
        picture(tmp_path / "scans" / "a" / f"{index}.png", index, "L")
        picture(tmp_path / "scans" / "b" / f"{index}.jpg", index, "L")
    assert open_dataset(tmp_path / "scans").grey
    picture(tmp_path / "scans" / "b" / "2.png", 2)
    assert not open_dataset(tmp_path / "scans").grey


def test_empty_class_folders_are_refused_by_name(pets: Path) -> None:
    (pets / "fish").mkdir()
    (pets / "owl").mkdir()
    (pets / "owl" / "1.heic").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no pictures in the class folders fish, owl of .*, only \.heic files"):
        open_dataset(pets)


def test_folders_of_another_layout_are_refused(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no class folders \(3 pictures lie directly in it\)"):
        open_dataset(pets / "dog")
    with pytest.raises(UsageError, match="one class folder pets"):
        open_dataset(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        open_dataset(pets / "dog" / "0.png")
    with pytest.raises(UsageError, match="there is no folder"):
        open_dataset(tmp_path / "nowhere")


@pytest.fixture
def parted(pets: Path, tmp_path: Path) -> Path:
    """ImageNet's layout: train/cat/0.jpg, val/cat/0.jpg."""
    for part in ("train", "val"):
        shutil.copytree(pets, tmp_path / "parted" / part)
    return tmp_path / "parted"


def test_imagenet_s_val_is_held_out(parted: Path) -> None:
    data = open_dataset(parted)
    assert data.classes == ("cat", "dog")
    assert len(data) == 14
    assert data.ids[3] == "train/cat/indoors/9.webp"
    assert data.labels.tolist() == [0, 0, 0, 0, 1, 1, 1] * 2
    parts = split(data, 0.25, 0.2, 0)
    assert parts.test.tolist() == list(range(7, 14))
    assert len(parts.validation) == 2
    (parted / "val").rename(parted / "test")
    as_test = split(open_dataset(parted), 0.25, 0.2, 0)
    assert as_test.test.tolist() == list(range(7))  # test/ comes before train/
    assert len(as_test.validation) == 2


def test_three_parts_are_what_they_are_called(parted: Path, pets: Path) -> None:
    shutil.copytree(pets, parted / "test")
    parts = split(data := open_dataset(parted), 0.1, 0.2, 0)
    for indices, top in ((parts.train, "train/"), (parts.validation, "val/"), (parts.test, "test/")):
        assert len(indices) == 7
        assert all(data.ids[index].startswith(top) for index in indices)
    assert split(data, 0.3, 0.3, 5).fingerprint == parts.fingerprint


def test_a_class_that_a_part_lacks_is_named(parted: Path) -> None:
    picture(parted / "val" / "fox" / "1.png")
    with pytest.raises(UsageError, match=r"have other classes: fox in val and not in train; add pictures there"):
        open_dataset(parted)
    shutil.rmtree(parted / "val" / "fox")
    picture(parted / "train" / "owl" / "1.png")
    with pytest.raises(UsageError, match=r"owl in train and not in val"):
        open_dataset(parted)


def test_pictures_that_lie_flat_in_val_are_refused_with_what_to_do(parted: Path) -> None:
    shutil.rmtree(parted / "val")
    picture(parted / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(
        UsageError, match=r"val has no class folders \(1 pictures lie directly.*CSV manifest; see .*train"
    ):
        open_dataset(parted)


def test_parts_that_make_no_sense_are_refused(parted: Path) -> None:
    (parted / "annotations").mkdir()
    with pytest.raises(UsageError, match="train, val, which are parts and not classes, beside annotations"):
        open_dataset(parted)
    (parted / "annotations").rmdir()
    (parted / "train").rename(parted / "validation")
    with pytest.raises(UsageError, match="val, validation, which are parts"):
        open_dataset(parted)
    (parted / "validation").rename(parted / "train")
    shutil.rmtree(parted / "val")
    with pytest.raises(UsageError, match=r"holds train alone, which is a part and not a class: give .*/parted/train"):
        open_dataset(parted)


def test_a_class_may_be_called_train(pets: Path) -> None:
    (pets / "dog").rename(pets / "train")
    assert open_dataset(pets).classes == ("cat", "train")


def test_imagenet_s_own_list_names_the_classes(pets: Path) -> None:
    lines = "cat crane\ndog crane, bird of passage\nfox unknown\n"
    (pets / "LOC_synset_mapping.txt").write_text(lines)
    assert open_dataset(pets).classes == ("crane (cat)", "crane (dog)")
    (pets / "LOC_synset_mapping.txt").write_text("dog Pug, pug-dog\n")
    assert open_dataset(pets).classes == ("cat", "Pug")
    assert open_dataset(pets).ids[0] == "cat/0.jpg"


def test_a_grey_palette_is_grey(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "b")):
        picture(tmp_path / "scans" / name / "1.png", index, "L")
        Image.open(tmp_path / "scans" / name / "1.png").convert("P").save(tmp_path / "scans" / name / "2.gif")
    with Image.open(tmp_path / "scans" / "a" / "2.gif") as stored:
        stored.convert("P").save(tmp_path / "scans" / "a" / "3.png")
    assert open_dataset(tmp_path / "scans").grey
    colour = Image.new("RGB", (4, 4), "red").convert("P", palette=Image.Palette.ADAPTIVE)
    colour.save(tmp_path / "scans" / "a" / "4.png")
    with Image.open(tmp_path / "scans" / "a" / "4.png") as stored:
        assert stored.mode == "P"
    assert not open_dataset(tmp_path / "scans").grey


def test_broken_pictures_are_all_named_in_one_sentence(pets: Path) -> None:
    whole = (pets / "dog" / "0.png").read_bytes()
    (pets / "dog" / "0.png").write_bytes(whole[: len(whole) // 2])
    jpeg = (pets / "cat" / "1.jpg").read_bytes()
    (pets / "cat" / "1.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (pets / "dog" / "1.png").write_bytes(b"")
    (pets / "dog" / "2.png").write_text("not a picture")
    dataset = open_dataset(pets)
    for act in (
        lambda: verify(dataset),
        lambda: prepared(dataset, np.arange(7), Preprocessing(height=8, width=8)),
    ):
        with pytest.raises(UsageError, match="4 of 7 pictures of pets can't be used: ") as caught:
            act()
        message = str(caught.value)
        assert "cat/1.jpg" in message
        assert "dog/0.png" in message
        assert "dog/1.png (the picture is empty)" in message
        assert "and 1 more" in message
        assert "\n" not in message


def test_prepared_is_the_preprocessing_that_ships(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(pets)
    preprocessing = Preprocessing(height=12, width=10, resize="shorter-side", resize_to=14, resample="bicubic")
    done: list[int] = []
    pictures = prepared(dataset, np.array([5, 0, 5]), preprocessing, done.append)
    expected = np.stack([prepare(pets / name, preprocessing) for name in ("dog/1.png", "cat/0.jpg", "dog/1.png")])
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, expected)
    assert sum(done) == 3
    monkeypatch.setattr("trueport.pipeline.data.tensors.IN_MEMORY_BYTES", 1)
    on_disk = prepared(dataset, np.array([5, 0, 5]), preprocessing, scratch=tmp_path)
    assert isinstance(on_disk, np.memmap)
    assert np.array_equal(on_disk, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["pets"]


def test_names_that_are_not_utf_8_are_split_and_shown(pets: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    shutil.copy(pets / "dog" / "0.png", pets / "dog" / odd)
    dataset = open_dataset(pets)
    assert f"dog/{odd}" in dataset.ids
    parts = split(dataset, 0.2, 0.2, 0)
    assert parts.fingerprint == split(open_dataset(pets), 0.2, 0.2, 0).fingerprint
    assert sorted([*parts.train, *parts.validation, *parts.test]) == list(range(8))
    assert len(prepared(dataset, np.arange(8), Preprocessing(height=8, width=8))) == 8
    (pets / "dog" / odd).write_bytes(b"x")
    (pets / "dog" / os.fsdecode(b"\xe9.txt")).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"dog/caf\\udce9\.png") as caught:
        verify(open_dataset(pets))
    assert str(caught.value).encode()
    assert open_dataset(pets).ignored == ("dog/\\udce9.txt",)
    renamed = pets.rename(pets.with_name(os.fsdecode(b"p\xe9ts")))
    assert open_dataset(renamed).name == "p\\udce9ts"


def test_a_class_that_no_label_can_name_is_refused(pets: Path) -> None:
    (pets / "dog").rename(pets / os.fsdecode(b"ch\xe9vre"))
    with pytest.raises(UsageError, match=r"expected UTF-8, found ch\\udce9vre in .*: rename"):
        open_dataset(pets)


@pytest.mark.parametrize("name", ["cat", "cat/indoors", ""])
def test_folders_that_can_t_be_read_are_named(name: str, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = str(pets / name)  # by a stand-in, for nothing is closed to root

    def closing(function: Callable[..., Any]) -> Callable[..., Any]:
        def opens(path: Any, *arguments: Any) -> Any:
            if str(path) == closed:
                raise PermissionError(13, "Permission denied", closed)
            return function(path, *arguments)

        return opens

    monkeypatch.setattr(os, "scandir", closing(os.scandir))
    monkeypatch.setattr(os, "listdir", closing(os.listdir))
    with pytest.raises(UsageError, match=rf"can't read the folder {re.escape(closed)} \(Permission denied\)"):
        open_dataset(pets)


def test_unknown_names_list_near_choices() -> None:
    assert "digits" in dataset_names()
    with pytest.raises(UsageError, match="did you mean digits"):
        open_dataset("digit")
    with pytest.raises(UsageError, match="known: cifar10, digits"):
        open_dataset("zzz")
