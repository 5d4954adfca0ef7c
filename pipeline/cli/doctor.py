"""trueport doctor: what this machine has and lacks."""

from __future__ import annotations

from typing import Annotated

import typer

from . import new_app

app = new_app()


@app.command()
def doctor(
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the report as JSON; - prints it.")] = None,
) -> None:
    """Tell what this machine has, what it lacks and what to install."""
    from ..console import emit_json, print_table
    from ..doctor import doctor_table, examine

    report = examine()
    emit_json(report, json)
    if json != "-":
        print_table(doctor_table(report))
