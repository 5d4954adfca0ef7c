"""trueport run: the whole main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueport.runtime.errors import EXIT_GATE_FAILED

from . import new_app

app = new_app()


@app.command()
def run(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe's file (.toml) or the name of one that comes with trueport."),
    ],
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Run folder; runs/NAME where not given.")] = None,
    afresh: Annotated[bool, typer.Option("--afresh", help="Do every stage again.")] = False,
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe.")] = [],  # noqa: B006
) -> None:
    """Take a recipe through every stage: train, export, check, bench, report.

    A stage whose inputs did not change is skipped; an interrupted run goes on. Exit code 1 where a gate failed.
    """
    from ..console import print_table, say
    from ..export_run import tell_warnings
    from ..recipe import load_recipe
    from ..stages import outcome_table, run_stages

    loaded = load_recipe(recipe, set_)
    outcome = run_stages(loaded, out or Path("runs") / loaded.name, afresh=afresh, say=say)
    tell_warnings(outcome.bundle.manifest, say)
    print_table(outcome_table(outcome))
    if not outcome.check:
        raise typer.Exit(EXIT_GATE_FAILED)
