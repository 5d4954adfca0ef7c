"""trueport describe: a network layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueport.runtime.errors import UsageError

from . import new_app

app = new_app()


@app.command()
def describe(
    arch: Annotated[
        str, typer.Argument(metavar="ARCH", help="An architecture: of `trueport models`, or one that is brought.")
    ],
    input_: Annotated[
        str | None,
        typer.Option("--input", metavar="CxHxW", help="The picture; the architecture's own size by default."),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="1000 by default where that size is at least 128 pixels, else 10."),
    ] = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="An argument of the architecture.")
    ] = [],  # noqa: B006
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write everything as JSON; - prints it.")] = None,
    diagram: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw it, too.")] = None,
) -> None:
    """Tell kernel, padding, output size, receptive field, parameters and MACs of each layer; no weights are needed."""
    from ..console import emit_json, print_table, refuse_unwritable, say
    from ..describe import describe as described
    from ..describe import description_table

    if diagram and diagram.suffix.lower() != ".svg":
        raise UsageError(f"expected --diagram FILE.svg, found {diagram}")
    refuse_unwritable(json, diagram)
    found = described(arch, input_, classes, set_)
    emit_json(found, json)
    if json != "-":
        print_table(description_table(found))
    if diagram:
        from ..diagram import write_diagram

        write_diagram(diagram, found)
        say(f"{diagram}: the diagram")
