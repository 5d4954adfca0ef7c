"""The gates of `check`: each asks one question of a bundle or of a variant on a runner, and answers with a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trueport.runtime import comparison
from trueport.runtime.bundle import Bundle, Evaluation, Golden
from trueport.runtime.comparison import Logits
from trueport.runtime.errors import BundleError, ImageError, MissingError, PrecisionError
from trueport.runtime.evidence import evidence, labels
from trueport.runtime.graph_facts import GraphFacts, contradictions, graph_facts, opset_changed
from trueport.runtime.manifest import Manifest, Variant
from trueport.runtime.runner import Runner, run_in_batches
from trueport.runtime.runners import RUNNERS
from trueport.runtime.runners.reached import is_reached, shown
from trueport.runtime.verdict import Verdict, judged

from .deployment import Deployment

OPENING = "opening"
"""The gate that is not run where a runner does not take a variant: nothing behind it was run either."""
CONTRACT, PARITY, INVARIANCE, ACCURACY = "contract", "parity", "batch invariance", "accuracy"
BATCHES = (1, 2, 7, 32)
"""Alone, the smallest batch, an odd one, and as many as the batcher takes at most by default."""
Infer = Callable[[NDArray[np.uint8]], Logits]


@dataclass(frozen=True, eq=False)
class Answers:
    """Logits on the golden and on the evaluation inputs."""

    source: str
    """`original`, `recording` or `port`."""
    golden: Logits
    evaluation: Logits

    @property
    def all(self) -> Logits:
        """(N, K), the golden ones first."""
        return np.concatenate([self.golden, self.evaluation])


def bundle_gates(
    deployment: Deployment, graphs: Mapping[str, GraphFacts], golden: Golden, evaluation: Evaluation
) -> list[Verdict]:
    """What is asked of the bundle and the application, whoever runs the graphs. graphs: as `carried_facts` has them."""
    manifest = deployment.bundle.manifest
    return [
        evidence(manifest, golden, evaluation),
        labels(manifest, graphs, evaluation, deployment.labels),
        _preprocessing(deployment, golden, contradictions(manifest, graphs, "preprocessing")),
    ]


def carried_facts(bundle: Bundle) -> dict[str, GraphFacts]:
    """What each graph says of itself, by file; nothing where it can't be read, which its contract tells."""
    facts = {}
    for variant in bundle.manifest.variants:
        try:
            facts[variant.file] = graph_facts(bundle.read(variant.file))
        except BundleError:
            facts[variant.file] = GraphFacts()
    return facts


def _preprocessing(deployment: Deployment, golden: Golden, broken: list[str]) -> Verdict:
    manifest = deployment.bundle.manifest
    if broken:
        measured, allowed = {"contradictions": float(len(broken))}, {"contradictions": 0.0}
        return judged("preprocessing", "-", "-", measured, allowed, "; ".join(broken))
    try:
        prepared = [np.asarray(deployment.prepare(one, manifest.preprocessing)) for one in golden.encoded]
    except ImageError as error:
        detail = f"a golden picture can't be decoded by this Pillow: {error}"
        return judged("preprocessing", "-", "-", {"undecodable": 1.0}, {"undecodable": 0.0}, detail)
    for pixels in prepared:
        if pixels.shape != manifest.preprocessing.shape or pixels.dtype != np.uint8:
            detail = (
                f"expected pixels as uint8 {list(manifest.preprocessing.shape)}, "
                f"preprocessing makes {pixels.dtype} {list(pixels.shape)}"
            )
            return judged("preprocessing", "-", "-", {"other_shape": 1.0}, {"other_shape": 0.0}, detail)
    return comparison.preprocessing_identity(prepared, golden.prepared)


def failed_opening(variant: Variant, runner: str, why: str) -> Verdict:
    """The contract's verdict where a graph can't even be opened."""
    return judged(CONTRACT, variant.name, runner, {"broken": 1.0}, {"broken": 0.0}, why)


def port_gates(
    manifest: Manifest,
    variant: Variant,
    facts: GraphFacts,
    runner: Runner,
    asked: str,
    reference: Answers,
    golden: Golden,
    evaluation: Evaluation,
) -> list[Verdict]:
    """Everything that is asked of one variant on an opened runner. asked: the runner's name as it was asked for.

    What it raises while it runs is a verdict, as are answers of another shape and batches in another precision; what
    else the machine lacks passes through.
    """
    port = _Port(manifest, variant, runner, asked)
    return [port.contract(facts), *port.judged(reference, golden, evaluation)]


def answer_gates(
    manifest: Manifest, variant: Variant, runner: Runner, reference: Answers, golden: Golden, evaluation: Evaluation
) -> list[Verdict]:
    """Parity, batch invariance and accuracy alone."""
    return _Port(manifest, variant, runner, runner.report().name).judged(reference, golden, evaluation)


