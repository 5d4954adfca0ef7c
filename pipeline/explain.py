"""explain: why did a gate fail? The stage, the first tensors in it, the cause, and what to do.

Everything that failed or can't be told is explained: the bundle's own gates, and those of each variant on each runner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from trueport.export.attribution.examine import examined
from trueport.export.attribution.subject import Subject
from trueport.export.written import open_as_written
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import ImageError
from trueport.runtime.evidence import GOLDEN_NEEDED
from trueport.runtime.explanation import STAGES, Explanation, Stage, StageResult
from trueport.runtime.graph_facts import contradictions, graph_facts
from trueport.runtime.manifest import Manifest
from trueport.runtime.preprocessing_causes import PixelCause, pixel_cause
from trueport.runtime.runner import Runner, RunnerOptions
from trueport.runtime.runners.written import WRITTEN
from trueport.runtime.verdict import Verdict

from .console import Table
from .deployment import Deployment

if TYPE_CHECKING:
    from .check import CheckReport

Say = Callable[[str], None]
OPEN = ("failed", "undecided")
FIRST = 3
"""Tensors that the table tells."""


def explain(
    deployment: Deployment,
    report: CheckReport,
    *,
    threads: int | None = None,
    trust_code: bool = False,
    progress: Say = lambda _: None,
) -> tuple[Explanation, ...]:
    """Every gate of the report that failed or is undecided, by the bundle, variant and runner that it is about.

    threads, trust_code: as `check` had them. progress is told what is being looked at.
    """
    from .check import overridden

    deployment = replace(deployment, bundle=overridden(deployment.bundle, report.overridden))
    groups: dict[tuple[str, str], dict[str, Verdict]] = {}
    for verdict in report.verdicts:
        if verdict.status in OPEN:
            groups.setdefault((verdict.variant, verdict.runner), {})[verdict.gate] = verdict
    if not groups:
        return ()
    subject = Subject(deployment.bundle, threads, trust_code, deployment.original)
    names = {variant.name for variant in deployment.bundle.manifest.variants}
    found: list[Explanation] = []
    for (variant, runner), gates in groups.items():
        if variant in names:
            opened = _opener(deployment, runner, variant, threads)
            found.append(examined(subject, deployment.bundle.variant(variant), runner, gates, opened, progress))
        else:
            found += [_of_bundle(deployment, subject, verdict, progress) for verdict in gates.values()]
    return tuple(found)


def rebuilt(
    deployment: Deployment,
    explanation: Explanation,
    out: Path,
    *,
    threads: int | None = None,
    trust_code: bool = False,
) -> Manifest:
    """Write the bundle anew into `out`, with the layers that the explanation names in float and bounds derived anew.

    Raises as `rebuilt_bundle` does.
    """
    from trueport.export.attribution.rebuild import rebuilt_bundle

    subject = Subject(deployment.bundle, threads, trust_code, deployment.original)
    variant = deployment.bundle.variant(explanation.variant)
    return rebuilt_bundle(subject, variant, explanation.float_layers, out)


def _opener(deployment: Deployment, runner: str, variant: str, threads: int | None) -> Callable[[Bundle], Runner]:
    def opened(bundle: Bundle) -> Runner:
        options = RunnerOptions(threads=threads)
        if runner == WRITTEN:
            return open_as_written(bundle, bundle.variant(variant), options)
        return deployment.open(bundle, runner, variant, options)

    return opened


def _of_bundle(deployment: Deployment, subject: Subject, verdict: Verdict, say: Say) -> Explanation:
    """Of one of the bundle's own gates."""
    say(verdict.gate)
    if verdict.gate == "recording":
        return _of_recording(subject, verdict, say)
    explainer = {"evidence": _of_evidence, "labels": _of_labels, "preprocessing": _of_preprocessing}[verdict.gate]
    stage, found = explainer(deployment, subject, verdict)
    return Explanation(
        variant=verdict.variant,
        runner=verdict.runner,
        gates=(verdict.gate,),
        stage=stage,
        stages=(
            StageResult(
                stage=stage, status="departs", measured=verdict.measured, allowed=verdict.allowed, detail=verdict.detail
            ),
        ),
        cause=found.cause,
        confirmed=found.confirmed,
        remedy=found.remedy,
    )


def _of_recording(subject: Subject, verdict: Verdict, say: Say) -> Explanation:
    """The rebuilt original against its recording, and the fp32 graph as a third witness."""
    base = subject.base
    options = RunnerOptions(threads=subject.threads)
    gates = {verdict.gate: verdict}
    found = examined(subject, base, WRITTEN, gates, lambda bundle: open_as_written(bundle, base, options), say)
    return msgspec.structs.replace(found, variant=verdict.variant, runner=verdict.runner)


def _of_evidence(_: Deployment, __: Subject, verdict: Verdict) -> tuple[Stage, PixelCause]:
    if verdict.measured.get("non_finite"):
        return "evidence", PixelCause(
            "the original itself answers NaN or infinity: nothing can be judged by it",
            "train again (a lower learning rate, gradient clipping), then export again",
            True,
        )
    if verdict.needed:
        seen = int(verdict.measured.get("pictures") or 0)
        return "evidence", PixelCause(
            f"there are {seen} different pictures that are not of one colour, {verdict.needed} are needed",
            "export with more and different held-out pictures, or check with --data",
            True,
        )
    rows = verdict.measured.get("golden_pictures")
    if rows is not None and rows < GOLDEN_NEEDED:
        return "evidence", PixelCause(
            f"there are {int(rows)} different golden inputs that are not of one colour, {GOLDEN_NEEDED} are needed: "
            "among equal ones nobody sees which row is whose",
            "export the bundle again with different pictures as its golden inputs",
            True,
        )
    return "evidence", PixelCause(
        "all held-out pictures are of one class: what happens to the others can't be seen",
        "export with held-out pictures of every class, or check with --data",
        True,
    )


