"""A check's report in the notations of others: JUnit XML, Markdown, SARIF, GitHub's annotations.

The same report gives the same bytes: no times, no order that could change, and no path but the one that `--data` was
given.
"""

from __future__ import annotations

from trueport.runtime.errors import UsageError

from ..check import CheckReport
from ..console import emit
from .github import announce
from .junit import junit_from_report
from .markdown import markdown_from_report
from .sarif import sarif_from_report

__all__ = ["announce", "refuse_shared", "write_outputs"]


def write_outputs(report: CheckReport, *, junit: str | None, markdown: str | None, sarif: str | None) -> None:
    """Write what is asked for: `-` is standard output, files are replaced in one step, devices and pipes written to.

    Raises OSError as the file system does.
    """
    for target, data in ((junit, junit_from_report), (markdown, markdown_from_report), (sarif, sarif_from_report)):
        if target is not None:
            emit(data(report).encode(), target)


def refuse_shared(**targets: str | None) -> None:
    """Raise UsageError where two outputs, by the names of their options, would go to one place: worth asking first."""
    taken: dict[str, str] = {}
    for option, target in targets.items():
        if target is None:
            continue
        if target in taken:
            place = "standard output" if target == "-" else target
            raise UsageError(f"--{taken[target]} and --{option} would both write to {place}: give each its own")
        taken[target] = option
