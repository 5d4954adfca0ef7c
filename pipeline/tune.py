"""tune: the fastest way to run a bundle on this machine that is still faithful here.

Correctness comes first: what fails a gate of `check`, or loses more accuracy on this machine's processor than allowed,
is not timed. Then variant, runner, threads, graph level, float type and batch are searched for speed, and of the
fastest whether threads that spin make it faster still.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from trueport.runtime import tuned
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import UsageError, unknown_name
from trueport.runtime.machine import Machine, describe_machine
from trueport.runtime.manifest import Variant
from trueport.runtime.runners import RUNNERS
from trueport.runtime.tuned import Choice, Tuned

from .tuning.judging import Judged, judge
from .tuning.report import TuneReport, all_tried
from .tuning.search import Search, Timing, Winners
from .tuning.space import Arm, baseline, candidates, fits
from .tuning.trials import Log
from .tuning.workshop import Workshop

BATCHES = (1, 2, 4, 8, 16, 32)
MINUTES = 5.0
LARGEST_BATCH = 4096


def tune(
    path: Path,
    *,
    variants: Sequence[str] = (),
    runners: Sequence[str] = (),
    batches: Sequence[int] = BATCHES,
    p99_ms: float | None = None,
    max_drop: float | None = None,
    minutes: float = MINUTES,
    afresh: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> TuneReport:
    """Search, and write what is found into the bundle's `tuned/` (into the user's cache where it is read-only).

    variants, runners: names; none: all of the bundle, all that this machine can open. batches: 1 is always added.
    p99_ms: also find the highest throughput with a 99th percentile below it. max_drop: points of accuracy that may be
    lost, in the place of the variants' own bounds; a variant without a bound of its own may lose none.
    minutes: after which nothing new is begun but the comparison with the default. afresh: don't go on from what an
    earlier call has measured.
    Raises UsageError for a bad argument and for too little time, BundleError for a bundle that is not to be trusted,
    MissingError where a runner or variant that was named can't be run here at all.
    """
    began_s = time.monotonic()
    sizes = _check(batches, p99_ms, max_drop, minutes)
    bundle = Bundle.open(path)
    machine = describe_machine()
    chosen = [bundle.variant(name) for name in variants] or list(bundle.manifest.variants)
    space = candidates(chosen, _runners(runners, chosen), machine.cores, machine.instruction_sets)
    log = Log(bundle, afresh=afresh)
    with Workshop(bundle, log, began_s + minutes * 60, progress) as workshop:
        judged = judge(workshop, space, max_drop, (*runners, *variants), minutes * 60)
        search = Search(sizes, workshop.measure, workshop.contest, judged.drop, workshop.time_left_s)
        passed = [one for one in space if judged.passed(one)]
        default = baseline(bundle.variant(), machine.cores)
        winners = search.run(passed, p99_ms, default) if passed else None
        if passed and winners is None:
            raise UsageError(_too_short(search, minutes))
    found = _tuned(bundle, search, winners, judged, machine.key, p99_ms, max_drop) if winners else None
    notes = [*search.notes, *_notes(log, workshop.time_left_s(), minutes, machine)]
    return TuneReport(
        bundle=bundle.manifest.name,
        version=bundle.manifest.version,
        machine=machine,
        seconds=time.monotonic() - began_s,
        p99_ms=p99_ms,
        max_drop=max_drop,
        tried=all_tried(space, judged, search, winners),
        tuned=found,
        file=str(tuned.write(bundle, machine.key + tuned.SUFFIX, found)) if found else "",
        against_default=search.against_default,
        notes=tuple(notes),
    )


def _check(batches: Sequence[int], p99_ms: float | None, max_drop: float | None, minutes: float) -> list[int]:
    """The batches in order, 1 among them."""
    if not batches or min(batches) < 1 or max(batches) > LARGEST_BATCH:
        found = ", ".join(map(str, batches)) or "none"
        raise UsageError(f"batch sizes must be from 1 to {LARGEST_BATCH}, found {found}")
    if not 0 < minutes < math.inf:
        raise UsageError(f"the time must be above 0 minutes, found {minutes:g}")
    if p99_ms is not None and not 0 < p99_ms < math.inf:
        raise UsageError(f"the bound on the 99th percentile must be above 0 ms, found {p99_ms:g}")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError(f"the accuracy that may be lost must be from 0 to 100 points, found {max_drop:g}")
    return sorted({1, *batches})


def _runners(names: Sequence[str], variants: Sequence[Variant]) -> list[str]:
    """Those to try. Raises UsageError for an unknown name, and for one that no variant was made for."""
    for name in names:
        if name not in RUNNERS:
            raise unknown_name("runner", name, RUNNERS)
    chosen = list(dict.fromkeys(names)) or list(RUNNERS)
    if not any(fits(variant, name) for variant in variants for name in chosen):
        made = ", ".join(f"{variant.name} for {variant.target}" for variant in variants)
        raise UsageError(f"no variant was made for {', '.join(chosen)}: the bundle has {made}; choose another runner")
    return chosen


def _too_short(search: Search, minutes: float) -> str:
    if search.failed:
        told = "; ".join(f"{arm}: {why}" for arm, why in search.failed.items())
        return f"nothing that passed the gates could be timed: {told}"
    return f"{minutes:g} minutes were too short to time anything: give more --minutes, what was done is kept"


# The result


def _tuned(
    bundle: Bundle,
    search: Search,
    winners: Winners,
    judged: Judged,
    machine: str,
    p99_ms: float | None,
    max_drop: float | None,
) -> Tuned:
    def choice(arm: Arm, at: Callable[[Arm], Arm] = lambda arm: arm) -> Choice:
        resting = _choice(at(arm), search.timings, judged)
        spun = winners.spun.get(arm)
        return _choice(at(spun), search.timings, judged, resting) if spun else resting

    within = winners.bounded
    return Tuned(
        machine=machine,
        bundle_sha256=bundle.manifest.sha256,
        tuned_at=datetime.now(UTC).isoformat(timespec="seconds"),
        max_drop=max_drop,
        p99_bound_ms=p99_ms,
        throughput=choice(winners.throughput),
        latency=choice(winners.latency, at=lambda arm: search.best(arm.candidate) or arm),
        bounded=None if within is None else choice(within),
    )


def _choice(arm: Arm, timings: Mapping[Arm, Timing], judged: Judged, resting: Choice | None = None) -> Choice:
    timing, candidate = timings[arm], arm.candidate
    curve = sorted((known.batch, found.ms) for known, found in timings.items() if known.candidate == candidate)
    low, high = timing.images_per_s_range
    return Choice(
        variant=candidate.variant,
        runner=candidate.runner,
        options=candidate.options,
        max_batch_rows=arm.batch,
        curve=tuple(curve),
        images_per_s=timing.images_per_s,
        images_per_s_low=low,
        images_per_s_high=high,
        p99_ms=timing.p99_ms,
        drop_points=judged.drop(candidate),
        versions=tuned.runner_versions(candidate.runner),
        resting=resting,
    )


def _notes(log: Log, left_s: float, minutes: float, machine: Machine) -> list[str]:
    notes = []
    if log.taken_over:
        notes.append(f"{log.taken_over} results are those of an earlier search; --afresh measures all of them again")
    if left_s <= 0:
        notes.append(f"the {minutes:g} minutes were over before the search was; the same command goes on from here")
    notes.append(f"machine {machine.key}: {machine.cpu}, {machine.cores} cores, {machine.os}")
    return notes
