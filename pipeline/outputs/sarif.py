"""SARIF 2.1.0 with what GitHub's code scanning asks for: rules are gates, results what is not as it should be.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html and GitHub's "SARIF support for code scanning".
"""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import quote

import msgspec

from trueport.runtime.bundle import graph_file
from trueport.runtime.manifest import MANIFEST
from trueport.runtime.verdict import Status, Verdict

from ..check import CheckReport
from .rules import RULES, Rule, rule_id
from .told import NOWHERE, facts, on_one_line, story, title

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS: dict[Status, str] = {"failed": "error", "undecided": "warning", "not run": "note"}
"""What passed is no result: code scanning would show it as an alert."""


def sarif_from_report(report: CheckReport) -> str:
    """The log, of one run."""
    gates = {verdict.gate: Rule(rule_id(verdict.gate), "") for verdict in report.verdicts}
    rules = RULES | {gate: rule for gate, rule in gates.items() if gate not in RULES}
    driver: dict[str, Any] = {"name": "trueport", "rules": [_rule(gate, rule) for gate, rule in rules.items()]}
    if version := report.machine.versions.get("trueport"):
        driver["version"] = version
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"trueport/{_part(report.bundle)}/"},
        "results": [
            _result(report, verdict, list(rules).index(verdict.gate))
            for verdict in report.verdicts
            if verdict.status in LEVELS
        ],
        "properties": {on_one_line(name): on_one_line(value) for name, value in facts(report)},
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return msgspec.json.format(msgspec.json.encode(log), indent=2).decode() + "\n"


def _rule(gate: str, rule: Rule) -> dict[str, Any]:
    return {
        "id": rule_id(gate),
        "name": rule_id(gate),
        "shortDescription": {"text": rule.proves},
        "fullDescription": {"text": rule.proves},
        "help": {"text": f"{rule.proves} {rule.remedy}".strip()},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["correctness"], "precision": "very-high", "problem.severity": "error"},
    }


def _result(report: CheckReport, verdict: Verdict, index: int) -> dict[str, Any]:
    first, *others = story(report, verdict)
    identity = f"{report.bundle}\n{verdict.gate}\n{verdict.variant}\n{verdict.runner}"
    return {
        "ruleId": rule_id(verdict.gate),
        "ruleIndex": index,
        "level": LEVELS[verdict.status],
        "message": {"text": "\n".join((f"{verdict.status}: {title(verdict)}: {first}", *others))},
        "locations": [_location(report, verdict)],
        # The same gate on the same thing is the same alert, whatever was measured this time.
        "partialFingerprints": {
            "primaryLocationLineHash": f"{hashlib.sha256(identity.encode(errors='replace')).hexdigest()[:16]}:1"
        },
    }


def _location(report: CheckReport, verdict: Verdict) -> dict[str, Any]:
    """The graph or the manifest, relative to a folder of the bundle's name: where the bundle lies is the machine's."""
    alone = verdict.variant in {NOWHERE, verdict.runner} or ", " in verdict.variant
    file = MANIFEST if alone else graph_file(verdict.variant)
    return {
        "physicalLocation": {
            "artifactLocation": {"uri": f"{_part(report.bundle)}/{_part(file)}"},
            "region": {"startLine": 1, "startColumn": 1, "endLine": 1, "endColumn": 2},
        }
    }


def _part(name: str) -> str:
    """A name as one part of a relative URI, never empty."""
    return quote(on_one_line(name), safe="") or "-"
