"""JUnit XML, a test case a verdict: what Jenkins, GitLab and GitHub's reporters read.

There is no standard; this keeps to the schema of Jenkins's xUnit plugin (junit-10.xsd), the narrowest of those in use.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from trueport.runtime.verdict import Verdict

from ..check import CheckReport
from .told import DOUBTFUL, NOWHERE, bundle_name, facts, on_one_line, printable, story, title, verdict_line

TIME = "0"
"""Not measured, but there: reporters compute with it."""


def junit_from_report(report: CheckReport) -> str:
    """The document. Undecided is a failure of that type, not run is skipped."""
    suite = ET.Element("testsuite", name=bundle_name(report))
    properties = ET.SubElement(suite, "properties")
    for name, value in facts(report):
        ET.SubElement(properties, "property", name=on_one_line(name), value=on_one_line(value))
    for verdict in report.verdicts:
        _add_case(suite, report, verdict)
    if not report and suite.find("testcase/failure") is None:
        # Nothing failed, yet nothing is proven: what reads this file alone must not see green.
        case = ET.SubElement(suite, "testcase", classname=_class(report), name="proven", time=TIME)
        _tell(case, "failure", "not proven", verdict_line(report), verdict_line(report))
    counts = {
        "tests": str(len(suite.findall("testcase"))),
        "failures": str(len(suite.findall("testcase/failure"))),
        "errors": "0",
        "time": TIME,
    }
    suite.attrib |= counts | {"skipped": str(len(suite.findall("testcase/skipped")))}
    root = ET.Element("testsuites", {"name": "trueport check"} | counts)
    root.append(suite)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _add_case(suite: ET.Element, report: CheckReport, verdict: Verdict) -> None:
    name = on_one_line(verdict.gate)
    case = ET.SubElement(suite, "testcase", classname=_class(report, verdict), name=name, time=TIME)
    lines = story(report, verdict)
    if verdict.status in DOUBTFUL:
        message = f"{verdict.status}: {title(verdict)}: {on_one_line(verdict.detail)}"
        # GitLab shows the text alone, Jenkins message and text, others the message: each has to do by itself.
        _tell(case, "failure", verdict.status, message, "\n".join((message, *lines[1:])))
    elif verdict.status == "not run":
        _tell(case, "skipped", verdict.status, on_one_line(verdict.detail), printable(verdict.detail))
    elif lines:
        ET.SubElement(case, "system-out").text = "\n".join(lines)


def _tell(case: ET.Element, tag: str, kind: str, message: str, text: str) -> None:
    ET.SubElement(case, tag, type=kind, message=message).text = text


def _class(report: CheckReport, verdict: Verdict | None = None) -> str:
    """bundle/variant/runner; what a verdict is not about is left out."""
    places = (verdict.variant, verdict.runner) if verdict is not None else ()
    return on_one_line("/".join((report.bundle, *dict.fromkeys(place for place in places if place != NOWHERE))))
