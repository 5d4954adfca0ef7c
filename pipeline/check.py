"""check: is the port the model that was trained? A loop of gates over variants and runners.

With torch the original is rebuilt from the bundle's weights and asked anew; without, its recorded answers are the
reference. Either way the same gates run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.runtime import comparison
from trueport.runtime.bundle import WEIGHTS, Bundle, Evaluation, Golden
from trueport.runtime.comparison import Logits
from trueport.runtime.errors import ImageError, MissingError
from trueport.runtime.machine import Machine, describe_machine
from trueport.runtime.manifest import Variant
from trueport.runtime.preprocessing import prepare
from trueport.runtime.runner import Runner, RunnerReport, run_in_batches
from trueport.runtime.runners import RUNNERS, open_runner
from trueport.runtime.verdict import Verdict, judged, not_run

from .console import Table

BATCHES = (1, 2, 7, 32)
"""Alone, the smallest batch, an odd one, and as many as the batcher takes at most by default."""


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Every verdict on one bundle on one machine."""

    bundle: str
    version: str
    machine: Machine
    reference: str
    """`original` rebuilt here, or `recording` of it where torch is not installed or the weights are not shipped."""
    runners: tuple[RunnerReport, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The gates that failed."""
        return tuple(verdict for verdict in self.verdicts if verdict.status == "failed")

    def __bool__(self) -> bool:
        """True where no gate failed and at least one passed: what was not run proves nothing."""
        return not self.failed and any(self.verdicts)


def check(
    path: Path,
    *,
    variants: Sequence[str] | None = None,
    runners: Sequence[str] = RUNNERS[:1],
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Run every gate on every variant and runner.

    variants: names; None: all. progress is told what is being run.
    Raises BundleError for a bundle that is not to be trusted, MissingError where a runner can't be had.
    """
    bundle = Bundle.open(path)
    golden, evaluation = bundle.golden(), bundle.evaluation()
    progress("preprocessing")
    verdicts = [_preprocessing(bundle, golden)]
    progress("original")
    reference, verdict = _reference(bundle, golden, threads)
    verdicts.append(verdict)
    reports = []
    for variant in [bundle.variant(name) for name in variants] if variants else bundle.manifest.variants:
        for name in runners:
            progress(f"{variant.name} on {name}")
            runner = open_runner(bundle, name, variant.name, threads)
            reports.append(runner.report())
            verdicts += _gates(bundle, variant, runner, reference, golden, evaluation)
            runner.close()
    return CheckReport(
        bundle=bundle.manifest.name,
        version=bundle.manifest.version,
        machine=describe_machine(),
        reference="recording" if reference is None else "original",
        runners=tuple(reports),
        verdicts=tuple(verdicts),
    )


def _preprocessing(bundle: Bundle, golden: Golden) -> Verdict:
    try:
        prepared = [prepare(picture, bundle.manifest.preprocessing) for picture in golden.encoded]
    except ImageError as error:
        detail = f"a golden picture can't be decoded by this Pillow: {error}"
        return judged("preprocessing", "-", "-", {"undecodable": 1.0}, {"undecodable": 0.0}, detail)
    return comparison.preprocessing_identity(prepared, golden.prepared)


def _reference(bundle: Bundle, golden: Golden, threads: int | None) -> tuple[Logits | None, Verdict]:
    """The rebuilt original's logits on the golden inputs, and whether they are those that were recorded."""
    gate, variant = "recording", "original"
    if WEIGHTS not in bundle.manifest.files:
        return None, not_run(gate, variant, variant, f"the bundle has no {WEIGHTS}: its recording is the reference")
    try:
        from trueport.export.original import original_runner

        runner = original_runner(bundle, threads)
    except MissingError as error:
        return None, not_run(gate, variant, variant, f"{error}; the recording is the reference")
    logits = run_in_batches(runner, golden.images)
    deviation = float(np.abs(logits - golden.logits).max())
    detail = f"the original rebuilt from the bundle's weights against its recording, {len(logits)} golden inputs"
    allowed = {"max_abs": bundle.variant().bounds.max_abs}
    return logits, judged(gate, variant, runner.report().name, {"max_abs": deviation}, allowed, detail)


def _gates(
    bundle: Bundle,
    variant: Variant,
    runner: Runner,
    reference: Logits | None,
    golden: Golden,
    evaluation: Evaluation,
) -> list[Verdict]:
    bounds, names = variant.bounds, {"variant": variant.name, "runner": runner.report().name}
    original = golden.logits if reference is None else reference
    source = "recorded" if reference is None else "rebuilt"

    def infer(images: NDArray[np.uint8]) -> NDArray[Any]:
        return runner.run({bundle.manifest.inputs[0].name: images})[bundle.manifest.outputs[0].name]

    return [
        comparison.parity(
            run_in_batches(runner, golden.images),
            original,
            bounds,
            detail=f"logits on {len(golden.images)} golden inputs against the {source} original",
            **names,
        ),
        comparison.batch_invariance(infer, golden.images, bounds, BATCHES, **names),
        comparison.accuracy(
            run_in_batches(runner, evaluation.images), evaluation.logits, evaluation.labels, bounds, **names
        ),
    ]


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
