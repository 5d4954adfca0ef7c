"""Why a variant on a runner did not pass: chain, first stage, first tensors, cause, remedy, layers to keep in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace

from trueport.runtime import comparison
from trueport.runtime.bundle import Bundle
from trueport.runtime.explanation import Explanation
from trueport.runtime.manifest import Variant
from trueport.runtime.runner import Runner, run_in_batches
from trueport.runtime.verdict import Verdict

from .chain import opened_chain
from .findings import Finding, Trial
from .stages import departing_stage, found_in
from .subject import Subject

Say = Callable[[str], None]


def examined(
    subject: Subject,
    variant: Variant,
    runner: str,
    gates: Mapping[str, Verdict],
    opened: Callable[[Bundle], Runner],
    say: Say = lambda _: None,
) -> Explanation:
    """What the gates of one variant on one runner failed by.

    gates: by name, those that failed or are undecided. opened: the runner on trial, for this bundle or another one in
    its place.
    """
    batches = "batch invariance" in gates
    with opened_chain(subject, variant, runner, lambda: opened(subject.bundle), batches=batches, say=say) as chain:
        stage = departing_stage(subject, variant, chain, set(gates))
        trial = Trial(subject, variant, runner, chain, gates, opened, say)
        few = chain.departing is None and all(verdict.status == "undecided" for verdict in gates.values())
        finding = _too_few(gates) if few else found_in(trial, stage)
        if variant.precision == "int8" and stage in {"precision", "runner"} and _lost_some(gates):
            finding = _with_float_layers(trial, finding)
        return Explanation(
            variant=variant.name,
            runner=runner,
            gates=tuple(gates),
            stage=stage,
            stages=chain.results,
            first=finding.first,
            cause=finding.cause,
            confirmed=finding.confirmed,
            remedy=finding.remedy,
            float_layers=finding.float_layers,
        )


def _lost_some(gates: Mapping[str, Verdict]) -> bool:
    """Whether accuracy is in doubt for predictions that were lost, which layers in float may bring back."""
    return "accuracy" in gates and gates["accuracy"].measured.get("drop_points") != 0


def _too_few(gates: Mapping[str, Verdict]) -> Finding:
    verdict = next(iter(gates.values()))
    needed = f"about {verdict.needed:,} would do" if verdict.needed else "no number of the same kind would do"
    return Finding(
        f"no stage departs beyond its bounds, and the samples are too few to tell whether accuracy is lost: {needed}",
        "check with more labelled pictures (`trueport check --data DATA`), or export with a larger evaluation slice",
        True,
    )


def _with_float_layers(trial: Trial, finding: Finding) -> Finding:
    """The finding, with the fewest layers to keep in float where some make accuracy pass."""
    if trial.subject.no_onnx:
        return finding
    from .cut import bundle_of
    from .float_layers import fewest, layer_names, ranked

    subject, variant = trial.subject, trial.variant
    graph, floats = subject.graph(variant), subject.graph(subject.base)
    evaluation, task = subject.evaluation, subject.bundle.manifest.task
    judge = comparison.accuracy if task == "classification" else comparison.decisions
    names = {"variant": variant.name, "runner": trial.runner}

    def passes(candidate: object) -> bool:
        trial.say(f"{variant.name} on {trial.runner}: which layers have to stay in float")
        with bundle_of(subject.bundle, variant, candidate) as other, closing(trial.reopened(other)) as runner:  # type: ignore[arg-type]
            logits = run_in_batches(runner, evaluation.images)
        return bool(judge(logits, evaluation.logits, evaluation.labels, variant.bounds, **names))

    order = [name for name, _ in ranked(graph, floats, subject.images[:32])]
    try:
        nodes = fewest(graph, floats, order, passes)
    except Exception as error:  # noqa: BLE001 — an application's runner need not take another graph
        trial.say(f"{trial.runner} does not take layers in float: {error}")
        return finding
    if not nodes:
        return finding
    layers = layer_names(graph, nodes)
    told = f"keep {', '.join(layers)} in float: accuracy then passes here (`trueport check --explain --rebuild OUT`)"
    remedy = f"{finding.remedy}; or {told}" if finding.confirmed else told
    return replace(finding, float_layers=layers, remedy=remedy)
