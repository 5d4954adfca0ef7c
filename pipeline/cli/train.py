"""trueport train: an architecture, data and a recipe become a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from . import new_app

app = new_app()


@app.command()
def train(
    arch: Annotated[str, typer.Argument(help="An architecture of `trueport models`.")],
    data: Annotated[str, typer.Option(help="A data set of `trueport data`, or a folder of class folders.")],
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/ARCH-DATA where not given.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe's file or name; defaults where not given.")] = None,
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe.")] = [],  # noqa: B006
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    afresh: Annotated[bool, typer.Option("--afresh", help="Discard what is in the run folder.")] = False,
) -> None:
    """Train. An interrupted training goes on where it was, to the same numbers as without the interruption."""
    import msgspec

    from ..recipe import load_recipe, recipe_from_table
    from ..train import train as train_run

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{arch}-{Path(data).resolve().name}")
    changes = [*set_, *([f"train.device={device}"] if device else [])]
    loaded = load_recipe(recipe, changes) if recipe else recipe_from_table({"name": name}, changes)
    loaded = msgspec.structs.replace(
        loaded,
        model=msgspec.structs.replace(loaded.model, arch=arch),
        data=msgspec.structs.replace(loaded.data, source=data),
    )
    folder = out or Path("runs") / name
    info = train_run(loaded, folder, resume=not afresh)
    print(
        f"{folder}: {info.test_accuracy:.2%} on {info.test_count} held-out test pictures "
        f"(best of {info.epochs} epochs: {info.best_epoch}, {info.parameters:,} parameters)"
    )
