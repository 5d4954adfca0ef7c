"""trueport evaluate: how good are the answers, class by class?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trueport.runtime.errors import EXIT_USAGE

from . import new_app

app = new_app()


class Part(StrEnum):
    """Of the data."""

    TEST = "test"
    VALIDATION = "validation"
    TRAIN = "train"
    ALL = "all"


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder or a bundle folder.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="A data set, a folder or a CSV file; a run's own, or a bundle's evaluation slice, where not given.",
        ),
    ] = None,
    part: Annotated[
        Part | None,
        typer.Option(
            metavar="PART",
            help="test, validation, train or all; test where not given, or all of data that has no such part.",
        ),
    ] = None,
    variant: Annotated[str | None, typer.Option(metavar="NAME", help="The bundle's first where not given.")] = None,
    runner: Annotated[
        str | None,
        typer.Option(metavar="RUNNER", help="Of a bundle; onnxruntime:cpu where not given, such as openvino:cpu."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of one inference; all cores where not given.")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the report as JSON; - prints it.")] = None,
    confusion: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the confusion matrix: .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Top-1 and top-5, precision, recall and F1 of each class, confusions, calibration; mAP for several labels.

    Labels are matched by name. A picture that can't be decoded is named and left out, and the exit code is 2.
    """
    from ..console import emit_json, print_table, refuse_unwritable, say
    from ..evaluate import evaluate as evaluated
    from ..evaluation import draw_confusion, evaluation_tables, refuse_plot
    from ..progress import open_progress

    refuse_unwritable(json, confusion)
    if confusion:
        refuse_plot(confusion)  # before the work
    report = evaluated(
        path,
        data=data,
        part=part.value if part else None,
        variant=variant,
        runner=runner,
        threads=threads,
        progress=open_progress(),
    )
    emit_json(report, json)
    if json != "-":
        for table in evaluation_tables(report):
            print_table(table)
            if table.notes:
                print()
    if confusion:
        draw_confusion(report, confusion)
    for picture in report.unreadable:
        say(f"trueport: {picture}")
    if report.unreadable:
        raise typer.Exit(EXIT_USAGE)
