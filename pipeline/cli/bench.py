"""trueport bench: the port's speed beside the original's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import new_app

app = new_app()


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    batch: Annotated[str, typer.Option(metavar="SIZES", help="Batch sizes, comma-separated.")] = "1,8,32",
    seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="For each batch size, original and port together.")
    ] = 2.0,
    runner: Annotated[
        str, typer.Option(metavar="RUNNER", help="Such as openvino:cpu; `trueport doctor` tells which work here.")
    ] = "onnxruntime:cpu",
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="The bundle's first where not given.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of both; all cores where not given.")] = None,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the package.module:factory that the bundle's original is made by.")
    ] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the report as JSON; - prints it.")] = None,
) -> None:
    """Time original and port in turns, in one process, on the same pictures and threads."""
    from ..bench import bench as bench_bundle
    from ..bench import bench_table
    from ..console import emit_json, print_table, say

    report = bench_bundle(
        bundle,
        runner=runner,
        variant=variant,
        batches=sizes(batch),
        seconds=seconds,
        threads=threads,
        trust_code=trust_code,
        progress=say,
    )
    emit_json(report, json)
    if json != "-":
        print_table(bench_table(report))


def sizes(text: str) -> list[int]:
    """Batch sizes as they are given on the command line."""
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected numbers such as 1,8,32, found {text!r}", param_hint="--batch") from None
