"""The whole main job: a recipe through train, export, check, bench and report.

Each stage has a key: a hash of everything it depends on. A stage whose key and outputs are as they were is skipped; an
interrupted one goes on. The keys are in `stages.json` of the run folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.runtime.atomic import write_bytes
from trueport.runtime.bundle import EVALUATION, GOLDEN, WEIGHTS, Bundle, graph_file
from trueport.runtime.errors import UsageError
from trueport.runtime.machine import Machine, describe_machine
from trueport.runtime.manifest import MANIFEST
from trueport.runtime.session import load

from . import run_folder
from .bench import LOUD, BatchBench, BenchReport, bench
from .check import CheckReport, check_bundle, check_summary
from .console import Table
from .data import open_dataset
from .export_run import export_run, made_by
from .recipe import Recipe
from .run_folder import Run

if TYPE_CHECKING:
    from rich.console import Console

STAGES = ("train", "export", "check", "bench", "report")
RECORD, REPORT, SAMPLE = "stages.json", "report.html", "sample.png"
BUNDLE = "bundle"
CHECK_JSON, BENCH_JSON = f"{BUNDLE}/reports/check.json", f"{BUNDLE}/reports/bench.json"


class StageRecord(msgspec.Struct, frozen=True):
    """What is remembered of a stage."""

    key: str
    outputs: dict[str, str] | None = None
    """SHA-256 by file; None: begun and not finished."""


@dataclass(frozen=True)
class Outcome:
    """What a run of all stages ends with."""

    run: Run
    bundle: Bundle
    check: CheckReport
    bench: BenchReport
    report: Path


@dataclass
class Job:
    """The stages of one recipe in one folder."""

    recipe: Recipe
    out: Path
    say: Callable[[str], None]
    console: Console | None
    afresh: bool
    records: dict[str, StageRecord]

    def stage(self, name: str, inputs: Any, outputs: Sequence[str], work: Callable[[bool], object]) -> None:
        """Do the work unless inputs and outputs are as they were; tell it whether it was tried before."""
        key = hashlib.sha256(msgspec.json.encode([name, inputs], order="deterministic")).hexdigest()
        before = self.records.get(name)
        position = f"[{STAGES.index(name) + 1}/{len(STAGES)}] {name}"
        if before and before.key == key and before.outputs and before.outputs == self._digests(outputs):
            self.say(f"{position}: skipped, nothing it depends on has changed")
            return
        self.say(position)
        self._remember(name, StageRecord(key))
        begun = time.monotonic()
        work(before is not None)
        self._remember(name, StageRecord(key, self._digests(outputs)))
        self.say(f"{position}: done in {time.monotonic() - begun:.1f} s")

    def keep(self, name: str, outputs: Sequence[str]) -> None:
        """Take the outputs as they are now for those of the stage."""
        record = StageRecord(self.records[name].key, self._digests(outputs))
        if record != self.records[name]:
            self._remember(name, record)

    def _digests(self, outputs: Sequence[str]) -> dict[str, str] | None:
        files = {name: self.out / name for name in outputs}
        if not all(file.is_file() for file in files.values()):
            return None
        return {name: run_folder.file_sha256(file) for name, file in files.items()}

    def _remember(self, name: str, record: StageRecord) -> None:
        self.records[name] = record
        write_bytes(self.out / RECORD, msgspec.json.format(msgspec.json.encode(self.records), indent=2))


def run_stages(
    recipe: Recipe,
    out: Path,
    *,
    afresh: bool = False,
    say: Callable[[str], None] = lambda _: None,
    console: Console | None = None,
) -> Outcome:
    """Take the recipe through every stage into `out`: the run itself, with `bundle/` and `report.html` in it.

    A gate that fails does not stop the later stages: the outcome's check is then falsy.
    afresh: do every stage, whatever was done before. say is told of every stage; console is where training shows its
    progress (None: standard error).
    Raises what the stages raise; what was done before stays and is not done again.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(
            "several processes were started, but the stages of a recipe are for one: let them `trueport train` into "
            f"{out}, then run the recipe there in one process, which takes the finished run as it is"
        )
    run_folder.refuse_foreign(out)
    job = Job(recipe, out, say, console, afresh, {} if afresh else _records(out))
    run = _train(job)
    machine = describe_machine()
    _export(job, run, machine)
    bundle = Bundle.open(out / BUNDLE)
    checked = _check(job, bundle, machine)
    benched = _bench(job, bundle, machine)
    _report(job, run, bundle, checked, benched)
    return Outcome(run, bundle, checked, benched, out / REPORT)


def outcome_table(outcome: Outcome) -> Table:
    """What a person wants to know at the end, a sample prediction included."""
    info, checked, timed = outcome.run.info, outcome.check, outcome.bench
    busy = timed.other_load or 0
    rows = [
        ("model", f"{info.arch}, {info.parameters:,} parameters, {len(info.labels)} classes"),
        (
            "accuracy" if info.task == "classification" else info.metric,
            f"{info.test_score:.2%} on {info.test_count} held-out test pictures",
        ),
        ("verdict", check_summary(checked)),
        *(("speed", _speed(result)) for result in timed.batches),
        *([("", f"other work took {busy:.0%} of the processor: time again on a quiet machine")] if busy > LOUD else []),
        ("bundle", str(outcome.bundle.path)),
        ("report", str(outcome.report)),
        ("sample", _sample(outcome)),
    ]
    return Table(title=outcome.bundle.manifest.name, columns=("", ""), rows=tuple(rows))


