"""trueport train: an architecture, data and a recipe become a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import new_app

if TYPE_CHECKING:
    from ..recipe import Recipe

app = new_app()


@app.command()
def train(
    arch: Annotated[
        str | None,
        typer.Argument(metavar="ARCH", help="An architecture of `trueport models`; the recipe's where not given."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="A data set of `trueport data list`, a folder or a CSV file; else the recipe's."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Run folder; runs/ARCH-DATA or runs/RECIPE where not given.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="A recipe's file or name; defaults where not given.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS", help="To start from: imagenet, or a file, safetensors or a weights-only state dict."
        ),
    ] = None,
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe.")] = [],  # noqa: B006
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="auto, cpu or cuda; the recipe's where not given.")
    ] = None,
    afresh: Annotated[bool, typer.Option("--afresh", help="Discard what is in the run folder.")] = False,
) -> None:
    """Train. An interrupted training goes on where it was, to the same numbers as without the interruption.

    On several GPUs or machines: torchrun --nproc-per-node 2 -m trueport.pipeline.cli train ARCH --data DATA
    """
    from ..train import train as train_run
    from ..training.distributed import is_first

    chosen = _chosen(arch, data, recipe, [*set_, *([f"train.device={device}"] if device else [])], init)
    folder = out or Path("runs") / (_name(arch or chosen.model.arch, data) if data else chosen.name)
    info = train_run(chosen, folder, resume=not afresh)
    if is_first():
        best = f"epoch {info.best_epoch} of {info.epochs}" if info.epochs else "as it was given"
        print(
            f"{folder}: {info.metric} {info.test_score:.2%} on {info.test_count} held-out test pictures "
            f"({best}, {info.parameters:,} parameters)"
        )


def _chosen(arch: str | None, data: str | None, recipe: str | None, changes: list[str], init: str | None) -> Recipe:
    """The recipe with what the command line says on top. Raises UsageError where the two contradict each other."""
    import msgspec

    from trueport.runtime.errors import UsageError

    from ..recipe import load_recipe, recipe_from_table

    if recipe:
        loaded = load_recipe(recipe, changes)
    elif arch and data:
        loaded = recipe_from_table({"name": _name(arch, data)}, changes)
    else:
        raise UsageError("expected an architecture and --data, as in `trueport train lenet --data digits`, or --recipe")
    if recipe and arch and arch != loaded.model.arch:
        raise UsageError(
            f"the recipe {recipe} is for {loaded.model.arch}, found {arch}: leave one of them out, "
            f"or change the recipe's by --set model.arch={arch}"
        )
    model = {"arch": arch or loaded.model.arch, "init": init or loaded.model.init}
    return msgspec.structs.replace(
        loaded,
        model=msgspec.structs.replace(loaded.model, **model),
        data=msgspec.structs.replace(loaded.data, source=data or loaded.data.source),
    )


def _name(arch: str, data: str) -> str:
    path = Path(data).resolve()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{arch}-{path.stem if path.suffix.lower() == '.csv' else path.name}")