def _of_labels(deployment: Deployment, _: Subject, verdict: Verdict) -> tuple[Stage, PixelCause]:
    """Which of the things that name classes, or that graphs carry, is not the manifest's."""
    bundle = deployment.bundle
    labels = bundle.manifest.labels
    if deployment.labels is not None and deployment.labels != labels:
        same = sorted(deployment.labels) == sorted(labels)
        told = "has the labels in another order" if same else "has other labels"
        moved = [
            f"{ours!r} where {theirs!r} belongs"
            for ours, theirs in zip(deployment.labels, labels, strict=False)
            if ours != theirs
        ]
        count = "" if len(deployment.labels) == len(labels) else f"{len(deployment.labels)} of them, not {len(labels)}"
        named = ", ".join(filter(None, (*moved[:FIRST], count)))
        remedy = "take the labels from the bundle's manifest (Session.labels), and keep no list beside it"
        return "labels", PixelCause(f"the application {told}: {named}", remedy, True)
    if broken := _carried(bundle, "labels"):
        remedy = "put no graph of another export into a bundle, and export again"
        return "labels", PixelCause(f"{broken}: classes are renamed or moved", remedy, True)
    moved_classes = int(verdict.measured.get("moved_classes") or 0)
    return "labels", PixelCause(
        f"{moved_classes} classes are permuted: the original's answers fit the truth with these in other places, so "
        "training numbered them otherwise than the bundle's labels do",
        "number classes in one place, sorted by name, for training and export; then export again",
        moved_classes > 0,
    )


def _carried(bundle: Bundle, about: Literal["labels", "preprocessing"]) -> str:
    """Where graphs carry something else than the manifest says."""
    graphs = {variant.file: graph_facts(bundle.read(variant.file)) for variant in bundle.manifest.variants}
    found = contradictions(bundle.manifest, graphs, about)
    return found[0] + (f", and of {len(found) - 1} more graphs" if len(found) > 1 else "") if found else ""


def _of_preprocessing(deployment: Deployment, subject: Subject, _: Verdict) -> tuple[Stage, PixelCause]:
    golden, wanted = subject.golden, deployment.bundle.manifest.preprocessing
    try:
        seen = [np.asarray(deployment.prepare(picture, wanted)) for picture in golden.encoded]
    except ImageError as error:
        return "preprocessing", PixelCause(
            f"a golden picture can't be decoded here: {error}",
            "install the Pillow that the bundle was exported with",
            True,
        )
    broken = _carried(deployment.bundle, "preprocessing")
    if broken and all(np.array_equal(ours, theirs) for ours, theirs in zip(seen, golden.prepared, strict=True)):
        remedy = "take the bundle as it was exported, or export it again"
        return "preprocessing", PixelCause(broken, remedy, True)
    return "preprocessing", pixel_cause(golden.encoded, seen, list(golden.prepared), wanted)


def explanation_table(explanations: Sequence[Explanation]) -> Table:
    """Stage by stage, the first tensors, the cause and the remedy of each."""
    rows = [row for found in explanations for row in _rows(found)]
    return Table(title="why", columns=("stage", "", "what it is"), rows=tuple(rows))


def _rows(found: Explanation) -> list[tuple[str, str, str]]:
    about = f"{found.variant} on {found.runner}" if found.runner not in ("-", found.variant) else found.variant
    named = ", ".join(found.gates) + ("" if about == "-" else f" of {about}")
    rows = [("gates", "failed", named)]
    rows += [(result.stage, result.status, _measured(result)) for result in found.stages]
    rows += [
        ("tensor", "", _departure(first.layer, first.tensor, first.max_abs, first.allowed))
        for first in [one for one in found.first if not _within(one.max_abs, one.allowed)][:FIRST]
    ]
    rows.append(("cause", "confirmed" if found.confirmed else "likely", _cause(found)))
    rows.append(("remedy", "", found.remedy))
    if found.float_layers:
        rows.append(("in float", "", ", ".join(found.float_layers)))
    return rows


def _cause(found: Explanation) -> str:
    """With the stage in front where one was shown to depart, else behind it."""
    if any(result.status == "departs" for result in found.stages):
        return f"{found.stage} ({STAGES[found.stage]}): {found.cause}"
    return f"{found.cause} (look first at {found.stage}: {STAGES[found.stage]})"


def _measured(result: StageResult) -> str:
    told = [
        f"{name.replace('_', ' ')} {_number(result.measured.get(name))} (allowed {_number(limit)})"
        for name, limit in result.allowed.items()
        if name in result.measured and (name in ("max_abs", "rms") or not _within(result.measured[name], limit))
    ]
    return "; ".join(filter(None, (", ".join(told), result.detail)))


def _within(value: float | None, limit: float) -> bool:
    return value is not None and value <= limit


def _departure(layer: str, tensor: str, largest: float | None, allowed: float) -> str:
    return f"{layer} ({tensor}): {_number(largest)} away, {_number(allowed)} is noise"


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3g}"
