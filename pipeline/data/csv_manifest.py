"""A CSV file that lists pictures and their labels; one that spreadsheets write is taken as it comes.

    image      path of the picture, from the CSV file's folder or absolute, with slashes
    label      its class; or
    labels     its labels between | or ;, none of them where the cell is empty: several labels a picture
    split      train, validation or test; optional, and where it is empty the split by shares decides

The column's name tells the task, not what happens to be in it: under `labels` even one label a picture is one of
several that are possible. Classes are sorted by name. Absolute paths are part of the data's fingerprint as they stand.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trueport.runtime.errors import UsageError, unknown_name

from .dataset import Part, displayed, shortened
from .files import FileDataset
from .folder import PART_NAMES

COLUMNS = ("image", "label", "labels", "split")
DELIMITERS = (",", ";", "\t")
BETWEEN_LABELS = re.compile(r"[|;]")
NOT_A_CLASS = re.compile(r"[|;\n\r]")


@dataclass(frozen=True)
class Row:
    """One picture as a line lists it."""

    line: int
    image: str
    labels: tuple[str, ...]
    part: Part | None


class CsvManifest(FileDataset):
    """The pictures that a CSV file lists; an id is the path as it is listed, without detours."""

    def __init__(self, path: Path) -> None:
        rows, several = _read(path)
        rows.sort(key=lambda row: row.image)
        _refuse_twice(path, rows)
        _refuse_absent(path, rows)
        classes = sorted({label for row in rows for label in row.labels})
        if len(classes) < (1 if several else 2):
            raise UsageError(f"{path} has the classes {classes}, expected at least two to tell apart")
        index = {name: label for label, name in enumerate(classes)}
        ids, parts = [row.image for row in rows], [row.part for row in rows]
        if several:
            marks = np.zeros((len(rows), len(classes)), np.uint8)
            for position, row in enumerate(rows):
                marks[position, [index[label] for label in row.labels]] = 1
            super().__init__(path.parent, path.stem, classes, ids, marks, parts)
        else:
            super().__init__(path.parent, path.stem, classes, ids, (index[row.labels[0]] for row in rows), parts)


def _read(path: Path) -> tuple[list[Row], bool]:
    """Every row, and whether it may have several labels. Raises UsageError that names the line."""
    reader = csv.reader(io.StringIO(text := _text(path), newline=""), delimiter=_delimiter(text), strict=True)
    columns: list[str] | None = None
    rows: list[Row] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells) or (columns is None and cells[0].lower().startswith("sep=")):
                continue  # an empty line, or Excel's word on what separates cells
            if columns is None:
                columns = _columns(path, cells)
                continue
            if len(cells) != len(columns):
                raise UsageError(
                    f"{path} has {len(cells)} cell{'s' * (len(cells) > 1)} in line {reader.line_num}, expected "
                    f"{len(columns)} as in its first line: {_remedy(len(cells), len(columns))}"
                )
            cell_of = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
            rows.append(_row(path, reader.line_num, cell_of))
    except csv.Error as error:
        raise UsageError(f"{path} is no valid CSV in line {reader.line_num}: {error}; write it anew") from error
    if not rows:
        raise UsageError(f"{path} lists no pictures, expected a first line such as image,label and a line for each")
    return rows, "labels" in (columns or ())


def _remedy(found: int, expected: int) -> str:
    return "fill in what is missing" if found < expected else 'write a cell that holds the separator between "'


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path} is not UTF-8 in line {line}: save it as UTF-8, which spreadsheets call CSV UTF-8"
        ) from error


def _delimiter(text: str) -> str:
    """What separates the names of columns in the first line."""
    lines = (line for line in text.splitlines() if line.strip())
    first = next(lines, "")
    if first.lower().startswith("sep="):
        return first[4:5] or ","
    return max(DELIMITERS, key=first.count)


def _columns(path: Path, cells: list[str]) -> list[str]:
    columns = [cell.strip().lower() for cell in cells]
    for name in columns:
        if name not in COLUMNS:
            raise unknown_name(f"column in {path}", name, COLUMNS)
    if len(set(columns)) < len(columns) or "image" not in columns or ("label" in columns) == ("labels" in columns):
        raise UsageError(
            f"{path} has the columns {', '.join(columns)}, expected image, then label or labels, and split or not: "
            "name them in the first line"
        )
    return columns


def _row(path: Path, line: int, cell_of: dict[str, str]) -> Row:
    image, part = cell_of["image"], cell_of.get("split", "")
    if not image:
        raise UsageError(f"{path} names no image in line {line}: fill in the cell, or remove the line")
    if part and part.lower() not in PART_NAMES:
        raise unknown_name(f"split in line {line} of {path}", part, ("train", "validation", "test"))
    if "labels" in cell_of:
        labels = tuple(label for cell in BETWEEN_LABELS.split(cell_of["labels"]) if (label := cell.strip()))
    elif not (label := cell_of["label"]):
        raise UsageError(
            f"{path} has no label for {displayed(image)} in line {line}: fill in the cell, or remove the line"
        )
    elif NOT_A_CLASS.search(label):
        raise UsageError(
            f"{path} has the label {label!r} in line {line}, expected one class: "
            "name the column labels where a picture has several"
        )
    else:
        labels = (label,)
    return Row(line, posixpath.normpath(image), labels, PART_NAMES[part.lower()] if part else None)


def _refuse_twice(path: Path, rows: list[Row]) -> None:
    first_line: dict[str, int] = {}
    twice = [
        f"{displayed(row.image)} in line {row.line} after line {first_line[row.image]}"
        for row in rows
        if first_line.setdefault(row.image, row.line) != row.line
    ]
    if twice:
        raise UsageError(
            f"{path} lists pictures twice: {shortened(twice)}; keep one line for each, "
            "with all labels between | in a column labels where there are several"
        )


def _refuse_absent(path: Path, rows: list[Row]) -> None:
    # os.path: a Path for each of a million rows would cost more than the look at the disk.
    base = str(path.parent)
    absent = [row for row in rows if not os.path.isfile(os.path.join(base, row.image))]  # noqa: PTH113, PTH118
    if absent:
        told = shortened(
            [f"{displayed(row.image)} in line {row.line}" for row in sorted(absent, key=lambda row: row.line)]
        )
        raise UsageError(
            f"{path} lists {len(absent):,} of {len(rows):,} pictures that are not there: {told}; "
            f"expected paths from {path.parent}, with slashes"
        )
