"""What a comparison of two bundles or two reports ends with: what differs, how B stands beside A, and one verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from trueport.runtime.machine import Machine

from .console import Table

Standing = Literal["same", "better", "worse", "changed", "undecided"]
"""Of B beside A. changed: it differs, and that is neither better nor worse in itself."""
ORDER: tuple[Standing, ...] = ("worse", "undecided", "changed", "better", "same")
"""The first of these that is found decides."""


SLOWEST = 0.8
"""So much of A's speed the intervals have to exclude, or the times were too noisy to call the two alike."""


class Change(msgspec.Struct, frozen=True):
    """A fact that is another one in B."""

    what: str
    a: str
    b: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was measured of both."""

    what: str
    standing: Standing
    measured: dict[str, float | None] = {}
    detail: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """B beside A."""

    kind: Literal["bundles", "checks", "benches"]
    a: str
    b: str
    verdict: Standing
    changes: tuple[Change, ...]
    findings: tuple[Finding, ...]

    def __bool__(self) -> bool:
        """Whether B is known to be no worse."""
        return self.verdict not in {"worse", "undecided"}


def concluded(
    kind: Literal["bundles", "checks", "benches"],
    names: tuple[str, str],
    changes: Iterable[Change],
    findings: Iterable[Finding],
) -> Comparison:
    """The comparison with the verdict that follows from its findings, and from facts where these all say the same."""
    changes, findings = tuple(changes), tuple(findings)
    found = {finding.standing for finding in findings} | ({"changed"} if changes and not findings else set())
    verdict: Standing = next((standing for standing in ORDER if standing in found), "same")
    return Comparison(kind=kind, a=names[0], b=names[1], verdict=verdict, changes=changes, findings=findings)


def differences(a: Mapping[str, object], b: Mapping[str, object]) -> list[Change]:
    """The facts that differ, by name; one that a side lacks is `-` there."""
    return [
        Change(name, str(a.get(name, "-")), str(b.get(name, "-")))
        for name in dict.fromkeys((*a, *b))
        if a.get(name) != b.get(name)
    ]


def machine_facts(machine: Machine) -> dict[str, object]:
    """What may explain that the same bundle behaves otherwise."""
    return {
        "machine": machine.key,
        "processor": machine.cpu,
        "cores": machine.cores,
        "instruction sets": " ".join(machine.instruction_sets),
        "GPUs": ", ".join(gpu.name for gpu in machine.gpus) or "none",
        "system": machine.os,
        "Python": machine.python,
    } | machine.versions


def comparison_table(comparison: Comparison) -> Table:
    """The findings, then the facts that differ."""
    rows: list[tuple[str, str, str]] = [
        (finding.standing, finding.what, finding.detail) for finding in comparison.findings
    ]
    rows += [("differs", change.what, f"{change.a}  ->  {change.b}") for change in comparison.changes]
    return Table(
        title=f"A: {comparison.a}\nB: {comparison.b}",
        columns=("B is", "in", "measured, or A -> B"),
        rows=tuple(rows) or (("same", "everything", "no fact and no measurement differs"),),
        notes=(_SAID[comparison.verdict],),
    )


_SAID: dict[Standing, str] = {
    "same": "same: B does what A does",
    "better": "better: B is better in something and worse in nothing",
    "worse": "WORSE: B is worse beyond doubt in something",
    "changed": "changed: B is another one, and worse in nothing that was measured",
    "undecided": "UNDECIDED: whether B is worse can't be told from this",
}
