"""trueport models: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

from . import new_app

app = new_app()


@app.command()
def models(
    library: Annotated[
        str | None, typer.Argument(metavar="LIBRARY", help="torchvision or timm; ours where not given.")
    ] = None,
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Only names like this, such as 'resnet*'.")] = "*",
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the list as JSON; - prints it.")] = None,
) -> None:
    """List the architectures with size, channels and paper.

    A recipe's model.arch is one of them, torchvision/NAME, timm/NAME, or package.module:factory: a callable that gives
    a torch.nn.Module, looked for as Python does and then in the current directory.
    """
    from ..catalogue import listed_models, models_table
    from ..console import emit_json, print_table

    emit_json(listed_models(library, pattern) if json else None, json)
    if json != "-":
        print_table(models_table(library, pattern))
