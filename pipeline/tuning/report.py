"""What a search found, as a report, a table, sentences and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from trueport.runtime import tuned
from trueport.runtime.errors import UsageError
from trueport.runtime.machine import Machine
from trueport.runtime.runner import RunnerOptions
from trueport.runtime.tuned import Choice, Tuned
from trueport.runtime.verdict import Verdict

from ..bench import ABSENT
from ..check import proven
from ..console import Table
from .front import Point, draw_front, front
from .judging import Judged, failed_gates
from .search import Contest, Search, Timing, Winners
from .space import Candidate


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one candidate."""

    variant: str
    runner: str
    options: RunnerOptions
    status: str
    """`throughput`, `p99`, `latency`: chosen for these; `serve`: in the place of one that spins; `timed`, `failed`,
    `not opened`, `not reached`."""
    detail: str = ""
    """Which gate failed, why it can't be opened, or how far it came."""
    batch: int | None = None
    """The one with the most images a second, or that it was chosen at."""
    timing: Timing | None = None
    drop_points: float | None = None
    """Points of accuracy lost, measured here."""
    front: bool = False
    """No other is both faster and loses less accuracy."""
    verdicts: tuple[Verdict, ...] = ()

    @property
    def described(self) -> str:
        """In words."""
        return tuned.described(self.variant, self.runner, self.options)


class TuneReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was tried on one machine, and what is fastest."""

    bundle: str
    version: str
    machine: Machine
    seconds: float
    """That this took, without what an earlier, interrupted one had done."""
    p99_ms: float | None
    max_drop: float | None
    tried: tuple[Tried, ...]
    tuned: Tuned | None
    """None: nothing passed the gates."""
    file: str
    """Where `load` finds it."""
    against_default: Contest | None
    """The choice for throughput, as b, against what `load` takes without one; None where they are the same, or where
    the default can't be run here."""
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether there is a choice, and one below the bound where there is a bound."""
        return self.tuned is not None and (self.p99_ms is None or self.tuned.bounded is not None)


def all_tried(space: Sequence[Candidate], judged: Judged, search: Search, winners: Winners | None) -> tuple[Tried, ...]:
    """The fastest first, then those that were not timed."""
    every = dict.fromkeys((*space, *search.reached))  # what spins is no part of the space
    told = [_one_tried(candidate, judged, search, winners) for candidate in every]
    points = [_point(one) for one in told if one.timing]
    best = {point for point, on in zip(points, front(points), strict=True) if on}
    marked = [msgspec.structs.replace(one, front=bool(one.timing) and _point(one) in best) for one in told]
    return tuple(sorted(marked, key=lambda one: -one.timing.images_per_s if one.timing else 0.0))


def _one_tried(candidate: Candidate, judged: Judged, search: Search, winners: Winners | None) -> Tried:
    verdicts = judged.verdicts.get(candidate.numerics, ())
    arm = search.best(candidate)
    for won in (winners.throughput, winners.taken(winners.throughput)) if winners else ():
        arm = won if won.candidate == candidate else arm
    timing = search.timings[arm] if arm else None
    failed = sorted((one.batch, why) for one, why in search.failed.items() if one.candidate == candidate)
    limits = f"not at batch {failed[0][0]}: {failed[0][1]}" if failed else ""
    if candidate.numerics in judged.problems:
        status, detail = "not opened", judged.problems[candidate.numerics]
    elif verdicts and not proven(verdicts):
        status, detail = "failed", failed_gates(verdicts)
    elif timing is None:
        status, detail = ("failed", limits) if limits else ("not reached", "the time was over")
    else:
        status = ", ".join(_goals(candidate, winners)) or "timed"
        out = search.lost.get(candidate) or f"out after {search.reached[candidate]}"
        gone = "not faster beyond doubt" if candidate.options.spinning else out
        detail = "; ".join(filter(None, (gone if status == "timed" else "", limits)))
    return Tried(
        variant=candidate.variant,
        runner=candidate.runner,
        options=candidate.options,
        status=status,
        detail=detail,
        batch=arm.batch if arm else None,
        timing=timing,
        drop_points=judged.drop(candidate) if verdicts else None,
        verdicts=verdicts,
    )


def _goals(candidate: Candidate, winners: Winners | None) -> list[str]:
    if winners is None:
        return []
    named = (("throughput", winners.throughput), ("p99", winners.bounded), ("latency", winners.latency))
    goals = [name for name, arm in named if arm and winners.taken(arm).candidate == candidate]
    return [*goals, *(["serve"] if candidate in {arm.candidate for arm in winners.spun} else [])]


def _point(one: Tried) -> Point:
    speed = one.timing.images_per_s if one.timing else 0.0
    group = f"{one.variant} on {one.runner}"
    return Point(one.described, group, one.drop_points or 0.0, speed, chosen="throughput" in one.status)


def tune_table(report: TuneReport) -> Table:
    """Candidates as text, the fastest first; * marks the Pareto front of accuracy drop and images a second."""
    columns = ("variant", "runner", "options", "batch", "images/s", "ms", "p99", "drop", "front", "verdict")
    rows = [_cells(one) for one in report.tried if one.status != "not opened"]
    notes = (*_not_opened(report), *report.notes, *tune_summary(report))
    return Table(f"{report.bundle} {report.version} on this machine", columns, tuple(rows), notes)


def _not_opened(report: TuneReport) -> list[str]:
    """Why variants were not opened; of runners that opened none, which is usual, their names alone."""
    closed = [one for one in report.tried if one.status == "not opened"]
    here = {one.runner for one in report.tried if one.status != "not opened"} or {one.runner for one in closed}
    told: dict[str, list[str]] = {}
    for one in closed:
        if one.runner in here:
            told.setdefault(f"{one.runner}: {one.detail}", []).append(one.variant)
    notes = [f"not opened: {', '.join(dict.fromkeys(names))} on {why}" for why, names in told.items()]
    if absent := [name for name in dict.fromkeys(one.runner for one in closed) if name not in here]:
        notes.append(f"not on this machine: {', '.join(absent)}; `trueport tune --runner NAME` says why")
    return notes


def _cells(one: Tried) -> tuple[str, ...]:
    timing = one.timing
    return (
        one.variant,
        one.runner,
        one.described.partition(", ")[2],
        str(one.batch or ABSENT),
        f"{timing.images_per_s:,.0f}" if timing else ABSENT,
        f"{timing.ms:.3g}" if timing else ABSENT,
        f"{timing.p99_ms:.3g}" if timing and timing.p99_ms is not None else ABSENT,
        ABSENT if one.drop_points is None else f"{one.drop_points:.2f}",
        "*" if one.front else "",
        f"{one.status}: {one.detail}" if one.detail else one.status,
    )


def tune_summary(report: TuneReport) -> tuple[str, ...]:
    """The choices, a sentence each."""
    found = report.tuned
    if found is None:
        return ("nothing passed the gates on this machine: no choice was written",)
    lines = [f"fastest: {_chosen(found.throughput)}{_ratio(report)}"]
    if found.bounded:
        lines.append(
            f"p99 below {found.p99_bound_ms:g} ms: {_chosen(found.bounded)}, p99 {found.bounded.p99_ms:.3g} ms"
        )
    soonest = found.latency
    lines.append(f"soonest: {soonest.described()}, {soonest.curve[0][1]:.3g} ms for a single picture")
    return (*lines, f"written to {report.file}, where `load`, `predict` and `serve` find it")


def _chosen(choice: Choice) -> str:
    return (
        f"{choice.described()}, batch {choice.max_batch_rows}: {choice.images_per_s:,.0f} images/s "
        f"(turns from {choice.images_per_s_low:,.0f} to {choice.images_per_s_high:,.0f}), "
        f"{choice.drop_points:.2f} points of accuracy lost{_at_rest(choice)}"
    )


def _at_rest(choice: Choice) -> str:
    """What a server takes, where that is not the same: its threads leave the cores to others between runs."""
    resting = choice.resting
    if resting is None:
        return ""
    how = (
        "without spinning"
        if resting.runner == choice.runner and resting.variant == choice.variant
        else resting.described()
    )
    return f"; for `serve` {how}, {resting.images_per_s:,.0f} images/s"


def _ratio(report: TuneReport) -> str:
    met = report.against_default
    if met is None:
        return ""
    return f"; {met.ratio:.2f}x the default, {met.a.candidate}, at this batch ({met.low:.2f} to {met.high:.2f})"


def draw_tuned(report: TuneReport, file: Path) -> None:
    """The Pareto front as a picture. Raises UsageError where nothing was timed."""
    points = [_point(one) for one in report.tried if one.timing]
    if not points:
        raise UsageError("nothing was timed, so there is nothing to draw")
    draw_front(file, points, f"{report.bundle} {report.version} on {report.machine.cpu}, {report.machine.cores} cores")
