"""trueport predict: pictures in, labels out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueport.runtime.errors import EXIT_USAGE

from . import new_app

app = new_app()


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle folder.")],
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE", help="Files, folders, or - for standard input.")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many classes to tell.")] = 5,
    above: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SCORE",
            help="Only classes of a larger score, such as 0.5 where pictures have several.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    runner: Annotated[
        str | None, typer.Option(metavar="RUNNER", help="Such as onnxruntime:cpu; see below where not given.")
    ] = None,
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="The bundle's first where not given.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of one inference; all cores where not given.")
    ] = None,
) -> None:
    """Classify pictures. One that can't be decoded is named, the others are answered, and the exit code is 2.

    Where neither runner, variant nor threads are given, the bundle runs as `trueport tune` found to be fastest here,
    else on onnxruntime:cpu.
    """
    import msgspec

    from trueport.runtime import load

    from ..console import say
    from ..predict import predict as classified

    failed = 0
    with load(bundle, variant=variant, runner=runner, threads=threads) as session:
        for answer in classified(session, pictures, top, above):
            failed += bool(answer.error)
            if json:
                print(msgspec.json.encode(answer).decode())
            elif answer.error:
                say(f"trueport: {answer.error}")
            else:
                told = ", ".join(f"{score.label} {score.score:.1%}" for score in answer.top)
                print(f"{answer.picture}: {told or 'no label'}")
    if failed:
        raise typer.Exit(EXIT_USAGE)
