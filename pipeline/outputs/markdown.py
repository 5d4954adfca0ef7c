"""Markdown for a job's summary, as GitHub and GitLab render it: verdict first, then gates, reasons, the machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..check import CheckReport
from .told import (
    DOUBTFUL,
    NOWHERE,
    bundle_name,
    explanation_lines,
    facts,
    limits,
    measurements,
    on_one_line,
    subject,
    title,
    verdict_line,
)

SIGNS = {"passed": "✅", "failed": "❌", "undecided": "❔", "not run": "➖"}
_SPECIAL = re.compile(r"([\\`*_\[\]|~#])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "@": "&#64;"}
"""What would open a tag, an entity, a formula or a mention."""


def markdown_from_report(report: CheckReport) -> str:
    """The page."""
    sign = SIGNS["passed" if report else "failed"]
    lines = [f"## {sign} {escaped(bundle_name(report))}: {escaped(verdict_line(report))}", ""]
    lines += [*_table(report), *_doubts(report), *_explanations(report), *_not_run(report), *_machine(report)]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """On one line, as plain text in a paragraph, a list or a cell of a table."""
    safe = _SPECIAL.sub(r"\\\1", on_one_line(text))
    return "".join(_HTML.get(character, character) for character in safe)


def _table(report: CheckReport) -> Iterator[str]:
    yield "| | gate | measured, and what was allowed |"
    yield "| --- | --- | --- |"
    for verdict in report.verdicts:
        gate = f"{escaped(verdict.gate)}<br>{escaped(subject(verdict))}"
        told = "<br>".join(map(escaped, limits(verdict)))
        yield f"| {SIGNS[verdict.status]} {verdict.status} | {gate} | {told} |"
    yield ""


def _doubts(report: CheckReport) -> Iterator[str]:
    doubtful = [verdict for verdict in report.verdicts if verdict.status in DOUBTFUL]
    if doubtful:
        yield "### What failed, and what would have passed"
        yield ""
    for verdict in doubtful:
        yield f"- **{verdict.status}: {escaped(title(verdict))}**"
        # Explanations follow in a section of their own: one is often about several gates.
        yield from (f"  - {escaped(line)}" for line in measurements(verdict))
    if doubtful:
        yield ""


def _explanations(report: CheckReport) -> Iterator[str]:
    if report.explanations:
        yield "### Why"
        yield ""
    for explanation in report.explanations:
        places = [place for place in (explanation.variant, explanation.runner) if place != NOWHERE]
        about = f"{', '.join(explanation.gates)} of {' on '.join(dict.fromkeys(places)) or 'the bundle'}"
        yield f"- **{escaped(about)}**"
        yield from (f"  - {escaped(line)}" for line in explanation_lines(explanation))
    if report.explanations:
        yield ""


def _not_run(report: CheckReport) -> Iterator[str]:
    left_out = [verdict for verdict in report.verdicts if verdict.status == "not run"]
    if left_out:
        yield "### Not run, and never counted as passed"
        yield ""
        yield from (f"- {escaped(title(verdict))}: {escaped(verdict.detail)}" for verdict in left_out)
        yield ""


def _machine(report: CheckReport) -> Iterator[str]:
    yield "<details><summary>Where this holds: machine, runners, versions</summary>"
    yield ""
    yield from (f"- {escaped(name)}: {escaped(value)}" for name, value in facts(report) if value)
    yield ""
    yield "</details>"