def _speed(result: BatchBench) -> str:
    told = f"batch {result.batch}: {result.port.median_ms:.3g} ms, {result.port.images_per_s:,.0f} images/s"
    if result.paired is None:
        return told
    paired = result.paired
    return f"{told}, {paired.ratio:.1f}x the original ({paired.ratio_low:.1f} to {paired.ratio_high:.1f})"


def _sample(outcome: Outcome) -> str:
    """The first held-out picture, as the port classifies its file."""
    picture, bundle = outcome.run.path / SAMPLE, outcome.bundle
    labels, truth = bundle.manifest.labels, bundle.evaluation().labels[0]
    several = bundle.manifest.task == "multilabel"
    with load(bundle.path) as session:
        said = session.classify(picture, top=len(labels) if several else 1)[0]
    present = [labels[index] for index in np.flatnonzero(truth)] if several else [labels[truth]]
    answers = [f"{score.label!r} ({score.score:.1%})" for score in (said.above() if several else said.top)]
    return f"{picture}, a held-out picture of {_listed(map(repr, present))}, is taken for {_listed(answers)}"


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names) or "no label"


def _write_sample(path: Path, image: NDArray[np.uint8]) -> None:
    """A prepared picture (H, W, C) as a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(axis=2) if image.shape[2] == 1 else image).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def _train(job: Job) -> Run:
    data = job.recipe.data
    dataset = open_dataset(data.source)
    section = {key: value for key, value in _plain(job.recipe.train).items() if key not in {"device", "workers"}}
    parts = (job.recipe.model, job.recipe.preprocessing, job.recipe.augment, data)
    init = Path(job.recipe.model.init or ".")  # another file under the same name is another training
    initial = run_folder.file_sha256(init) if init.is_file() else ""
    inputs = [*map(_plain, parts), section, dataset.fingerprint, initial]
    outputs = (run_folder.WEIGHTS, run_folder.RUN)

    def work(tried_before: bool) -> None:
        from .train import train

        # A run of another setup is only replaced where an earlier `trueport run` has made it.
        train(job.recipe, job.out, resume=not job.afresh, replace=tried_before, console=job.console)

    job.stage("train", inputs, outputs, work)
    run = run_folder.refreshed(Run.open(job.out), job.recipe)  # name, export, check and bench may have changed since
    job.keep("train", outputs)
    return run


def _export(job: Job, run: Run, machine: Machine) -> None:
    from trueport.export.variants import variant_names

    def work(_: bool) -> None:
        export_run(job.out, job.out / BUNDLE, job.recipe, job.say)

    trained = msgspec.structs.replace(run.info, recipe={}, seconds=0.0)
    graphs = map(graph_file, variant_names(job.recipe.export.precision))
    files = (MANIFEST, WEIGHTS, GOLDEN, EVALUATION, *graphs)
    inputs = [_plain(trained), made_by(job.recipe), machine.versions]
    job.stage("export", inputs, [f"{BUNDLE}/{file}" for file in files], work)


def _check(job: Job, bundle: Bundle, machine: Machine) -> CheckReport:
    def work(_: bool) -> None:  # the bundle was made of this recipe a moment ago: its code is the user's own
        report = check_bundle(bundle.path, runners=job.recipe.check.runner, trust_code=True)
        _write(job.out / CHECK_JSON, report)

    inputs = [bundle.manifest.sha256, _plain(job.recipe.check), machine.key, machine.versions]
    job.stage("check", inputs, (CHECK_JSON,), work)
    return msgspec.json.decode((job.out / CHECK_JSON).read_bytes(), type=CheckReport)


def _bench(job: Job, bundle: Bundle, machine: Machine) -> BenchReport:
    section = job.recipe.bench

    def work(_: bool) -> None:
        _write(
            job.out / BENCH_JSON, bench(bundle.path, batches=section.batch, seconds=section.seconds, trust_code=True)
        )

    inputs = [bundle.manifest.sha256, _plain(section), machine.key, machine.versions]
    job.stage("bench", inputs, (BENCH_JSON,), work)
    return msgspec.json.decode((job.out / BENCH_JSON).read_bytes(), type=BenchReport)


def _report(job: Job, run: Run, bundle: Bundle, checked: CheckReport, benched: BenchReport) -> None:
    def work(_: bool) -> None:
        from .report import write_report

        write_report(job.out / REPORT, run, bundle, checked, benched)
        _write_sample(job.out / SAMPLE, bundle.evaluation().images[0])

    told = (run_folder.RUN, run_folder.METRICS, CHECK_JSON, BENCH_JSON)
    inputs = [run_folder.file_sha256(job.out / file) for file in told]
    job.stage("report", inputs, (REPORT, SAMPLE), work)


def _records(out: Path) -> dict[str, StageRecord]:
    try:
        return msgspec.json.decode((out / RECORD).read_bytes(), type=dict[str, StageRecord])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}  # then every stage is done again, which is right whatever the file held


def _plain(section: msgspec.Struct) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(section)
    return plain


def _write(path: Path, report: msgspec.Struct) -> None:
    write_bytes(path, msgspec.json.format(msgspec.json.encode(report), indent=2))
