"""check: is the port the model that was trained? A loop of gates over variants and runners.

With torch the original is rebuilt from the bundle's weights and asked anew; without, its recorded answers are the
reference. Either way the same gates run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from trueport.runtime import comparison
from trueport.runtime.bundle import WEIGHTS, Bundle, Evaluation, Golden
from trueport.runtime.comparison import Logits
from trueport.runtime.errors import ImageError, MissingError, TrustError, UsageError
from trueport.runtime.machine import Machine, describe_machine
from trueport.runtime.manifest import Task, Variant
from trueport.runtime.preprocessing import prepare
from trueport.runtime.runner import Runner, RunnerOptions, RunnerReport, run_in_batches
from trueport.runtime.runners import DEFAULT, RUNNERS, open_runner
from trueport.runtime.verdict import Verdict, judged, not_run

from .console import Table

RECORDING = "recording"
BATCHES = (1, 2, 7, 32)
"""Alone, the smallest batch, an odd one, and as many as the batcher takes at most by default."""


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Every verdict on one bundle on one machine."""

    bundle: str
    version: str
    faithful: bool
    """Every gate of every variant on every runner passed, or could not be run for want of the original."""
    machine: Machine
    reference: str
    """`original` rebuilt here, or `recording` of it without torch, the weights, or trust in the code it needs."""
    runners: tuple[RunnerReport, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The gates that failed."""
        return tuple(verdict for verdict in self.verdicts if verdict.status == "failed")

    def __bool__(self) -> bool:
        """Whether it is faithful."""
        return self.faithful


def check(
    path: Path,
    *,
    variants: Sequence[str] = (),
    runners: Sequence[str] = (DEFAULT,),
    threads: int | None = None,
    trust_code: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Run every gate on every variant and runner.

    variants: names; none: all. progress is told what is being run.
    trust_code: rebuild an original that a `package.module:factory` of the bundle's choice makes, by running that code;
    without, its recording is the reference.
    Raises UsageError where no runner is named, BundleError for a bundle that is not to be trusted, MissingError where
    a runner can't be had.
    """
    if not runners:
        raise UsageError(f"check needs a runner, found none: choose from {', '.join(RUNNERS)}")
    bundle = Bundle.open(path)
    golden, evaluation = bundle.golden(), bundle.evaluation()
    progress("preprocessing")
    verdicts = [_preprocessing(bundle, golden)]
    progress("original")
    reference, verdict = _reference(bundle, golden, evaluation, threads, trust_code)
    verdicts.append(verdict)
    reports = []
    for variant in [bundle.variant(name) for name in variants] or bundle.manifest.variants:
        for name in runners:
            progress(f"{variant.name} on {name}")
            with closing(open_runner(bundle, name, variant.name, RunnerOptions(threads=threads))) as runner:
                reports.append(runner.report())
                verdicts += _gates(variant, runner, bundle.manifest.task, reference, golden, evaluation)
    return CheckReport(
        bundle=bundle.manifest.name,
        version=bundle.manifest.version,
        faithful=proven(verdicts),
        machine=describe_machine(),
        reference=reference.source,
        runners=tuple(reports),
        verdicts=tuple(verdicts),
    )


def proven(verdicts: Sequence[Verdict]) -> bool:
    """Whether something passed, nothing failed, and nothing but the recording was left out."""
    missing = [verdict.gate for verdict in verdicts if verdict.status == "not run"]
    return any(verdicts) and set(missing) <= {RECORDING} and all(verdict.status != "failed" for verdict in verdicts)


@dataclass(frozen=True, eq=False)
class _Answers:
    """Logits on the golden and on the evaluation inputs."""

    source: str
    golden: Logits
    evaluation: Logits


def _preprocessing(bundle: Bundle, golden: Golden) -> Verdict:
    try:
        prepared = [prepare(picture, bundle.manifest.preprocessing) for picture in golden.encoded]
    except ImageError as error:
        detail = f"a golden picture can't be decoded by this Pillow: {error}"
        return judged("preprocessing", "-", "-", {"undecodable": 1.0}, {"undecodable": 0.0}, detail)
    return comparison.preprocessing_identity(prepared, golden.prepared)


def _reference(
    bundle: Bundle, golden: Golden, evaluation: Evaluation, threads: int | None, trust_code: bool
) -> tuple[_Answers, Verdict]:
    """The rebuilt original's logits, and whether they are those that were recorded; else the recorded ones."""
    variant = "original"
    recorded = _Answers("recording", golden.logits, evaluation.logits)
    if WEIGHTS not in bundle.manifest.files:
        why = f"the bundle has no {WEIGHTS}: its recording is the reference"
        return recorded, not_run(RECORDING, variant, variant, why)
    try:
        from trueport.export.original import original_runner

        runner = original_runner(bundle, threads, trust_code)
    except (MissingError, TrustError) as error:
        return recorded, not_run(RECORDING, variant, variant, f"{error}; the recording is the reference")
    rebuilt = _Answers("original", run_in_batches(runner, golden.images), run_in_batches(runner, evaluation.images))
    deviation = float(np.abs(_all(rebuilt) - _all(recorded)).max())
    detail = f"the original rebuilt from the bundle's weights against its recording, {len(_all(recorded))} inputs"
    allowed = {"max_abs": bundle.variant().bounds.max_abs}
    return rebuilt, judged(RECORDING, variant, runner.report().name, {"max_abs": deviation}, allowed, detail)


def _gates(
    variant: Variant, runner: Runner, task: Task, reference: _Answers, golden: Golden, evaluation: Evaluation
) -> list[Verdict]:
    bounds, names = variant.bounds, {"variant": variant.name, "runner": runner.report().name}
    image, logits = runner.inputs[0].name, runner.outputs[0].name
    port = _Answers("port", run_in_batches(runner, golden.images), run_in_batches(runner, evaluation.images))
    inputs = f"{len(golden.images)} golden and {len(evaluation.images)} evaluation inputs"
    accuracy = comparison.accuracy if task == "classification" else comparison.decisions
    return [
        comparison.parity(
            _all(port),
            _all(reference),
            bounds,
            detail=f"logits on {inputs} against the {reference.source}",
            task=task,
            **names,
        ),
        comparison.batch_invariance(
            lambda images: runner.run({image: images})[logits], golden.images, bounds, BATCHES, **names
        ),
        accuracy(port.evaluation, reference.evaluation, evaluation.labels, bounds, **names),
    ]


def _all(reference: _Answers) -> Logits:
    return np.concatenate([reference.golden, reference.evaluation])


def check_table(report: CheckReport) -> Table:
    """The verdicts as text; what was crossed is named in the notes, with the bound that would have passed."""
    notes = [
        f"{verdict.gate} of {verdict.variant}: {_words(name)} would have passed with {_number(bound)}"
        for verdict in report.failed
        for name, bound in verdict.would_pass.items()
    ]
    return Table(
        title=f"{report.bundle} {report.version}, against the {report.reference}",
        columns=("verdict", "gate", "measured, and what was allowed"),
        rows=tuple((verdict.status, verdict.gate, _told(verdict)) for verdict in report.verdicts),
        notes=(*notes, check_summary(report)),
    )


def _told(verdict: Verdict) -> str:
    port = "" if verdict.runner in ("-", verdict.variant) else f"{verdict.variant} on {verdict.runner}: "
    limits = (
        f"{_words(name)} {_number(verdict.measured[name])} (allowed {_number(limit)})"
        for name, limit in verdict.allowed.items()
    )
    return "\n".join(filter(None, (", ".join(limits), port + verdict.detail)))


def check_summary(report: CheckReport) -> str:
    """The verdict on all of it, in a line."""
    counts = Counter(verdict.status for verdict in report.verdicts)
    told = ", ".join(f"{counts[status]} {status}" for status in ("passed", "failed", "not run") if counts[status])
    return f"{'faithful' if report else 'NOT PROVEN FAITHFUL'}: {told}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}"
