"""trueport bench: the port's speed beside the original's, beside its baseline, or under load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trueport.runtime.errors import EXIT_GATE_FAILED

from . import new_app

BATCHES = "1,8,32"

app = new_app()


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    batch: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Batch sizes, comma-separated; 1,8,32 where not given.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="For each batch size, original and port together; for each scenario."),
    ] = 2.0,
    runner: Annotated[
        str, typer.Option(metavar="RUNNER", help="Such as openvino:cpu; `trueport doctor` tells which work here.")
    ] = "onnxruntime:cpu",
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="The bundle's first where not given.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of both; all cores where not given.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Did the port get slower than this says? Exit code 1 if so.")
    ] = None,
    update_baseline: Annotated[
        bool, typer.Option("--update-baseline", help="With --baseline: make it, or make it anew, in place of asking.")
    ] = False,
    scenario: Annotated[
        str | None, typer.Option(metavar="NAMES", help="MLPerf's in place of batches: single,offline,server.")
    ] = None,
    p99_ms: Annotated[
        float | None, typer.Option("--p99-ms", metavar="MS", help="Bound of the server scenario; 15 where not given.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="QPS", help="Try this rate only; the highest is looked for where not given.")
    ] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the package.module:factory that the bundle's original is made by.")
    ] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the report as JSON; - prints it.")] = None,
) -> None:
    """Time original and port in turns, in one process, on the same pictures and threads.

    A baseline holds no times, which drift with the machine, but ratios to a yardstick: the graph that it was made of,
    kept beside FILE. It is of one machine, bundle, variant, runner and number of threads. What is too noisy to tell is
    undecided, and not passed either.
    """
    from ..bench import bench as bench_bundle
    from ..bench import bench_scenarios, bench_table, scenarios_table
    from ..console import emit_json, print_table, refuse_unwritable, say
    from ..slowdown import latency_table

    refuse_unwritable(json, baseline if update_baseline else None)
    options: dict[str, Any] = {
        "runner": runner,
        "variant": variant,
        "seconds": seconds,
        "threads": threads,
        "progress": say,
    }
    if scenario is not None:
        if baseline or update_baseline:
            raise typer.BadParameter("a baseline is of batches: leave out --scenario", param_hint="--baseline")
        if batch is not None:
            raise typer.BadParameter("scenarios choose their own batches: leave out one of both", param_hint="--batch")
        names = [name.strip() for name in scenario.split(",")]
        report = bench_scenarios(bundle, names, p99_ms=p99_ms, rate=rate, **options)
    elif p99_ms is not None or rate is not None:
        raise typer.BadParameter("it is of --scenario server", param_hint="--rate" if p99_ms is None else "--p99-ms")
    else:
        report = bench_bundle(
            bundle,
            batches=sizes(batch or BATCHES),
            trust_code=trust_code,
            baseline=baseline,
            update_baseline=update_baseline,
            **options,
        )
    emit_json(report, json)
    if json != "-":
        print_table(scenarios_table(report) if report.scenarios else bench_table(report))
        if report.verdicts:
            print_table(latency_table(report.verdicts, str(baseline)))
    if update_baseline:
        say(f"baseline: {baseline}, and its yardstick beside it")
    if report.failed:
        raise typer.Exit(EXIT_GATE_FAILED)


def sizes(text: str) -> list[int]:
    """Batch sizes as they are given on the command line."""
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected numbers such as 1,8,32, found {text!r}", param_hint="--batch") from None
