"""trueport train: an architecture, data and a recipe become a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import new_app

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
    from ..chosen import chosen_recipe, run_name
    from ..train import train as train_run
    from ..training.distributed import is_first

    chosen = chosen_recipe(arch, data, recipe, [*set_, *([f"train.device={device}"] if device else [])], init)
    folder = out or Path("runs") / (run_name(arch or chosen.model.arch, data) if data else chosen.name)
    info = train_run(chosen, folder, resume=not afresh)
    if is_first():
        print(f"{folder}: {info.told()}")
