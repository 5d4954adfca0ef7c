"""trueport report: all that is known of a bundle, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import new_app

app = new_app()


@app.command()
def report(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    check: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of `trueport check --json`; without, it is checked, and failures traced."),
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of `trueport bench --json`; without, the page says nothing of speed."),
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="The run it was exported from: its training.")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page goes.")] = Path("report.html"),
    runner: Annotated[
        list[str], typer.Option(metavar="RUNNER", help="Repeatable; to check on, where there is no --check.")
    ] = ["onnxruntime:cpu"],  # noqa: B006
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of one inference of that check; all cores where not given.")
    ] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the package.module:factory that the bundle's original is made by.")
    ] = False,
) -> None:
    """Make one self-contained page: verdict, gates, causes, layers, pictures, speed, machine. It loads nothing.

    The page is made whatever the verdict is, and then the exit code is 0: `trueport check` is the gate.
    """
    from ..console import refuse_unwritable, say
    from ..report import report_file

    refuse_unwritable(out)
    report_file(
        bundle,
        out,
        check_file=check,
        bench_file=bench,
        run=run,
        runners=runner,
        threads=threads,
        trust_code=trust_code,
        progress=say,
    )
    say(f"{out} is written")
