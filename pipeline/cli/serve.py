"""trueport serve: bundles over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import new_app

app = new_app()


@app.command()
def serve(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE", help="Bundle folders; each is served under its own name.")
    ],
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; the default is this machine only.")
    ] = "127.0.0.1",
    http: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port; 0 takes a free one.")] = 8000,
    runner: Annotated[
        str, typer.Option(metavar="RUNNER", help="onnxruntime:cpu or onnxruntime:cuda.")
    ] = "onnxruntime:cpu",
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="Each bundle's first where not given.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of one inference; all cores where not given.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, metavar="ROWS", help="Most rows that run at once.")] = 32,
    max_queue: Annotated[
        int, typer.Option(min=1, metavar="ROWS", help="Most rows that wait; more are refused.")
    ] = 1024,
) -> None:
    """Serve by the Open Inference Protocol, in batches. Ctrl-C or SIGTERM: answer what was accepted, then end."""
    from trueport.runtime import BatchLimits, load
    from trueport.runtime.server import serve as serve_sessions

    from ..console import say

    limits = BatchLimits(max_batch_rows=max_batch, max_queue_rows=max_queue)
    sessions = [load(bundle, variant=variant, runner=runner, threads=threads, limits=limits) for bundle in bundles]
    for session in sessions:
        report = session.report
        name = f"{session.manifest.name} {session.manifest.version}"
        say(f"{name}: {session.variant.name} on {report.name}, {report.threads} threads")
    serve_sessions(sessions, host=host, port=http, log=say)
