"""Why a variant on a runner did not pass: chain, first stage, first tensors, cause, remedy, layers to keep in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace

from trueport.runtime import comparison
from trueport.runtime.bundle import Bundle
from trueport.runtime.explanation import Explanation, Stage
from trueport.runtime.manifest import Variant
from trueport.runtime.runner import Runner, run_in_batches
from trueport.runtime.verdict import Verdict

from .chain import opened_chain
from .findings import Finding, Trial
from .inputs import choose_inputs
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
    say(f"{variant.name} on {runner}: inputs")
    choose_inputs(subject, _judged(subject, gates, opened))
    with opened_chain(subject, variant, runner, lambda: opened(subject.bundle), batches=batches, say=say) as chain:
        stage = departing_stage(subject, variant, chain, set(gates))
        trial = Trial(subject, variant, runner, chain, gates, opened, say)
        finding = _found(trial, stage)
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


def _judged(subject: Subject, gates: Mapping[str, Verdict], opened: Callable[[Bundle], Runner]) -> Callable[[], Runner]:
    """What the gates are about: the runner on trial, or the rebuilt original where that is not what was recorded."""

    def judged() -> Runner:
        if "recording" not in gates or subject.original is None:
            return opened(subject.bundle)
        from ..original import OriginalRunner

        return OriginalRunner(subject.original, subject.threads)

    return judged


def _found(trial: Trial, stage: Stage) -> Finding:
    """What the stage departs by; where none does, what was shown all the same, or that nothing was."""
    chain, gates = trial.chain, trial.gates
    if chain.departing is not None or "contract" in gates:
        return found_in(trial, stage)
    if all(verdict.status == "undecided" for verdict in gates.values()):
        return _too_few(gates)
    finding = found_in(trial, stage)
    lost = "accuracy" in gates and (chain.result(stage).measured.get("drop_points") or 0) > 0
    return finding if finding.confirmed or lost else _nowhere(len(trial.subject.images))


def _nowhere(inputs: int) -> Finding:
    return Finding(
        f"no stage departs beyond its bounds on the {inputs} inputs that were looked at: several may add up to it, or "
        "it shows on other pictures",
        "see which of the stages add most, and export with the pictures that it shows on in the evaluation slice",
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
