"""compare: two bundles, or two reports on one bundle, side by side, and what changed from A to B."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import MANIFEST
from trueport.runtime.rounds import CLEAR
from trueport.runtime.runners import DEFAULT
from trueport.runtime.verdict import Verdict

from .bench import BatchBench, BenchReport
from .check import CheckReport
from .comparing import SLOWEST, Change, Comparison, Finding, Standing, concluded, differences, machine_facts

MARGIN = 1.0
"""Points of accuracy within which two models are the same; MLPerf's 99 %."""


def compare(
    a: Path,
    b: Path,
    *,
    variant: str | None = None,
    runner: str = DEFAULT,
    margin: float = MARGIN,
    seconds: float = 2.0,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """B beside A, of one kind: bundle folders, or JSON files of `trueport check` or `trueport bench`.

    Of bundles: variant (None: each one's first) and runner that both are asked on; margin: points of accuracy that are
    no difference; seconds for each batch size, both together; threads of each.
    Raises UsageError where the two are not of one kind or can't be read, BundleError and MissingError as opening does.
    """
    for path in (a, b):
        if not path.exists():
            raise UsageError(f"{path} is not there: expected a bundle folder, or a JSON file of check or bench")
    bundles = [(path / MANIFEST).is_file() for path in (a, b)]
    if all(bundles):
        from .compare_bundles import compare_bundles

        return compare_bundles(
            a, b, variant=variant, runner=runner, margin=margin, seconds=seconds, threads=threads, progress=progress
        )
    if any(bundles):
        raise UsageError(f"one of {a} and {b} is a bundle and the other is not: compare two of one kind")
    first, second = _report(a), _report(b)
    if isinstance(first, CheckReport) and isinstance(second, CheckReport):
        return _checks(first, second)
    if isinstance(first, BenchReport) and isinstance(second, BenchReport):
        return _benches(first, second)
    raise UsageError(f"{a} and {b} are reports of different commands: compare two of check, or two of bench")


def _report(path: Path) -> CheckReport | BenchReport:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror or error}") from error
    kinds: tuple[type[CheckReport], type[BenchReport]] = (CheckReport, BenchReport)
    for kind in kinds:
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    raise UsageError(f"{path} is no report of `trueport check --json` or `trueport bench --json`: make it again")


# Two checks


def _checks(a: CheckReport, b: CheckReport) -> Comparison:
    changes = differences(
        _bundle_facts(a) | machine_facts(a.machine) | _judged_by(a),
        _bundle_facts(b) | machine_facts(b.machine) | _judged_by(b),
    )
    ours, theirs = ({_key(verdict): verdict for verdict in report.verdicts} for report in (a, b))
    findings = [_gate(key, ours.get(key), theirs.get(key)) for key in dict.fromkeys((*ours, *theirs))]
    return concluded("checks", (_named(a), _named(b)), changes, filter(None, findings))


def _key(verdict: Verdict) -> tuple[str, str, str]:
    return verdict.gate, verdict.variant, verdict.runner


def _gate(key: tuple[str, str, str], a: Verdict | None, b: Verdict | None) -> Finding | None:
    gate, variant, runner = key
    what = gate if variant in {"-", runner} else f"{gate} of {variant} on {runner}"
    if a is None:
        # What B alone was asked, it has passed, or it is in doubt.
        standing: Standing = "changed" if b is not None and b.status in {"passed", "not run"} else "undecided"
        return Finding(what=what, standing=standing, detail=f"only B has it: {b.status if b else ''}")
    if b is None:
        standing = "changed" if a.status == "not run" else "undecided"
        return Finding(what=what, standing=standing, detail=f"only A has it: {a.status}")
    measured = {
        f"{name}_{side}": verdict.measured.get(name) for name in b.allowed for side, verdict in (("a", a), ("b", b))
    }
    limits = ", ".join(
        f"{name.replace('_', ' ')} {_number(a.measured.get(name))} -> {_number(b.measured.get(name))}"
        f" (allowed {_number(limit)})"
        for name, limit in b.allowed.items()
    )
    words = b.status if a.status == b.status else f"{a.status} -> {b.status}"
    detail = f"{words}; {limits}" if limits else words
    return Finding(what=what, standing=_stands(a, b), measured=measured, detail=detail)


