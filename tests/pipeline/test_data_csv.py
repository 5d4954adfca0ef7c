"""CSV manifests: what spreadsheets write is read, what is wrong is named with its line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trueport.pipeline.catalogue import split_table
from trueport.pipeline.data import open_dataset, prepared, split
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Preprocessing


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A folder of ten pictures p/0.png to p/9.png."""
    root = tmp_path / "zoo"
    (root / "p").mkdir(parents=True)
    for index in range(10):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(root / "p" / f"{index}.png")
    return root


def listed(root: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path = root / "list.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_one_label_a_picture(zoo: Path) -> None:
    lines = [f"p/{index}.png,{'dog' if index % 2 else 'cat'}" for index in reversed(range(10))]
    data = open_dataset(listed(zoo, "image,label", *lines))
    assert (data.task, data.name, data.classes) == ("classification", "list", ("cat", "dog"))
    assert data.ids[:2] == ("p/0.png", "p/1.png")
    assert data.labels.tolist() == [0, 1] * 5
    pixels = prepared(data, np.array([7]), Preprocessing(height=8, width=8))
    assert pixels[0, 0, 0].tolist() == [7, 0, 0]
    assert not data.grey
    parts = split(data, 0.2, 0.2, 0)
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [6, 2, 2]


def test_several_labels_a_picture(zoo: Path) -> None:
    lines = ["p/0.png,sky|sea", "p/1.png, sea ;sand", "p/2.png,", "p/3.png,sky|sky"]
    data = open_dataset(listed(zoo, "image,labels", *lines))
    assert (data.task, data.classes) == ("multilabel", ("sand", "sea", "sky"))
    assert data.labels.dtype == np.uint8
    assert data.labels.tolist() == [[0, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert open_dataset(listed(zoo, "image,labels", "p/0.png,sky", "p/1.png,sea")).task == "multilabel"


def test_own_parts_are_taken_and_the_rest_is_divided(zoo: Path) -> None:
    own = {0: "test", 1: "Test", 2: "val", 3: "valid", 4: "train", 5: "train"}
    lines = [f"p/{index}.png,{'dog' if index % 2 else 'cat'},{own.get(index, '')}" for index in range(10)]
    data = open_dataset(listed(zoo, "image,label,split", *lines))
    assert data.parts[:5] == ("test", "test", "validation", "validation", "train")
    assert data.parts[6:] == (None,) * 4
    parts = split(data, 0.1, 0.2, 0)
    assert parts.test.tolist() == [0, 1]
    assert parts.validation.tolist() == [2, 3]
    assert parts.train.tolist() == list(range(4, 10))


@pytest.mark.parametrize(
    ("lines", "encoding"),
    [
        (("\ufeffimage,label", "p/0.png,Bär", "p/1.png,cat"), "utf-8"),
        (("image;label", "p/0.png;Bär", "p/1.png;cat", "", ";"), "utf-8-sig"),
        (("sep=;", "image;label", '"p/0.png";"Bär"', "p/1.png;cat"), "utf-8"),
        (("image\tlabel", "p/0.png\tBär", "p/1.png\tcat"), "utf-16"),
        (("Label , Image", "Bär, ./p/0.png", "cat,p/../p/1.png"), "utf-8"),
        (("image,label\r", "p/0.png,Bär\r", "p/1.png,cat\r"), "utf-8"),
    ],
)
def test_what_spreadsheets_write_is_read(zoo: Path, lines: tuple[str, ...], encoding: str) -> None:
    data = open_dataset(listed(zoo, *lines, encoding=encoding))
    assert data.ids == ("p/0.png", "p/1.png")
    assert [data.classes[label] for label in data.labels] == ["Bär", "cat"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ("image,label", "p/0.png,cat", "p/x.png,dog"),
            r"1 of 2 pictures that are not there: p/x\.png in line 3; expected",
        ),
        (("image,label", "p/0.png,cat", "", "p/1.png,"), r"no label for p/1\.png in line 4: fill in"),
        (("image,label", "p/0.png,cat", ",dog"), "names no image in line 3"),
        (("image,lable", "p/0.png,cat"), r"unknown column in .*list\.csv 'lable': did you mean label or labels\?"),
        (("image,label,width", "p/0.png,cat,8"), "unknown column .* 'width': known: image, label, labels, split"),
        (("image,label,labels", "p/0.png,cat,dog"), "has the columns image, label, labels, expected image, then"),
        (("image,split", "p/0.png,train"), "expected image, then label or labels"),
        (("image,label,label", "p/0.png,cat,dog"), "has the columns image, label, label"),
        (("image,label", "p/0.png,cat", "./p/0.png,dog"), r"twice: p/0\.png in line 3 after line 2; keep one line"),
        (
            ("image,label", "p/0.png,cat|dog", "p/1.png,cat"),
            r"label 'cat\|dog' in line 2, expected one class: name the col",
        ),
        (("image,label,split", "p/0.png,cat,trian", "p/1.png,dog,"), "unknown split in line 2 .* did you mean train"),
        (("image,label", "p/0.png,cat,dog"), "has 3 cells in line 2, expected 2 .*: write a cell that holds"),
        (("image,label", "p/0.png"), "has 1 cell in line 2, expected 2 as in its first line: fill in what is missing"),
        (("image,label", '"p/0.png,cat'), "no valid CSV in line 2"),
        (("image,label", "p/0.png,cat", "p/1.png,cat"), r"has the classes \['cat'\], expected at least two"),
        (("image,label",), "lists no pictures"),
        (("",), "lists no pictures"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(zoo: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_dataset(listed(zoo, *lines))
    assert "\n" not in str(caught.value)


def test_another_encoding_is_refused_with_its_line(zoo: Path) -> None:
    path = listed(zoo, "image,label", "p/0.png,cat", "p/1.png,Bär", encoding="latin-1")
    with pytest.raises(UsageError, match="is not UTF-8 in line 3: save it as UTF-8"):
        open_dataset(path)
    with pytest.raises(UsageError, match=r"there is no file .*other"):
        open_dataset(zoo / "other.csv")


def test_pictures_may_lie_anywhere(zoo: Path, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    data = open_dataset(listed(away, "image,label", "../zoo/p/0.png,cat", f"{zoo}/p/1.png,dog"))
    assert [data.image(index).getpixel((0, 0)) for index in range(2)] == [(0, 0, 0), (1, 0, 0)]


def test_the_fingerprint_follows_labels_and_contents_not_place_or_order(zoo: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path, *lines: str) -> str:
        return open_dataset(listed(root, "image,labels", *lines)).fingerprint

    shutil.copytree(zoo, tmp_path / "copy")
    first = fingerprint(zoo, "p/0.png,a|b", "p/1.png,b")
    assert fingerprint(tmp_path / "copy", "p/1.png,b", "p/0.png,b|a") == first
    relabelled = fingerprint(zoo, "p/0.png,a|b", "p/1.png,a")
    shutil.copy(zoo / "p" / "5.png", zoo / "p" / "1.png")
    assert len({first, relabelled, fingerprint(zoo, "p/0.png,a|b", "p/1.png,b")}) == 3


def test_the_table_counts_a_picture_for_each_of_its_labels(zoo: Path) -> None:
    lines = [f"p/{index}.png,{'sea' if index % 2 else 'sky|sea'},{part}" for index, part in enumerate(["train"] * 6)]
    lines += ["p/6.png,sky|sea,val", "p/7.png,sea,val", "p/8.png,sky,test", "p/9.png,sea,test"]
    table = split_table(str(listed(zoo, "image,labels,split", *lines)), 0.1, 0.2, 0)
    assert table.rows == (("sea", "6", "2", "1"), ("sky", "3", "1", "1"), ("all pictures", "6", "2", "2"))
