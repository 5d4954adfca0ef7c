"""bench: how many times faster the port is than the original, batch by batch, on the same inputs and threads.

Beside that: the gate against a stored baseline (baseline.py), and the port under load (scenarios.py).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import WEIGHTS, Bundle
from trueport.runtime.errors import MissingError, TrustError, UsageError
from trueport.runtime.machine import Machine, available_cores, busy_seconds, describe_machine, logical_cores
from trueport.runtime.runner import Array, Runner, RunnerOptions, RunnerReport
from trueport.runtime.runners import DEFAULT, open_runner
from trueport.runtime.runners.reached import shown
from trueport.runtime.session import load as load_session
from trueport.runtime.timing import LatencySummary, Paired, check_seconds, compare, measure
from trueport.runtime.verdict import Verdict

from .baseline import Subject, against_baseline, check_baseline, read_baseline, require_fit
from .console import Table
from .scenarios import Scenarios, check_scenarios, run_scenarios, scenario_table

MIN_BLOCKS = 5
"""Fewer say nothing about the spread; slow models then take longer than they were given."""
LOUD = 0.1
"""Load by others from which on the table warns."""
ABSENT = "–"
"""Cell of a value that was not measured, or has too few samples behind it."""


class BatchBench(msgspec.Struct, frozen=True, kw_only=True):
    """One batch size."""

    batch: int
    port: LatencySummary
    paired: Paired | None
    """The original as A, the port as B; None where the original was not run."""


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """One variant on one runner beside the original, on one machine."""

    bundle: str
    version: str
    variant: str
    machine: Machine
    port: RunnerReport
    original: RunnerReport | None
    original_not_run: str
    """Why there is no original to compare with; empty where there is."""
    seconds: float
    """Given to each batch size, original and port together."""
    other_load: float | None
    """Share of the processor time of the cores in use that went to others meanwhile: programs here, or the host's other
    guests; None where the system does not tell."""
    batches: tuple[BatchBench, ...]
    bundle_sha256: str = ""
    """The manifest's own hash."""
    verdicts: tuple[Verdict, ...] = ()
    """Of the latency gate, one a batch size; empty where there was no baseline to hold it against."""
    scenarios: Scenarios | None = None

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """Verdicts of what got slower than its baseline."""
        return tuple(verdict for verdict in self.verdicts if verdict.status == "failed")