def _stands(a: Verdict, b: Verdict) -> Standing:
    if a.status == b.status:
        return "same"
    if b.status == "failed":
        return "worse"
    if b.status == "passed":
        return "better" if a.status == "failed" else "changed"
    return "undecided"


def _bundle_facts(report: CheckReport | BenchReport) -> dict[str, object]:
    return {"bundle": report.bundle, "version": report.version, "manifest": report.bundle_sha256[:12]}


def _judged_by(report: CheckReport) -> dict[str, object]:
    facts: dict[str, object] = {"reference": report.reference, "pictures": report.data or "the evaluation slice"}
    return facts | {f"bound {name}, by hand": value for name, value in report.overridden.items()}


def _named(report: CheckReport | BenchReport) -> str:
    return f"{report.bundle} {report.version} on {report.machine.cpu}, {report.machine.cores} cores"


# Two benches


def _benches(a: BenchReport, b: BenchReport) -> Comparison:
    changes = differences(
        _bundle_facts(a) | _subject(a) | machine_facts(a.machine),
        _bundle_facts(b) | _subject(b) | machine_facts(b.machine),
    )
    ours, theirs = ({one.batch: one for one in report.batches} for report in (a, b))
    shared = [size for size in ours if size in theirs]
    if not shared:
        raise UsageError(f"the two reports share no batch size: {_sizes(ours)} and {_sizes(theirs)}")
    changes += [
        Change(f"batch {size}", "timed" if size in ours else "-", "timed" if size in theirs else "-")
        for size in sorted({*ours, *theirs} - set(shared))
    ]
    alike = a.machine.key == b.machine.key
    return concluded(
        "benches", (_named(a), _named(b)), changes, [_speed(ours[size], theirs[size], alike=alike) for size in shared]
    )


def _subject(report: BenchReport) -> dict[str, object]:
    return {"variant": report.variant, "runner": report.port.name, "threads": report.port.threads}


def _sizes(batches: dict[int, Any]) -> str:
    return ", ".join(map(str, batches)) or "none"


def _speed(a: BatchBench, b: BatchBench, *, alike: bool) -> Finding:
    """Beside the original where both were: absolute times of two runs are no comparison, machines drift."""
    times = f"{a.port.median_ms:.3g} -> {b.port.median_ms:.3g} ms"
    what = f"batch {a.batch}"
    measured: dict[str, float | None] = {"median_ms_a": a.port.median_ms, "median_ms_b": b.port.median_ms}
    if a.paired is None or b.paired is None:
        return Finding(what=what, standing="undecided", measured=measured, detail=f"{times}, without the original")
    one, other = a.paired, b.paired
    detail = (
        f"{one.ratio:.2f} times the original ({one.ratio_low:.2f} to {one.ratio_high:.2f}) -> {other.ratio:.2f} "
        f"({other.ratio_low:.2f} to {other.ratio_high:.2f}); {times}"
    )
    measured |= {"ratio_a": one.ratio, "ratio_b": other.ratio}
    standing: Standing
    noise = max(one.noise, other.noise, CLEAR)
    if other.ratio_high < one.ratio_low / (1 + noise):
        standing = "worse"
    elif other.ratio_low > one.ratio_high * (1 + noise):
        standing = "better"
    else:
        standing = "same" if other.ratio_low >= SLOWEST * one.ratio_high else "undecided"
    if not alike and standing in {"better", "worse"}:
        standing = "changed"  # another machine favours one side or the other: neither is at fault
    return Finding(what=what, standing=standing, measured=measured, detail=detail)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
