"""Why a stage departs, one function a stage: the first tensors, the cause by experiment, and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from trueport.runtime.bundle import WEIGHTS
from trueport.runtime.errors import TrueportError
from trueport.runtime.explanation import STAGES, Stage
from trueport.runtime.graph_facts import contradictions, graph_facts, opset_changed
from trueport.runtime.machine import installed_versions
from trueport.runtime.manifest import TensorSpec, Variant
from trueport.runtime.runner import RunnerOptions

from ..written import open_as_written
from .chain import Chain, close_to, lost_most
from .exported_stage import exported_finding
from .findings import Finding, Trial
from .graphs import graph_finding
from .on_runner import runner_finding
from .optimised_stage import optimised_finding
from .subject import Subject


def found_in(trial: Trial, stage: Stage) -> Finding:
    """What a stage departs by."""
    if stage == "evidence":
        return _of_evidence(trial, stage)
    link = trial.chain.link(stage)
    unexplained = trial.chain.result(stage).status == "agrees" or link.logits is None
    if unexplained and stage == contradicted_stage(trial.subject, trial.variant):
        return _contradicting(trial)
    if link.logits is None and link.refused:
        return _refused(trial, stage, link.refused)
    finding = _FINDERS[stage](trial, stage)
    if link.refused and not finding.confirmed:
        first = finding.first
        finding = replace(_refused(trial, stage, link.refused), first=first)
    return finding


def _refused(trial: Trial, stage: Stage, refused: str) -> Finding:
    """It can't be opened, or can't answer."""
    link = trial.chain.link(stage)
    if link.logits is not None and stage == "runner":
        told = f"{trial.runner} refuses batches that the graph takes, and answers single rows: {refused}"
        return Finding(told, "build for the largest batch that is asked (`trueport build`), or serve single rows", True)
    if link.logits is not None:
        told = f"a number of rows is frozen inside: single rows are answered, batches are refused ({refused})"
        return Finding(
            told, "use the batch axis of the input, not a number, in every view and reshape; export again", True
        )
    variant = trial.variant if stage == "precision" else trial.subject.base
    if stage in {"onnx", "precision"} and (told := _shapes(trial, variant)):
        return Finding(told, "export the bundle again, in eval mode and with a symbolic batch axis", True)
    return Finding(f"it can't be opened or can't answer: {refused}", "export the bundle again with this trueport", True)


def _shapes(trial: Trial, variant: Variant) -> str:
    """What the graph's inputs and outputs are that the manifest's are not."""
    manifest = trial.subject.bundle.manifest
    try:
        runner = open_as_written(trial.subject.bundle, variant, RunnerOptions(threads=trial.subject.threads))
    except TrueportError:
        return ""  # the reason is told already
    with contextlib.closing(runner):
        if len(runner.outputs) > len(manifest.outputs):
            names = ", ".join(spec.name for spec in runner.outputs)
            return f"the graph has {len(runner.outputs)} outputs ({names}): auxiliary heads were exported too"
        for spec, stated in zip((*runner.inputs, *runner.outputs), (*manifest.inputs, *manifest.outputs), strict=False):
            if spec.shape and spec.shape[0] != -1:
                return f"the batch axis of {spec.name} is frozen to {spec.shape[0]}"
            if spec != stated:
                return f"expected {_shown(stated)}, the graph has {_shown(spec)}"
    return ""


def _shown(spec: TensorSpec) -> str:
    return f"{spec.name} as {spec.dtype} {list(spec.shape)}"


def _of_original(trial: Trial, _: Stage) -> Finding:
    """The rebuilt original is not the one that was recorded."""
    subject = trial.subject
    provenance = subject.bundle.manifest.provenance
    if subject.brought:
        return Finding(
            "the original that the application brought does not answer what was recorded at the export",
            "judge the module that was exported, in eval mode and without its own normalisation, or export this one",
        )
    if subject.bundle.manifest.files[WEIGHTS].sha256 != provenance.weights_sha256:
        return Finding(
            f"{WEIGHTS} is not the file that was exported: its hash is not that of the provenance",
            f"put back the {WEIGHTS} of the export, or export the bundle again",
            True,
        )
    here = installed_versions()
    changed = [
        f"{name} {there}, here {here.get(name, 'none')}"
        for name, there in sorted(provenance.versions.items())
        if here.get(name) != there
    ]
    told = f"the code of {provenance.arch} or a library behaves otherwise than at export, the weights are the same"
    more = f" (exported with {', '.join(changed)})" if changed else ""
    return Finding(told + more, "install the versions of the export, or check what changed and export again")


def _other_recording(subject: Subject, chain: Chain) -> bool:
    """Whether the weights are those of the export, and original and fp32 graph agree against the recording."""
    manifest = subject.bundle.manifest
    same = WEIGHTS in manifest.files and manifest.files[WEIGHTS].sha256 == manifest.provenance.weights_sha256
    original, graph = chain.link("original").logits, chain.link("onnx").logits
    allowed = subject.base.bounds.max_abs
    return same and close_to(original, graph, allowed) and not close_to(graph, subject.recorded, allowed)


def _of_evidence(_: Trial, __: Stage) -> Finding:
    return Finding(
        "the recorded answers are another model's: original and fp32 graph agree with each other, and not with them",
        "put back the golden.npz and evaluation.npz of the export, or export the bundle again",
        True,
    )


def _of_graph(trial: Trial, stage: Stage) -> Finding:
    return graph_finding(trial, stage, trial.subject.base)


def _of_precision(trial: Trial, stage: Stage) -> Finding:
    if trial.variant.precision != "int8" or trial.subject.no_onnx:
        return graph_finding(trial, stage, trial.variant)
    from .int8_stage import int8_finding

    return int8_finding(trial, stage)


_FINDERS: dict[Stage, Callable[[Trial, Stage], Finding]] = {
    "original": _of_original,
    "export": exported_finding,
    "onnx": _of_graph,
    "optimised": optimised_finding,
    "precision": _of_precision,
    "runner": runner_finding,
}


def departing_stage(subject: Subject, variant: Variant, chain: Chain, gates: set[str]) -> Stage:
    """The first stage that departs; where none does by itself, the one that adds most to what the gate measured."""
    order = list(STAGES)
    if chain.departing == "original" and _other_recording(subject, chain):
        return "evidence"
    stages = {contradicted_stage(subject, variant), chain.departing} if "contract" in gates else {chain.departing}
    if found := [stage for stage in stages if stage is not None]:
        return min(found, key=order.index)
    last: Stage = next(link.stage for link in reversed(chain.links) if not link.missing)
    if "contract" in gates:
        return last
    return lost_most(chain.results, "drop_points" if gates == {"accuracy"} else "max_abs") or last


def contradicted_stage(subject: Subject, variant: Variant) -> Stage | None:
    """The stage of the variant's graph, where that says of itself what it is not; None where it does not."""
    if not _contradiction(subject, variant):
        return None
    return "onnx" if variant.name == subject.base.name else "precision"


def _contradiction(subject: Subject, variant: Variant) -> str:
    facts = graph_facts(subject.bundle.read(variant.file))
    carried = contradictions(subject.bundle.manifest, {variant.file: facts}, "normalisation")
    return "; ".join(filter(None, (opset_changed(facts), *carried)))


def _contradicting(trial: Trial) -> Finding:
    return Finding(
        f"{trial.variant.file} is not the file that was exported: {_contradiction(trial.subject, trial.variant)}",
        "export the bundle again, with export.opset where another is needed: a conversion may change what nodes mean",
        True,
    )
