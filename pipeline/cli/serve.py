"""trueport serve: bundles over HTTP."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import new_app

if TYPE_CHECKING:
    from trueport.runtime.server.member import Member

app = new_app()

TOKEN_VARIABLE = "TRUEPORT_TOKEN"  # noqa: S105 - its name


class LogFormat(StrEnum):
    """Of what is told on standard error."""

    TEXT = "text"
    JSON = "json"


@app.command()
def serve(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="BUNDLE", help="Bundle folders; each is served under its own name.", show_default=False),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; the default is this machine only.")
    ] = "127.0.0.1",
    http: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port; 0 takes a free one.")] = 8000,
    grpc: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="Answer gRPC too; 0 takes a free port.")
    ] = None,
    runner: Annotated[
        str | None, typer.Option(metavar="RUNNER", help="Such as onnxruntime:cpu; see below where not given.")
    ] = None,
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="Each bundle's first where not given.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of one inference; all cores where not given.")
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="ROWS",
            help="Most rows that run at once; where neither this nor --max-queue is given the tuned batch, else 32.",
        ),
    ] = None,
    max_queue: Annotated[
        int | None,
        typer.Option(min=1, metavar="ROWS", help="Most rows that wait, more are refused; 1024 where not given."),
    ] = None,
    decode_threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="That decode pictures; one a core where not given.")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Bundles in it can be loaded later, see --model-control."),
    ] = None,
    model_control: Annotated[
        bool, typer.Option("--model-control", help="Let clients load and unload models (/v2/repository).")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer only requests with the token in this file; or set TRUEPORT_TOKEN."),
    ] = None,
    open_health: Annotated[bool, typer.Option("--open-health", help="Tell the server's health without it.")] = False,
    log_format: Annotated[
        LogFormat, typer.Option(metavar="text|json", help="Of what is told on standard error.")
    ] = LogFormat.TEXT,
    access_log: Annotated[
        bool, typer.Option("--access-log", help="Tell of every HTTP request in one line; off unless given.")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="That share the port; each has models, queue and limits of its own.")
    ] = 1,
) -> None:
    """Serve by the Open Inference Protocol, in batches, each model once it answers its golden set as the original did.

    Ctrl-C or SIGTERM: answer what was accepted, then end; a second one ends at once. SIGHUP: load the models anew whose
    bundle has been replaced, without a pause; one that fails its golden set is not taken, and the old one stays.

    Where neither runner, variant nor threads are given, each bundle runs as `trueport tune` found to be fastest here,
    else on onnxruntime:cpu; which it is, and why, is told at the start. Of several processes each takes its part of
    the cores as threads, which counts as given.
    """
    from trueport.runtime import BatchLimits, Session, load
    from trueport.runtime.errors import UsageError
    from trueport.runtime.machine import available_cores
    from trueport.runtime.server import Access, Log, Source, require_golden, token_from_file
    from trueport.runtime.server import serve as serve_sessions

    if not bundles and not (models and model_control):
        raise UsageError("give a BUNDLE to serve, or --models FOLDER with --model-control to load some later")
    if models is not None and not models.is_dir():
        raise UsageError(f"--models {models} is no folder: give one that holds bundles")
    before = set(threading.enumerate())
    token = token_from_file(token_file) if token_file else os.environ.get(TOKEN_VARIABLE)
    access = Access(token, open_health=open_health)
    log = Log(sys.stderr, as_json=log_format is LogFormat.JSON)
    tell: Callable[[str], None] = log.say
    member: Member | None = None
    if processes > 1:
        if model_control:
            raise UsageError("--model-control reaches one of several processes: use one, or SIGHUP to reload them all")
        from trueport.runtime.server.member import member_from_environment

        member = member_from_environment()
        if member is None:
            from trueport.runtime.server.processes import serve_in_processes

            command = [sys.executable, "-m", __package__, *sys.argv[1:]]
            raise typer.Exit(serve_in_processes(command, processes, host, http, tell, grpc_port=grpc))
        tell, http, grpc = member.say, member.place.port, member.place.grpc_port
        share = max(1, available_cores() // processes)
        threads, decode_threads = threads or share, decode_threads or share
    limits = None
    if max_batch is not None or max_queue is not None:
        limits = BatchLimits(max_batch_rows=max_batch or 32, max_queue_rows=max_queue or 1024)

    def opened(bundle: Path) -> Session:
        session = load(bundle, variant=variant, runner=runner, threads=threads, limits=limits, spinning=False)
        tell(f"{session.manifest.name} {session.manifest.version}: {session.chosen}")
        return session

    source = Source(opened, require_golden, models, model_control)
    sessions: list[Session] = []
    with _no_hangup(), log.handling():
        try:
            for bundle in bundles or ():
                sessions.append(opened(bundle))  # noqa: PERF401 - what is open is closed where the next one fails
        except BaseException:
            for session in sessions:
                session.close()
            raise
        serve_sessions(
            sessions,
            host=host,
            port=http,
            log=tell,
            access=access,
            grpc_port=grpc,
            source=source,
            decode_threads=decode_threads,
            member=member,
            watch=log.request if access_log else None,
        )
    if any(thread.daemon and thread.name.startswith("trueport") for thread in set(threading.enumerate()) - before):
        sys.stderr.flush()
        os._exit(0)  # a load or a run that was left to itself does not survive the interpreter's end beneath it


@contextmanager
def _no_hangup() -> Iterator[None]:
    """SIGHUP does not end the process while its models are being loaded: there is nothing yet to load anew."""
    from trueport.runtime.server.serve import HANGUP

    if HANGUP is None:
        yield
        return
    before = signal.signal(HANGUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(HANGUP, before)