class _Port:
    def __init__(self, manifest: Manifest, variant: Variant, runner: Runner, asked: str) -> None:
        self._manifest, self._variant, self._runner = manifest, variant, runner
        self._report = runner.report()
        self._names = {"variant": variant.name, "runner": asked}

    def contract(self, facts: GraphFacts) -> Verdict:
        """Whether tensors, provider, precision and what the graph carries are what was asked for."""
        report, variant, name = self._report, self._variant, self._names["runner"]
        expected = RUNNERS[name].provider if name in RUNNERS else report.provider
        broken = [
            f"expected the {kind} {stated}, found {found}"
            for kind, stated, found in (
                ("inputs", self._manifest.inputs, self._runner.inputs),
                ("outputs", self._manifest.outputs, self._runner.outputs),
            )
            if tuple(found) != stated
        ]
        broken += contradictions(self._manifest, {variant.file: facts}, "normalisation")
        broken += filter(None, [opset_changed(facts)])
        if report.provider != expected:
            broken.append(f"expected {name} to run on {expected}, it runs on {report.provider}")
        if report.layers and not is_reached(variant, report.layers):
            broken.append(
                f"expected {variant.name} to be computed in {variant.precision}, found {shown(report.layers)}"
            )
        detail = "; ".join(broken) or (
            report.provider
            + (f", {report.threads} thread{'s' if report.threads != 1 else ''}" if report.threads else "")
            + (f", {shown(report.layers)}" if report.layers else "")
        )
        return judged(
            CONTRACT, **self._names, measured={"broken": float(len(broken))}, allowed={"broken": 0.0}, detail=detail
        )

    def judged(self, reference: Answers, golden: Golden, evaluation: Evaluation) -> list[Verdict]:
        """Parity, batch invariance and accuracy; where not even single rows are answered, parity alone."""
        try:
            port, alone = self._answers(golden.images, evaluation.images)
        except PrecisionError as error:
            return [self._unanswered(PARITY, error)]
        except MissingError:
            raise
        except Exception as error:  # noqa: BLE001 — a library's or an application's own: whatever it is, it is no answer
            return [self._unanswered(PARITY, error)]
        bounds, task = self._variant.bounds, self._manifest.task
        inputs = f"{len(golden.images)} golden and {len(evaluation.images)} evaluation inputs"
        computed = f"; {shown(self._report.layers)}" if self._report.layers else ""
        one_by_one = f", one by one: {alone}" if alone else ""
        judge = comparison.accuracy if task == "classification" else comparison.decisions
        return [
            comparison.parity(
                port.all,
                reference.all,
                bounds,
                detail=f"logits on {inputs} against the {reference.source}{computed}{one_by_one}",
                task=task,
                **self._names,
            ),
            self._invariance(golden.images),
            judge(port.evaluation, reference.evaluation, evaluation.labels, bounds, **self._names),
        ]

    def _invariance(self, images: NDArray[np.uint8]) -> Verdict:
        try:
            return comparison.batch_invariance(self._infer, images, self._variant.bounds, BATCHES, **self._names)
        except PrecisionError as error:
            return self._unanswered(INVARIANCE, error)
        except MissingError:
            raise
        except Exception as error:  # noqa: BLE001 — as above
            return self._unanswered(INVARIANCE, error)

    def _answers(self, golden: NDArray[np.uint8], evaluation: NDArray[np.uint8]) -> tuple[Answers, str]:
        """In batches; where those are refused, one by one and why."""
        try:
            return self._in_batches(golden, evaluation, 32), ""
        except MissingError:
            raise
        except Exception as error:  # noqa: BLE001 — as above
            return self._in_batches(golden, evaluation, 1), f"batches of 32 are refused, {_first_line(error)}"

    def _in_batches(self, golden: NDArray[np.uint8], evaluation: NDArray[np.uint8], batch: int) -> Answers:
        answers = Answers("port", *(run_in_batches(self._runner, images, batch) for images in (golden, evaluation)))
        for logits, images in ((answers.golden, golden), (answers.evaluation, evaluation)):
            expected = (len(images), len(self._manifest.labels))
            if logits.shape != expected:
                raise ValueError(f"expected logits {list(expected)}, found {list(logits.shape)}")
        return answers

    def _infer(self, images: NDArray[np.uint8]) -> Logits:
        return self._runner.run({self._runner.inputs[0].name: images})[self._runner.outputs[0].name]

    def _unanswered(self, gate: str, error: Exception) -> Verdict:
        detail = f"the runner can't answer: {_first_line(error)}"
        return judged(gate, **self._names, measured={"errors": 1.0}, allowed={"errors": 0.0}, detail=detail)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def recording_gate(bundle: Bundle, rebuilt: Answers, recorded: Answers, runner: str) -> Verdict:
    """Whether the original rebuilt here is the one that was recorded."""
    difference = np.abs(rebuilt.all.astype(np.float64) - recorded.all)
    detail = f"the original against its recording, {len(difference)} inputs"
    measured = {"max_abs": float(difference.max()), "noise_max_abs": bundle.variant().bounds.noise_max_abs}
    return judged("recording", "original", runner, measured, {"max_abs": bundle.variant().bounds.max_abs}, detail)
