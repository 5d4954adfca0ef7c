"""describe: a network layer by layer, with sizes, receptive fields, parameters and multiplications, as text or JSON."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from trueport.runtime.errors import MissingError, TrueportError, UsageError

from .console import Table
from .recipe import ModelSection, recipe_from_table
from .resolve import new_model, spec_as_built

if TYPE_CHECKING:
    from trueport.models import ModelSpec
    from trueport.models.description import Description, Row

IMAGENET_FROM = 128
"""Pixels: an architecture for pictures of at least this height has ImageNet's classes where none are asked for."""
NARROW, NARROWEST = 130, 72
"""Columns of a terminal below which windows move into the layer's description, and names are cut to their ends."""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """An architecture as it was asked for, and what it is made of."""

    arch: str
    arguments: dict[str, Any]
    classes: int
    description: Any
    """`models.description.Description`."""


def describe(
    arch: str, picture: str | None = None, classes: int | None = None, changes: Sequence[str] = ()
) -> Described:
    """Build an architecture without numbers and run it once.

    picture: CxHxW; the architecture's own size, in colour where it can, if None. classes: 1000 where that size is
    ImageNet's, else 10, if None. changes: `key=value` of the architecture's own arguments.
    Raises UsageError for what can't be built, or can't take such a picture; MissingError without torch.
    """
    section = ModelSection(arch=arch, args=_arguments(changes))
    spec = spec_as_built(section)
    size = _picture(picture) if picture else (3 if 3 in spec.channels else spec.channels[0], *spec.size)
    _refuse(spec, size)
    classes = classes or (1000 if min(spec.size) >= IMAGENET_FROM else 10)
    description = _run(section, classes, size)
    logits = description.rows[-1].output
    if len(logits) == 1:
        classes = logits[0]  # a factory may make a network for classes of its own
    return Described(arch=arch, arguments=section.args, classes=classes, description=description)


def _run(section: ModelSection, classes: int, picture: tuple[int, int, int]) -> Description:
    """On the meta device from the start, so that large networks cost no memory; else as they are."""
    import torch

    from trueport.models import description

    try:
        with torch.device("meta"):
            module = new_model(section, classes, picture[0])
        found = description.describe(module, picture)
        if found.device == "meta":
            return found
    except MissingError:
        raise
    except (TrueportError, RuntimeError, NotImplementedError, ValueError):
        pass  # it needs numbers, or the user's mistake shows again below
    module = new_model(section, classes, picture[0])
    try:
        return description.describe(module, picture)
    except description.DescriptionError as error:
        size = "x".join(map(str, picture))
        raise UsageError(
            f"{section.arch} can't be described for pictures of {size}: {error}; name their size by --input"
        ) from error


def _picture(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5}){2}", text):
        raise UsageError(f"expected --input CxHxW such as 3x224x224, found {text!r}")
    channels, height, width = map(int, text.split("x"))
    return channels, height, width


def _arguments(changes: Sequence[str]) -> dict[str, Any]:
    for change in changes:
        if not re.match(r"[^=.\s]+\s*=", change):
            raise UsageError(f"expected --set key=value with an argument of the architecture, found {change!r}")
    return recipe_from_table({"name": "describe"}, [f"model.args.{change}" for change in changes]).model.args


def _refuse(spec: ModelSpec, picture: tuple[int, int, int]) -> None:
    channels, height, width = picture
    if channels not in spec.channels:
        choices = " or ".join(map(str, spec.channels))
        raise UsageError(f"{spec.name} takes {choices} input channels, found --input {times(picture)}: change it")
    if refusal := spec.refusal((height, width)):
        raise UsageError(f"{refusal}: change --input")


