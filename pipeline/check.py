"""check: is the port the model that was trained? A loop of gates over variants and runners.

With torch the original is rebuilt from the bundle's weights and asked anew; without, its recorded answers are the
reference. Either way the same gates run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from trueport.runtime import comparison
from trueport.runtime.bundle import WEIGHTS, Bundle, Evaluation, Golden
from trueport.runtime.comparison import Logits
from trueport.runtime.errors import ImageError, MissingError, TrustError, UsageError, unknown_name
from trueport.runtime.machine import Machine, describe_machine
from trueport.runtime.manifest import Task, Variant
from trueport.runtime.preprocessing import prepare
from trueport.runtime.runner import Runner, RunnerOptions, RunnerReport, run_in_batches
from trueport.runtime.runners import DEFAULT, RUNNERS, open_runner
from trueport.runtime.runners.reached import shown
from trueport.runtime.verdict import Verdict, judged, not_run

from .console import Table

RECORDING = "recording"
OPENING = "opening"
"""The gate that is not run where a runner does not take a variant: nothing behind it was run either."""
ALL = "all"
"""In place of a runner's name: every one that this machine can open."""
BATCHES = (1, 2, 7, 32)
"""Alone, the smallest batch, an odd one, and as many as the batcher takes at most by default."""


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """Every verdict on one bundle on one machine."""

    bundle: str
    version: str
    faithful: bool
    """Something passed and nothing failed, of what ran: what was not run is among the verdicts."""
    machine: Machine
    reference: str
    """`original` rebuilt here, or `recording` of it without torch, the weights, or trust in the code it needs."""
    runners: tuple[RunnerReport, ...]
    """One for each variant that was opened on a runner, in the order of the verdicts."""
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

    variants: names; none: on each runner those that were made for its kind of device.
    runners: names, or `all` for those that this machine can open. progress is told what is being run.
    trust_code: rebuild an original that a `package.module:factory` of the bundle's choice makes, by running that code;
    without, its recording is the reference.
    A variant that nobody named and that a runner can't run is a verdict, `not run`.
    Raises UsageError where no runner is named, BundleError for a bundle that is not to be trusted, MissingError where
    a runner that was named can't be had at all, or not for a variant that was named.
    """
    _check_names(runners)
    bundle = Bundle.open(path)
    wanted = [bundle.variant(name) for name in variants]
    golden, evaluation = bundle.golden(), bundle.evaluation()
    progress("preprocessing")
    verdicts = [_preprocessing(bundle, golden)]
    progress("original")
    reference, verdict = _reference(bundle, golden, evaluation, threads, trust_code)
    verdicts.append(verdict)
    ports = _Ports(bundle, RunnerOptions(threads=threads), reference, golden, evaluation, progress)
    named = [name for name in dict.fromkeys(runners) if name != ALL]
    for name in named:
        ports.judge_named(name, wanted)
    if ALL in runners:
        ports.judge_all([name for name in RUNNERS if name not in named], wanted)
    verdicts += ports.verdicts
    if not wanted:
        verdicts += _never_tried(bundle, ports.verdicts)
    return CheckReport(
        bundle=bundle.manifest.name,
        version=bundle.manifest.version,
        faithful=proven(verdicts),
        machine=describe_machine(),
        reference=reference.source,
        runners=tuple(ports.reports),
        verdicts=tuple(verdicts),
    )


def recorded_gates(
    bundle: Bundle, variant: Variant, runner: Runner, golden: Golden, evaluation: Evaluation
) -> list[Verdict]:
    """Parity, batch invariance and accuracy of one variant on an opened runner, against the recording."""
    reference = _Answers(RECORDING, golden.logits, evaluation.logits)
    return _gates(variant, runner, bundle.manifest.task, reference, golden, evaluation)


def proven(verdicts: Sequence[Verdict]) -> bool:
    """Whether something passed, nothing failed, and nothing was left out but the recording and whole variants."""
    missing = {verdict.gate for verdict in verdicts if verdict.status == "not run"}
    return any(verdicts) and missing <= {RECORDING, OPENING} and all(verdict.status != "failed" for verdict in verdicts)


@dataclass(frozen=True, eq=False)
class _Answers:
    """Logits on the golden and on the evaluation inputs."""

    source: str
    golden: Logits
    evaluation: Logits


class _Ports:
    """The gates of one variant on one runner after the other."""

    def __init__(
        self,
        bundle: Bundle,
        options: RunnerOptions,
        reference: _Answers,
        golden: Golden,
        evaluation: Evaluation,
        progress: Callable[[str], None],
    ) -> None:
        self._bundle, self._options, self._progress = bundle, options, progress
        self._reference, self._golden, self._evaluation = reference, golden, evaluation
        self.reports: list[RunnerReport] = []
        self.verdicts: list[Verdict] = []

    def judge_named(self, name: str, wanted: Sequence[Variant]) -> None:
        """Run the gates on a runner. Raises MissingError where it takes none of the variants, or not a wanted one."""
        variants = wanted or _made_for(name, self._bundle.manifest.variants)
        if not variants:
            raise UsageError(f"none of the bundle's variants was made for {name}: name one, or choose another runner")
        refused = self._judge(name, variants)
        if refused and (wanted or len(refused) == len(variants)):
            raise refused[0][1]
        self.verdicts += [not_run(OPENING, variant.name, name, str(error)) for variant, error in refused]

    def judge_all(self, names: Iterable[str], wanted: Sequence[Variant]) -> None:
        """Run the gates on those of the runners that can be opened. Raises MissingError where that is none at all."""
        first: MissingError | None = None
        for name in names:
            variants = _made_for(name, wanted or self._bundle.manifest.variants)
            refused = self._judge(name, variants)
            first = first or (refused[0][1] if refused else None)
            for error in dict.fromkeys(str(error) for _, error in refused):  # one reason is told once
                concerned = ", ".join(variant.name for variant, other in refused if str(other) == error)
                self.verdicts.append(not_run(OPENING, concerned, name, error))
        if first and not self.reports:
            raise first

    def _judge(self, name: str, variants: Iterable[Variant]) -> list[tuple[Variant, MissingError]]:
        """Those variants that the runner does not take, and why."""
        refused = []
        for variant in variants:
            self._progress(f"{variant.name} on {name}")
            try:
                opened = open_runner(self._bundle, name, variant.name, self._options)
            except MissingError as error:
                refused.append((variant, error))
                continue
            with closing(opened) as runner:
                self.reports.append(runner.report())
                task = self._bundle.manifest.task
                self.verdicts += _gates(variant, runner, task, self._reference, self._golden, self._evaluation)
        return refused


def _never_tried(bundle: Bundle, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Variants that none of the runners that were asked for is made for: they are told, not passed over."""
    tried = {name for verdict in verdicts for name in verdict.variant.split(", ")}
    return [
        not_run(
            OPENING, variant.name, "-", f"{variant.name} was made for a {variant.target.upper()}: name a runner there"
        )
        for variant in bundle.manifest.variants
        if variant.name not in tried
    ]