def bench(
    bundle_path: Path,
    *,
    runner: str = DEFAULT,
    variant: str | None = None,
    batches: Sequence[int] = (1, 8, 32),
    seconds: float = 2.0,
    threads: int | None = None,
    trust_code: bool = False,
    baseline: Path | None = None,
    update_baseline: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Time the port, in turns with the original where torch is installed and the bundle ships the weights.

    variant: None: the bundle's first. threads: of both; None: one for each core that this process may use.
    trust_code: run the code that the bundle names where its original needs that, see `check`.
    seconds: for each batch size. progress is told what is being timed.
    baseline: hold the port against what this file holds; update_baseline: make it anew instead. Either takes the time
    for each batch size once more, and up to eight times where it is noisy.
    Raises UsageError for a bad argument, BundleError for a bundle that is not to be trusted, MissingError where the
    runner can't be had.
    """
    _check(batches, seconds, threads)
    check_baseline(baseline, update_baseline)
    bundle = Bundle.open(bundle_path)
    threads = threads or available_cores()
    original, reason = _original(bundle, threads, trust_code)

    def open_port() -> Runner:
        return open_runner(bundle, runner, variant, RunnerOptions(threads=threads))

    port = open_port()
    feeds = _feeds(bundle, batches)
    with closing(port), closing(original) if original else nullcontext(), _torch_threads(threads):
        if baseline and not update_baseline:  # it would be a pity to find out after all the timing
            require_fit(read_baseline(baseline), port_subject(bundle, variant, port.report()), batches, baseline)
        load = Load(logical_cores())
        report = BenchReport(
            bundle=bundle.manifest.name,
            version=bundle.manifest.version,
            variant=bundle.variant(variant).name,
            machine=describe_machine(),
            port=port.report(),
            original=original.report() if original else None,
            original_not_run=reason,
            seconds=seconds,
            batches=_timed_batches(original, port, feeds, seconds, progress),
            other_load=load.others(),
            bundle_sha256=bundle.manifest.sha256,
        )
    if baseline is None:
        return report
    subject = port_subject(bundle, variant, report.port)
    verdicts = against_baseline(
        baseline, subject, bundle, open_port, feeds, update=update_baseline, seconds=seconds, progress=progress
    )
    return msgspec.structs.replace(report, verdicts=verdicts)


def bench_scenarios(
    bundle_path: Path,
    names: Sequence[str],
    *,
    runner: str = DEFAULT,
    variant: str | None = None,
    seconds: float = 2.0,
    threads: int | None = None,
    p99_ms: float | None = None,
    rate: float | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Put a session of the port under load, see `scenarios.run_scenarios`; its batches are not timed then.

    Raises as `bench` does.
    """
    check_scenarios(names, p99_ms, rate)
    check_seconds(seconds)
    with load_session(bundle_path, runner=runner, variant=variant, threads=threads) as session:
        images = session.bundle.evaluation().images
        load = Load(logical_cores())
        found = run_scenarios(session, images, names, seconds=seconds, p99_ms=p99_ms, rate=rate, progress=progress)
        return BenchReport(
            bundle=session.manifest.name,
            version=session.manifest.version,
            variant=session.variant.name,
            machine=describe_machine(),
            port=session.report,
            original=None,
            original_not_run="not run: scenarios are of the port alone",
            seconds=seconds,
            batches=(),
            other_load=load.others(),
            bundle_sha256=session.manifest.sha256,
            scenarios=found,
        )


def port_subject(bundle: Bundle, variant: str | None, port: RunnerReport) -> Subject:
    """What a baseline has to be of, to be one of this port."""
    manifest = bundle.manifest
    return Subject(
        bundle=manifest.name,
        version=manifest.version,
        variant=bundle.variant(variant).name,
        runner=port.name,
        threads=port.threads,
        machine=describe_machine(),
    )


def tiled(images: NDArray[np.uint8], batch: int) -> NDArray[np.uint8]:
    """(batch, H, W, C): the first pictures, from the start again after the last. A copy: torch wants it writable."""
    return images[np.arange(batch) % len(images)]


def bench_table(report: BenchReport) -> Table:
    """The report as text: times of one call in milliseconds, the ratio with its 95 % interval."""
    columns: tuple[str, ...] = ("batch", "port ms", "p90", "p99", "port images/s")
    rows = [_port_cells(result) for result in report.batches]
    if report.original:
        columns += ("original ms", "original images/s", "times faster", "95 % interval", "noise")
        rows = [cells + _paired_cells(result.paired) for cells, result in zip(rows, report.batches, strict=True)]
    return Table(title=_title(report), columns=columns, rows=tuple(rows), notes=tuple(_notes(report)))


def scenarios_table(report: BenchReport) -> Table:
    """The scenarios of a report as text."""
    if report.scenarios is None:
        raise UsageError("this report has no scenarios")
    notes = [*_loud(report), _machine_note(report)]
    table = scenario_table(report.scenarios, _title(report))
    return replace(table, notes=(*table.notes, *notes))


def _check(batches: Sequence[int], seconds: float, threads: int | None) -> None:
    if not batches or min(batches) < 1:
        raise UsageError(f"batch sizes must be at least 1, found {', '.join(map(str, batches)) or 'none'}")
    if not 0 < seconds < math.inf:
        raise UsageError(f"the time for each batch size must be above 0 seconds, found {seconds}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, found {threads}")


def _original(bundle: Bundle, threads: int, trust_code: bool) -> tuple[Runner | None, str]:
    """The original's runner, or why there is none."""
    if WEIGHTS not in bundle.manifest.files:
        return None, f"not run: the bundle does not ship {WEIGHTS}, which the original is rebuilt from"
    try:
        from trueport.export.original import original_runner

        return original_runner(bundle, threads, trust_code), ""
    except (MissingError, TrustError) as error:
        return None, f"not run: {error}"


class Load:
    """How busy the processor is with other work, from now on."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._start = self._now()

    def others(self) -> float | None:
        """Share of all processor time since the start that was not this process's; None where it can't be told."""
        busy, own, wall = (
            None if now is None or then is None else now - then
            for now, then in zip(self._now(), self._start, strict=True)
        )
        if busy is None or own is None or not wall:
            return None
        return min(1.0, max(0.0, (busy - own) / (wall * self._cores)))

    def _now(self) -> tuple[float | None, float, float]:
        return busy_seconds(), time.process_time(), time.perf_counter()


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Set torch's threads once, so that the original's runner does not change them, and pay for it, in each call."""
    torch = sys.modules.get("torch")  # not loaded: there is no original
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _feeds(bundle: Bundle, batches: Sequence[int]) -> dict[int, dict[str, Array]]:
    images, name = bundle.evaluation().images, bundle.manifest.inputs[0].name
    return {batch: {name: tiled(images, batch)} for batch in batches}


def _timed_batches(
    original: Runner | None,
    port: Runner,
    feeds: Mapping[int, Mapping[str, Array]],
    seconds: float,
    progress: Callable[[str], None],
) -> tuple[BatchBench, ...]:
    results = []
    for batch, images in feeds.items():
        progress(f"batch {batch}")
        results.append(_timed_batch(original, port, images, batch, seconds))
    return tuple(results)


def _timed_batch(
    original: Runner | None, port: Runner, feeds: Mapping[str, Array], batch: int, seconds: float
) -> BatchBench:
    if original is None:
        return BatchBench(batch=batch, port=measure(lambda: port.run(feeds), seconds=seconds, rows=batch), paired=None)
    paired = compare(
        lambda: original.run(feeds),
        lambda: port.run(feeds),
        seconds=seconds,
        min_blocks=MIN_BLOCKS,
        rows=batch,
    )
    return BatchBench(batch=batch, port=paired.b, paired=paired)


def _port_cells(result: BatchBench) -> tuple[str, ...]:
    port = result.port
    return str(result.batch), _ms(port.median_ms), _ms(port.p90_ms), _ms(port.p99_ms), f"{port.images_per_s:,.0f}"


def _paired_cells(paired: Paired | None) -> tuple[str, ...]:
    if paired is None:
        return (ABSENT,) * 5
    return (
        _ms(paired.a.median_ms),
        f"{paired.a.images_per_s:,.0f}",
        f"{paired.ratio:.2f}",
        f"{paired.ratio_low:.2f} to {paired.ratio_high:.2f}",
        f"{paired.noise:.0%}",
    )


def _title(report: BenchReport) -> str:
    port = f"{report.variant} on {_described(report.port)}"
    beside = f", original on {_described(report.original)}" if report.original else ""
    return f"{report.bundle} {report.version}: {port}{beside}"


def _described(runner: RunnerReport) -> str:
    threads = f"{runner.threads} thread{'s' if runner.threads != 1 else ''}"
    layers = [shown(runner.layers)] if runner.layers else []  # not every provider tells
    return f"{runner.provider} ({', '.join((runner.device, threads, *layers))})"


def _notes(report: BenchReport) -> list[str]:
    notes = [f"original {report.original_not_run}"] if report.original_not_run else []
    notes += _loud(report)
    doubtful = [result for result in report.batches if result.paired and not result.paired.differs]
    if doubtful:
        sizes = ", ".join(str(result.batch) for result in doubtful)
        notes.append(f"no difference shown beyond the noise at batch {sizes}: a quieter machine or more seconds may")
    cells = [(result.port.p90_ms, result.port.p99_ms) for result in report.batches]
    if any(None in pair for pair in cells):
        notes.append(f"{ABSENT}: too few samples for that percentile, more seconds bring more")
    return [*notes, _machine_note(report)]


def _loud(report: BenchReport) -> list[str]:
    if report.other_load is None or report.other_load <= LOUD:
        return []
    return [
        f"other work took {report.other_load:.0%} of the processor meanwhile: times are too long, and those of "
        "several threads the most; repeat on a quiet machine"
    ]


def _machine_note(report: BenchReport) -> str:
    machine = report.machine
    return f"machine {machine.key}: {machine.cpu}, {machine.cores} cores, {machine.os}"


def _ms(value: float | None) -> str:
    """Three significant digits, and whole milliseconds from a hundred on."""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"