def description_table(described: Described, width: int | None = None) -> Table:
    """As text, in columns that fit a terminal of so many characters; of this terminal, if None."""
    width = width or _terminal()
    description: Description = described.description
    rows = description.rows
    columns: dict[str, list[str]] = {"layer": [row.name for row in rows]}
    if width >= NARROW:
        columns |= {
            "kind": [row.kind for row in rows],
            "kernel": [times(row.kernel) for row in rows],
            "stride": [same(row.stride) for row in rows],
            "padding": [padding(row) for row in rows],
            "dilation": [same(row.dilation) for row in rows],
            "groups": [str(row.groups) if row.groups > 1 else "" for row in rows],
        }
        for name, usual in (("dilation", {"", "1"}), ("groups", {""})):
            if set(columns[name]) <= usual:
                del columns[name]
    else:
        columns["layer"] = [_shortened(row.name, 24 if width >= NARROWEST else 14) for row in rows]
        columns["what"] = [caption(row) for row in rows]
    columns |= {
        "output": [times(row.output) for row in rows],
        "sees": [sees(row) for row in rows],
    }
    notes = totals(description)
    if width >= NARROWEST:
        columns["parameters" if width >= NARROW else "params"] = [_count(row.parameters, width) for row in rows]
        columns["MACs"] = [_count(row.macs, width) for row in rows]
    else:
        notes += (f"parameters and MACs of each layer: on a terminal of {NARROWEST} columns, or with --json",)
    if width >= NARROW:
        columns["then"] = [", ".join(filter(None, (row.how, *row.follows))) for row in rows]
    title = f"{described.arch}, {described.classes:,} classes, pictures of {times(description.picture)}"
    return Table(title, tuple(columns), tuple(zip(*columns.values(), strict=True)), notes)


def totals(description: Description) -> tuple[str, ...]:
    """What the network amounts to, in lines for people."""
    largest = description.rows[description.largest]
    pixels = math.prod(largest.output)
    lines = [
        f"{description.parameters:,} parameters, {description.weights_mb:,.2f} MB in float32",
        f"{count_words(description.macs)} multiply-accumulates (MACs) for one picture",
        f"largest activation: {largest.name}, {times(largest.output)}, {pixels * 4 / 1e6:,.2f} MB in float32",
    ]
    if description.unused:
        lines.append(f"{description.unused:,} of the parameters serve only training")
    fields = {part for row in description.rows for part in row.field}
    legend = {"all": "all: the whole picture", "?": "?: can't be told from shapes alone"}
    if words := [text for part, text in legend.items() if part in fields]:
        lines.append(f"sees: receptive field in pixels, height x width ({'; '.join(words)})")
    if description.device != "meta":
        lines.append(f"run with numbers on the CPU, since it can't do without: {description.reason}")
    return tuple(lines)


def caption(row: Row) -> str:
    """Kind and window in one: `conv 11x11 /4 +[1, 2]`; stride after the stroke, padding after the plus."""
    parts = [row.kind]
    if row.kernel:
        parts.append(times(row.kernel))
    if any(step != 1 for step in row.stride):
        parts.append(f"/{same(row.stride)}")
    if any(map(any, row.padding)):
        parts.append(f"+{padding(row)}")
    if any(step != 1 for step in row.dilation):
        parts.append(f"dilation {same(row.dilation)}")
    if row.groups > 1:
        parts.append(f"groups {row.groups}")
    return " ".join(parts)


def times(sizes: Sequence[int | str]) -> str:
    """Sizes as text: 64x55x55."""
    return "x".join(map(str, sizes))


def same(values: Sequence[int | str]) -> str:
    """One value where all are equal, else all of them: 2, or 2x1."""
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


def padding(row: Row) -> str:
    """`2`, `[1, 2]` where there is less before than after, and each axis of its own where they differ."""
    return (
        same([str(before) if before == after else f"[{before}, {after}]" for before, after in row.padding])
        if row.padding
        else ""
    )


def sees(row: Row) -> str:
    """Receptive field as text."""
    return str(row.field[0]) if isinstance(row.field[0], str) and row.field[0] == row.field[1] else times(row.field)


def count_words(count: int) -> str:
    """A large number in three or four digits: 714 M, 4.09 G."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= 0.9995 * factor:
            return f"{float(f'{count / factor:.4g}'):g} {unit}"
    return str(count)


def _count(count: int, width: int) -> str:
    if not count:
        return ""
    return f"{count:,}" if width >= NARROW else count_words(count)


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _terminal() -> int:
    """Characters a line, as `print_table` counts them."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
