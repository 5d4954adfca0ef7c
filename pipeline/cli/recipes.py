"""trueport recipes: those that come with trueport, to be run as they are or printed, changed and run."""

from __future__ import annotations

from typing import Annotated

import typer

from . import new_app

app = new_app()


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this one as TOML; `> mine.toml` makes it yours.")
    ] = None,
) -> None:
    """List the recipes, or print one."""
    from ..catalogue import recipes_table
    from ..console import print_table
    from ..recipe import recipe_text

    if name is None:
        print_table(recipes_table())
    else:
        print(recipe_text(name), end="")
