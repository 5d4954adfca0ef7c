"""trueport tune: the fastest way to run a bundle here that is still faithful."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueport.runtime.errors import EXIT_GATE_FAILED

from . import new_app
from .bench import sizes

app = new_app()


@app.command()
def tune(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    p99_ms: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Also find the highest throughput with a 99th percentile below this."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Accuracy that may be lost, in the place of the variants' own bounds."),
    ] = None,
    minutes: Annotated[float, typer.Option(metavar="MINUTES", help="After which nothing new is begun.")] = 5.0,
    runner: Annotated[
        list[str], typer.Option(metavar="NAME", help="Only this runner; repeatable. All that open where not given.")
    ] = [],  # noqa: B006
    variant: Annotated[list[str], typer.Option(metavar="NAME", help="Only this variant; repeatable.")] = [],  # noqa: B006
    batch: Annotated[str, typer.Option(metavar="SIZES", help="Batch sizes, comma-separated.")] = "1,2,4,8,16,32",
    afresh: Annotated[
        bool, typer.Option("--afresh", help="Measure again what an earlier search has measured.")
    ] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the report as JSON; - prints it.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw accuracy drop against images/s: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Find the fastest variant, runner, threads, options and batch that pass the gates of `check` on this machine.

    The choice is kept in the bundle, where `load`, `predict` and `serve` find it. Interrupted, the same command goes on
    from there. Exit code 1 where nothing passes the gates, or nothing meets the bound.
    """
    from ..console import emit_json, print_table, refuse_unwritable, say
    from ..evaluation import refuse_plot
    from ..tune import tune as tune_bundle
    from ..tuning.report import draw_tuned, tune_table

    refuse_unwritable(json, plot)
    if plot:
        refuse_plot(plot)  # before the work
    try:
        report = tune_bundle(
            bundle,
            variants=variant,
            runners=runner,
            batches=sizes(batch),
            p99_ms=p99_ms,
            max_drop=max_drop,
            minutes=minutes,
            afresh=afresh,
            progress=say,
        )
    except KeyboardInterrupt:
        say("what was measured is kept: the same command goes on from there")
        raise
    emit_json(report, json)
    if json != "-":
        print_table(tune_table(report))
    if plot and report.tuned:
        draw_tuned(report, plot)
    if not report:
        raise typer.Exit(EXIT_GATE_FAILED)
