"""trueport check: is the port the model that was trained?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueport.runtime.errors import EXIT_GATE_FAILED

from . import new_app

app = new_app()


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    variant: Annotated[
        list[str], typer.Option(metavar="NAME", help="Repeatable; those made for the runner's device where not given.")
    ] = [],  # noqa: B006
    runner: Annotated[
        list[str], typer.Option(metavar="RUNNER", help="Repeatable; all: every one that this machine can open.")
    ] = ["onnxruntime:cpu"],  # noqa: B006
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of one inference; all cores where not given.")
    ] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the package.module:factory that the bundle's original is made by.")
    ] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the report as JSON; - prints it.")] = None,
) -> None:
    """Prove it: numeric parity, batch invariance, preprocessing and accuracy. Exit code 1 where a gate failed.

    With torch installed the original is rebuilt and asked anew; without, its recorded answers are the reference.
    A variant that was not named and can't run here is told as not run, and never counted as passed.
    """
    from ..check import check as check_bundle
    from ..check import check_table
    from ..console import emit_json, print_table

    report = check_bundle(bundle, variants=variant, runners=runner, threads=threads, trust_code=trust_code)
    emit_json(report, json)
    if json != "-":
        print_table(check_table(report))
    if not report:
        raise typer.Exit(EXIT_GATE_FAILED)
