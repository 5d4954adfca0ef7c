"""check: is the port the model that was trained? A loop of gates over variants and runners.

With torch the original is rebuilt from the bundle's weights and asked anew; without, its recorded answers are the
reference. Either way the same gates run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from trueport.export.original import OriginalRunner
from trueport.runtime.bundle import EVALUATION, GOLDEN, WEIGHTS, Bundle, Evaluation, Golden
from trueport.runtime.errors import MissingError, TrustError, UsageError, unknown_name
from trueport.runtime.explanation import Explanation
from trueport.runtime.machine import Machine, describe_machine
from trueport.runtime.manifest import Bounds, Variant
from trueport.runtime.runner import Runner, RunnerOptions, RunnerReport, run_in_batches
from trueport.runtime.runners import DEFAULT, RUNNERS
from trueport.runtime.runners.written import WRITTEN
from trueport.runtime.verdict import Verdict, not_run

from .console import Table
from .deployment import Deployment
from .gates import OPENING, Answers, answer_gates, bundle_gates, carried_facts, recording_gate
from .ports import Clock, Ports

RECORDING = "recording"
ALL = "all"
"""In place of a runner's name: every one that this machine can open."""
OVERRIDABLE = ("max_abs", "rms", "max_drop")
"""Bounds that may be overridden, of any variant."""
TOLD_S = 0.1
"""What took less is not told in the table."""
References = dict[tuple[object, ...], Answers]
"""The original's answers, kept between checks of the same weights on the same inputs."""


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
    bundle_sha256: str = ""
    """The manifest's own hash."""
    data: str | None = None
    """The labelled pictures, as they were named, in place of the evaluation slice; None: the slice."""
    overridden: dict[str, float] = {}
    """Bounds that were set by hand in place of those that export derived, such as `fp32.max_abs`."""
    seconds: dict[str, float] = {}
    """Where the time went."""
    explanations: tuple[Explanation, ...] = ()
    """Of what failed or is undecided, where they were asked for."""

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The gates that failed."""
        return tuple(verdict for verdict in self.verdicts if verdict.status == "failed")

    @property
    def undecided(self) -> tuple[Verdict, ...]:
        """The gates whose samples don't tell."""
        return tuple(verdict for verdict in self.verdicts if verdict.status == "undecided")

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
    bounds: Mapping[str, float] | None = None,
    data: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Run every gate on every variant and runner.

    variants: names; none: on each runner those that were made for its kind of device.
    runners: names, or `all` for those that this machine can open; `written` judges the graphs as they are written.
    bounds: in place of derived ones, such as {"fp32.max_abs": 0.01}; they are recorded in the report.
    data: labelled pictures, as `open_dataset` takes them, in place of the evaluation slice; needs the original.
    trust_code: rebuild an original that a `package.module:factory` of the bundle's choice makes, by running that code;
    without, its recording is the reference. progress is told what is being run.
    A variant that a runner can't run, and that nobody asked of that very runner by both their names, is a verdict, `not
    run`; where no runner takes it, its graph is judged as it is written. One that was made for the runner's kind of
    device and is computed in another precision there has failed.
    Raises UsageError where no runner is named or a bound is unknown, BundleError for a bundle that is not to be
    trusted, MissingError where a runner that was named can't be had at all, or not for a variant that was named, or
    where nothing of what was asked can be opened on any runner.
    """
    check_names(runners)
    return check_deployment(
        Deployment(Bundle.open(path)),
        variants=variants,
        runners=runners,
        threads=threads,
        trust_code=trust_code,
        bounds=bounds,
        data=data,
        progress=progress,
    )


def check_bundle(
    path: Path,
    *,
    threads: int | None = None,
    trust_code: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> CheckReport:
    """`check`, and `explained` where something failed or can't be told; options as `check` has them, but for data."""
    report = check(path, threads=threads, trust_code=trust_code, progress=progress, **options)
    return report if report else explained(path, report, threads=threads, trust_code=trust_code, progress=progress)


def explained(
    path: Path,
    report: CheckReport,
    *,
    rebuild: Path | None = None,
    threads: int | None = None,
    trust_code: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """The report, and what failed or can't be told traced to its stage, its first tensors and its cause.

    rebuild: where an int8 variant lacks accuracy, write the bundle anew there with the fewest layers in float that it
    needs; progress is told whether that was done.
    Raises UsageError for a report on other pictures than the bundle's own: by these alone a stage is found.
    """
    from .explain import explain, rebuilt

    if report.data is not None:
        raise UsageError(f"expected a report on the bundle's own pictures to explain, found one on {report.data}")
    deployment = Deployment(Bundle.open(path))
    found = explain(deployment, report, threads=threads, trust_code=trust_code, progress=progress)
    if rebuild:
        wanted = next((one for one in found if one.float_layers), None)
        if wanted is None:
            progress(f"nothing was rebuilt: {path} has no int8 variant that layers in float would mend")
        else:
            rebuilt(deployment, wanted, rebuild, threads=threads, trust_code=trust_code)
            progress(f"{rebuild}: the bundle with {', '.join(wanted.float_layers)} of {wanted.variant} in float")
    return msgspec.structs.replace(report, explanations=found)


def bounds_from_text(texts: Sequence[str]) -> dict[str, float]:
    """Bounds as they are given on the command line. Raises UsageError for what is not NAME=VALUE."""
    bounds = {}
    for text in texts:
        name, separator, value = text.partition("=")
        try:
            bounds[name.strip()] = float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise UsageError(f"expected a bound such as fp32.max_abs=0.01, found {text!r}")
    return bounds


def check_deployment(
    deployment: Deployment,
    *,
    variants: Sequence[str] = (),
    runners: Sequence[str] = (DEFAULT,),
    threads: int | None = None,
    trust_code: bool = False,
    bounds: Mapping[str, float] | None = None,
    data: str | None = None,
    references: References | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """`check`, of a bundle and what an application does around it.

    references: where the original's answers are kept for the next call.
    """
    check_names(runners, deployment.runners)
    bundle = overridden(deployment.bundle, bounds or {})
    deployment = replace(deployment, bundle=bundle)
    wanted = [bundle.variant(name) for name in dict.fromkeys(variants)]
    clock = Clock(progress)
    with clock("reading"):
        golden, evaluation, graphs = bundle.golden(), bundle.evaluation(), carried_facts(bundle)
    with clock("original"):
        reference, recording = _reference(deployment, golden, evaluation, threads, trust_code, references)
    if data is not None:
        with clock(f"original on {data}"):
            evaluation, reference = _on_data(deployment, data, reference, threads, trust_code)
    with clock("preprocessing"):
        verdicts = [*bundle_gates(deployment, graphs, golden, evaluation), recording]
    ports = Ports(deployment, graphs, RunnerOptions(threads=threads), reference, golden, evaluation, clock)
    named = [name for name in dict.fromkeys(runners) if name != ALL]
    for name in named:
        ports.judge_named(name, wanted)
    if ALL in runners:
        ports.judge_all([name for name in RUNNERS if name not in named], wanted)
    ports.judge_written(wanted)
    verdicts += ports.verdicts
    return CheckReport(
        bundle=bundle.manifest.name,
        version=bundle.manifest.version,
        faithful=proven(verdicts),
        machine=describe_machine(),
        reference=reference.source,
        runners=tuple(ports.reports),
        verdicts=tuple(verdicts),
        bundle_sha256=bundle.manifest.sha256,
        data=data,
        overridden=dict(bounds or {}),
        seconds=clock.seconds,
    )


def recorded_gates(
    bundle: Bundle, variant: Variant, runner: Runner, golden: Golden, evaluation: Evaluation
) -> list[Verdict]:
    """Parity, batch invariance and accuracy of one variant on an opened runner, against the recording."""
    reference = Answers(RECORDING, golden.logits, evaluation.logits)
    return answer_gates(bundle.manifest, variant, runner, reference, golden, evaluation)


def proven(verdicts: Sequence[Verdict]) -> bool:
    """Whether something passed and nothing is in doubt; left out may be the recording and whole variants alone."""
    missing = {verdict.gate for verdict in verdicts if verdict.status == "not run"}
    doubtful = any(verdict.status in {"failed", "undecided"} for verdict in verdicts)
    return any(verdicts) and missing <= {RECORDING, OPENING} and not doubtful


def overridden(bundle: Bundle, bounds: Mapping[str, float]) -> Bundle:
    """The bundle with such bounds in place of its own. Raises UsageError for an unknown one, or a value below 0."""
    variants = {variant.name: variant for variant in bundle.manifest.variants}
    known = [f"{name}.{limit}" for name in variants for limit in OVERRIDABLE]
    for key, value in bounds.items():
        if key not in known:
            raise unknown_name("bound", key, known)
        if not 0 <= value < float("inf"):
            raise UsageError(f"the bound {key} must be a number from 0 on, found {value}")
        name, _, limit = key.rpartition(".")
        changed: Bounds = msgspec.structs.replace(variants[name].bounds, **{limit: value})
        variants[name] = msgspec.structs.replace(variants[name], bounds=changed)
    return Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, variants=tuple(variants.values())))


def check_names(runners: Sequence[str], others: Sequence[str] = ()) -> None:
    """Raise UsageError unless these are runners, or among the others, and one at least."""
    known = (*RUNNERS, *others, WRITTEN, ALL)
    if not runners:
        raise UsageError(f"check needs a runner, found none: choose from {', '.join(known)}")
    for name in runners:
        if name not in known:
            raise unknown_name("runner", name, known)


def _reference(
    deployment: Deployment,
    golden: Golden,
    evaluation: Evaluation,
    threads: int | None,
    trust_code: bool,
    kept: References | None,
) -> tuple[Answers, Verdict]:
    """The rebuilt original's logits, and whether they are those that were recorded; else the recorded ones."""
    recorded = Answers(RECORDING, golden.logits, evaluation.logits)
    bundle = deployment.bundle
    manifest, origin, names = bundle.manifest, bundle.manifest.provenance, ("original", "original")
    files = tuple(manifest.files[name].sha256 for name in (WEIGHTS, GOLDEN, EVALUATION) if name in manifest.files)
    key = (
        deployment.original,
        *files,
        origin.arch,
        str(origin.arch_args),
        manifest.normalisation,
        manifest.inputs,
        threads,
    )
    rebuilt = kept.get(key) if kept is not None else None
    if rebuilt is None:
        try:
            runner = _original(deployment, threads, trust_code)
        except (MissingError, TrustError) as error:
            return recorded, not_run(RECORDING, *names, f"{error}; the recording is the reference")
        rebuilt = Answers("original", *(run_in_batches(runner, rows.images) for rows in (golden, evaluation)))
        if kept is not None:
            kept[key] = rebuilt
    return rebuilt, recording_gate(bundle, rebuilt, recorded, names[1])


def _original(deployment: Deployment, threads: int | None, trust_code: bool) -> Runner:
    return OriginalRunner(deployment.original(deployment.bundle, trust_code), threads)


def _on_data(
    deployment: Deployment, data: str, reference: Answers, threads: int | None, trust_code: bool
) -> tuple[Evaluation, Answers]:
    """Other pictures in place of the evaluation slice, and the original's answers to them."""
    from .evaluate import labelled_pictures

    images, labels = labelled_pictures(deployment.bundle, data)
    logits = run_in_batches(_original(deployment, threads, trust_code), images)
    return Evaluation(images, labels, logits), replace(reference, evaluation=logits)


def check_table(report: CheckReport) -> Table:
    """The verdicts as text; what was crossed is named in the notes, with the bound that would have passed."""
    notes = [
        f"{verdict.gate} of {verdict.variant}: {_words(name)} would have passed with {_would_pass(bound)}"
        for verdict in report.failed
        for name, bound in verdict.would_pass.items()
    ]
    if report.data is not None:
        notes.append(f"judged on the pictures of {report.data}, in place of the bundle's evaluation slice")
    notes += [f"the bound {name} was set to {value:g} by hand" for name, value in report.overridden.items()]
    if report.seconds:
        slow = {name: spent for name, spent in report.seconds.items() if spent >= TOLD_S}
        notes.append("seconds: " + (", ".join(f"{name} {spent:.1f}" for name, spent in slow.items()) or "none"))
    return Table(
        title=f"{report.bundle} {report.version}, against the {report.reference}",
        columns=("verdict", "gate", "measured, and what was allowed"),
        rows=tuple((verdict.status, verdict.gate, _told(verdict)) for verdict in report.verdicts),
        notes=(*notes, check_summary(report)),
    )


def _told(verdict: Verdict) -> str:
    port = "" if verdict.runner in ("-", verdict.variant) else f"{verdict.variant} on {verdict.runner}: "
    limits = (
        f"{_words(name)} {_number(verdict.measured[name])} (allowed {_number(limit)}{_noise(verdict, name)})"
        for name, limit in verdict.allowed.items()
    )
    return "\n".join(filter(None, (", ".join(limits), port + verdict.detail)))


def _noise(verdict: Verdict, name: str) -> str:
    """The noise that was measured at export, beside the bound that follows from it."""
    noise, limit = verdict.measured.get(f"noise_{name}"), verdict.allowed[name]
    return f", {limit / noise:.3g} times the noise of {_number(noise)} at export" if noise else ""


def check_summary(report: CheckReport) -> str:
    """The verdict on all of it, in a line."""
    counts = Counter(verdict.status for verdict in report.verdicts)
    told = [f"{counts[status]} {status}" for status in ("passed", "failed", "undecided", "not run") if counts[status]]
    closed = [name for verdict in report.verdicts if verdict.gate == OPENING for name in verdict.variant.split(", ")]
    opened = {verdict.variant for verdict in report.verdicts if verdict.gate != OPENING and verdict.runner != WRITTEN}
    if nowhere := [name for name in dict.fromkeys(closed) if name not in opened]:
        told[-1] += f", {' and '.join(nowhere)} on no runner at all"
    return f"{'faithful' if report else 'NOT PROVEN FAITHFUL'}: {', '.join(told)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _would_pass(bound: float | None) -> str:
    return "no bound at all" if bound is None else _number(rounded_up(bound))


def rounded_up(bound: float) -> float:
    """To three significant digits and never below: a bound that is copied from what is printed has to pass."""
    nearest = float(f"{bound:.3g}")
    return nearest if nearest >= bound else float(f"{bound * 1.005:.3g}")


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}"
