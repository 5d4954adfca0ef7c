"""A report in plain words: what every notation says, before each escapes it in its own way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from trueport.runtime.explanation import STAGES, Departure, Explanation
from trueport.runtime.runner import RunnerReport
from trueport.runtime.verdict import Status, Verdict

from ..check import CheckReport, check_summary, rounded_up

NOWHERE = "-"
"""In place of a variant or runner where a verdict is about neither."""
DOUBTFUL: tuple[Status, ...] = ("failed", "undecided")
"""What must not look green."""

# Control characters but tab and line feed, surrogates, non-characters: XML 1.0 has no way to write them, terminals and
# browsers obey some. The last two ranges turn the direction of text, so that it reads as what it is not.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with backslash escapes in place of characters that do something rather than show something."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def on_one_line(text: str) -> str:
    """Printable, and line breaks and indents made single spaces."""
    return " ".join(printable(text).split())


def bundle_name(report: CheckReport) -> str:
    """Name and version."""
    return on_one_line(f"{report.bundle} {report.version}")


def verdict_line(report: CheckReport) -> str:
    """The verdict on all of it, in a line."""
    return on_one_line(check_summary(report))


def subject(verdict: Verdict) -> str:
    """What was judged: `int8-cpu on onnxruntime:cpu`, `original`, `the bundle`."""
    if verdict.variant == NOWHERE:
        return "the bundle"
    alone = verdict.runner in {NOWHERE, verdict.variant}
    return on_one_line(verdict.variant if alone else f"{verdict.variant} on {verdict.runner}")


def title(verdict: Verdict) -> str:
    """Gate and subject."""
    return f"{on_one_line(verdict.gate)} of {subject(verdict)}"


def words(name: str) -> str:
    """A measurement's name as it is read."""
    return on_one_line(name.replace("_", " "))


def number(value: float | None) -> str:
    """Three significant digits."""
    return "not a number" if value is None else f"{value:.3g}"


def limits(verdict: Verdict) -> list[str]:
    """What was measured and allowed, a line a limit."""
    return [
        f"{words(name)} {number(verdict.measured.get(name))}, allowed {number(allowed)}"
        for name, allowed in verdict.allowed.items()
    ]


def would_pass(verdict: Verdict) -> list[str]:
    """What would have passed, a line for each limit that was crossed."""
    return [
        f"no bound on {words(name)} would have passed"
        if bound is None
        else f"{words(name)} would have passed with {number(rounded_up(bound))}"
        for name, bound in verdict.would_pass.items()
    ]


def besides(verdict: Verdict) -> str:
    """What was measured without a limit, in a line; empty where that is nothing."""
    others = {name: value for name, value in verdict.measured.items() if name not in verdict.allowed}
    told = ", ".join(f"{words(name)} {number(value)}" for name, value in others.items())
    return f"measured besides: {told}" if told else ""


def measurements(verdict: Verdict) -> list[str]:
    """What was compared, measured and allowed, and what would have passed, in lines; the first is the detail."""
    needed = [] if verdict.needed is None else [f"{verdict.needed:,} samples would decide it"]
    others = besides(verdict)
    return [printable(verdict.detail), *limits(verdict), *would_pass(verdict), *needed, *([others] if others else [])]


def story(report: CheckReport, verdict: Verdict) -> list[str]:
    """All there is to say about a verdict, in lines: the measurements, then what explains them."""
    explained = [line for one in explanations_of(report, verdict) for line in explanation_lines(one)]
    return [*measurements(verdict), *explained]


def explanations_of(report: CheckReport, verdict: Verdict) -> Iterator[Explanation]:
    """Those that are about a verdict; one of the bundle itself is about every gate that it names."""
    for explanation in report.explanations:
        places = ((explanation.variant, verdict.variant), (explanation.runner, verdict.runner))
        if verdict.gate in explanation.gates and all(told in {NOWHERE, asked} for told, asked in places):
            yield explanation


def explanation_lines(explanation: Explanation) -> list[str]:
    """The stage where one departs, cause, remedy, the first tensors, and what to keep in float; a line each."""
    cause = "cause, shown" if explanation.confirmed else "what usually causes this"
    departs = any(result.status == "departs" for result in explanation.stages)
    stage = f"first departs at the stage {explanation.stage}: {STAGES[explanation.stage]}"
    lines = [
        *([stage] if departs else []),
        f"{cause}: {explanation.cause}",
        f"remedy: {explanation.remedy}",
        *map(_departure, explanation.first),
    ]
    if explanation.float_layers:
        lines.append(f"layers to keep in float: {', '.join(explanation.float_layers)}")
    return [printable(line) for line in lines]


def _departure(first: Departure) -> str:
    difference = f"largest difference {number(first.max_abs)}, allowed {number(first.allowed)}"
    return f"first tensor that departs: {first.layer} ({first.tensor}), {difference}; {first.detail}"


def facts(report: CheckReport) -> Iterator[tuple[str, str]]:
    """What the verdicts are bound to, by names: reference, pictures, bounds set by hand, runners, machine, versions."""
    machine = report.machine
    yield "bundle", bundle_name(report)
    yield "reference", report.reference
    yield "pictures", pictures(report)
    yield from ((f"bound.{name}", f"{value:g}, set by hand") for name, value in sorted(report.overridden.items()))
    yield from ((f"runner.{name}", value) for name, value in _runners(report.runners).items())
    yield "machine", machine.key
    yield "cpu", machine.cpu
    yield "cores", str(machine.cores)
    yield "instruction sets", " ".join(machine.instruction_sets)
    yield from ((f"gpu.{place}", f"{gpu.name}, driver {gpu.driver}") for place, gpu in enumerate(machine.gpus))
    yield "os", machine.os
    yield "python", machine.python
    yield from ((f"version.{name}", value) for name, value in sorted(machine.versions.items()))


def pictures(report: CheckReport) -> str:
    """Whose pictures accuracy and parity were judged on."""
    return "the bundle's evaluation slice" if report.data is None else f"other pictures: {on_one_line(report.data)}"


def _runners(reports: Iterable[RunnerReport]) -> dict[str, str]:
    """What each runner really was; more than one thing only where variants were run in different ways."""
    told: dict[str, dict[str, None]] = {}
    for one in reports:
        told.setdefault(one.name, {})[f"{one.provider} on {one.device}, threads: {one.threads}"] = None
    return {name: "; ".join(ways) for name, ways in told.items()}


def told_text(report: CheckReport) -> str:
    """The report for a log: verdict first, then what is not as it should be, then the machine."""
    lines = [f"{bundle_name(report)}: {verdict_line(report)}"]
    for verdict in report.verdicts:
        if verdict.status == "passed":
            continue
        lines += ["", f"{verdict.status}: {title(verdict)}", *(f"    {line}" for line in story(report, verdict))]
    last = f"against the {report.reference}, on {pictures(report)}, on {on_one_line(report.machine.cpu)}"
    return "\n".join((*lines, "", last))
