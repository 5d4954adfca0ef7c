"""What GitHub Actions shows: annotations of the job, by its workflow commands, and the job's summary.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions; a step shows its first ten errors, ten
warnings and ten notices.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from trueport.runtime.verdict import Status

from ..check import CheckReport
from .markdown import markdown_from_report
from .told import bundle_name, printable, story, title, verdict_line

COMMANDS: dict[Status, str] = {"failed": "error", "undecided": "warning", "not run": "notice"}


def announce(report: CheckReport, environ: Mapping[str, str] = os.environ, stream: TextIO | None = None) -> None:
    """Annotate the job and append to its summary, where this is GitHub Actions; elsewhere nothing.

    stream: of the annotations, which GitHub reads from both; None: standard output.
    Raises OSError where the summary can't be written.
    """
    if environ.get("GITHUB_ACTIONS") != "true":
        return
    stream = stream or sys.stdout
    stream.write("".join(f"{line}\n" for line in annotations_from_report(report)))
    stream.flush()
    if summary := environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(f"{markdown_from_report(report)}\n")


def annotations_from_report(report: CheckReport) -> Iterator[str]:
    """Workflow commands, a line each: the verdict where it is a bad one, then what is not as it should be."""
    if not report:
        yield _command("error", f"trueport: {bundle_name(report)}", verdict_line(report))
    for status, command in COMMANDS.items():
        for verdict in report.verdicts:
            if verdict.status == status:
                message = "\n".join(story(report, verdict))
                yield _command(command, f"trueport: {status}: {title(verdict)}", message)


def _command(command: str, heading: str, message: str) -> str:
    return f"::{command} title={_property(heading)}::{_data(message)}"


def _data(text: str) -> str:
    """As actions/toolkit escapes a message: whatever ends a line, and what escapes begin with."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """As it escapes a property: besides, what ends one."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
