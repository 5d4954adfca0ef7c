"""What commands print: results to standard output, as tables or JSON; remarks to standard error."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from trueport.runtime.atomic import write_bytes
from trueport.runtime.errors import UsageError


@dataclass(frozen=True)
class Table:
    """Plain text in rows and columns, ready for any printer."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


STYLES = {"passed": "green", "failed": "bold red", "not run": "yellow", "ok": "green", "missing": "yellow"}
"""Of cells that hold just such a word; the word itself says it where there are no colours."""

SHORT = 16
"""Characters of a cell that is rather not wrapped."""
GAP = 3
"""Characters between two columns."""


def print_table(table: Table) -> None:
    """To standard output, as wide as the terminal; words break rather than vanish."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(table.columns))
    # Elsewhere than on a terminal nobody sees where a line ends: no wrapping at rich's default of 80 columns.
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200, highlight=False)
    whole = _whole_columns(table, console.width)
    for position, name in enumerate(table.columns):
        shown.add_column(Text(name), overflow="fold", no_wrap=position in whole)
    for row in table.rows:
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    with console.capture() as captured:
        if table.title:
            console.print(Text(table.title, style="bold"))
        console.print(shown)
        for note in table.notes:
            console.print(Text(note))
    print("\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines()))


def _whole_columns(table: Table, width: int) -> set[int]:
    """Columns that are not wrapped: names, to be copied, and what is short; none where the others had no room then."""
    from rich.cells import cell_len

    widest = [max(map(cell_len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
    whole = {position for position, length in enumerate(widest) if position == 0 or length <= SHORT}
    needed = sum(length if position in whole else SHORT for position, length in enumerate(widest))
    return whole if needed + GAP * len(widest) <= width else set()


def emit_json(result: object, target: str | None) -> None:
    """Write a result as JSON, as `emit` does; None: nowhere."""
    if target is not None:
        emit(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n", target)


def emit(data: bytes, target: str) -> None:
    """Write into a file, or to standard output where the target is `-`.

    A regular file is replaced in one step; a link stays, and a device or pipe is written to.
    """
    path = Path(target)
    if target == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    elif path.exists() and not path.is_file():  # by its own name: a pipe of /dev/fd leads to none
        with path.open("wb") as file:
            file.write(data)
    else:
        write_bytes(path.resolve(), data)


def refuse_unwritable(*targets: str | Path | None) -> None:
    """Raise UsageError for an output that could not be written: worth asking before the work that it is to hold."""
    for target in targets:
        if target is None or target == "-":
            continue
        path = Path(target)
        if path.is_dir():
            raise UsageError(f"{path} is a folder, expected a file to write")
        if path.exists() and not path.is_file():
            continue  # a device or a pipe
        _refuse_below(path)


def refuse_unwritable_folder(target: Path | None) -> None:
    """The same for an output that is a folder, and may be one already."""
    if target is None:
        return
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, expected a folder")
    _refuse_below(target)


def _refuse_below(path: Path) -> None:
    folder = path.resolve().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"can't write {path}: {folder} is no folder that may be written to")


def say(text: str) -> None:
    """A remark on standard error."""
    print(text, file=sys.stderr, flush=True)
