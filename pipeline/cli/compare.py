"""trueport compare: two bundles, or two reports, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueport.runtime.errors import EXIT_GATE_FAILED

from . import new_app

app = new_app()

KIND = "A bundle folder, or a JSON file of `trueport check` or `trueport bench`."


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help=KIND)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Of the same kind: is it what A is, better, or worse?")],
    variant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of both bundles; each one's first where not given.")
    ] = None,
    runner: Annotated[str, typer.Option(metavar="RUNNER", help="That both bundles are asked on.")] = "onnxruntime:cpu",
    margin: Annotated[
        float, typer.Option(metavar="POINTS", help="Of accuracy, which are no difference between bundles.")
    ] = 1.0,
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="For each batch size, both bundles together.")
    ] = 2.0,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of one inference; all cores where not given.")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the result as JSON; - prints it.")] = None,
) -> None:
    """What changed from A to B: facts, answers, accuracy, speed. Exit code 1 where B is worse, or that can't be told.

    Bundles answer the same held-out pictures on this machine and are timed in turns. Reports are those of one bundle on
    two machines, or of two days.
    """
    from ..compare import compare as compared
    from ..comparing import comparison_table
    from ..console import emit_json, print_table, refuse_unwritable, say

    refuse_unwritable(json)
    result = compared(
        a, b, variant=variant, runner=runner, margin=margin, seconds=seconds, threads=threads, progress=say
    )
    emit_json(result, json)
    if json != "-":
        print_table(comparison_table(result))
    if not result:
        raise typer.Exit(EXIT_GATE_FAILED)