def _check_names(runners: Sequence[str]) -> None:
    if not runners:
        raise UsageError(f"check needs a runner, found none: choose from {', '.join((*RUNNERS, ALL))}")
    for name in runners:
        if name not in (*RUNNERS, ALL):
            raise unknown_name("runner", name, (*RUNNERS, ALL))


def _made_for(runner: str, variants: Iterable[Variant]) -> list[Variant]:
    """Those that were made for the kind of device that a runner runs on."""
    return [variant for variant in variants if variant.target in ("any", RUNNERS[runner].target)]


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
    computed = f"; {shown(runner.report().layers)}" if runner.report().layers else ""
    accuracy = comparison.accuracy if task == "classification" else comparison.decisions
    return [
        comparison.parity(
            _all(port),
            _all(reference),
            bounds,
            detail=f"logits on {inputs} against the {reference.source}{computed}",
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
    told = [f"{counts[status]} {status}" for status in ("passed", "failed", "not run") if counts[status]]
    closed = [name for verdict in report.verdicts if verdict.gate == OPENING for name in verdict.variant.split(", ")]
    opened = {verdict.variant for verdict in report.verdicts if verdict.gate != OPENING}
    if nowhere := [name for name in dict.fromkeys(closed) if name not in opened]:
        told[-1] += f", {' and '.join(nowhere)} on no runner at all"
    return f"{'faithful' if report else 'NOT PROVEN FAITHFUL'}: {', '.join(told)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}"
