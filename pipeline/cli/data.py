"""trueport data: what there is to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import new_app

app = new_app(no_args_is_help=True)


@app.callback()
def data() -> None:
    """What there is to learn from."""


@app.command("list")
def list_() -> None:
    """List the data sets that have a name."""
    from ..catalogue import data_table
    from ..console import print_table

    print_table(data_table())


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set of `trueport data list`.")],
    root: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where it goes: $TRUEPORT_DATA, else the user's cache, where not given."),
    ] = None,
) -> None:
    """Download a data set, verify and unpack it. Training does it by itself where the data is not there."""
    from ..data import prepare_dataset

    folder = prepare_dataset(name, root)
    print(f"{name}: {folder or 'built in, there is nothing to download'}")
    if folder and root:
        print(f"training finds it there with TRUEPORT_DATA={root}")


@app.command()
def split(
    source: Annotated[
        str, typer.Argument(metavar="DATA", help="A data set's name, a folder of class folders, or a CSV file.")
    ],
    validation: Annotated[float, typer.Option(metavar="SHARE", help="Share that chooses the best epoch.")] = 0.1,
    test: Annotated[float, typer.Option(metavar="SHARE", help="Share held out.")] = 0.2,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the split.")] = 0,
) -> None:
    """Show how training would split data.

    Every picture is decoded; those that can't be used are named, and the exit code is 2.
    """
    from ..catalogue import split_table
    from ..console import print_table

    print_table(split_table(source, validation, test, seed))
