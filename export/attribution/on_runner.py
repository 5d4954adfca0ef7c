"""Why a runner does not answer what its graph says: what is around it, what it computes in, which graph it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trueport.runtime.explanation import Departure, Stage

from .chain import Answer, answer_of, answered, close_to, distance
from .experiments import LESS, Case
from .findings import Finding, Trial, case_of, images_of, known_mistake, share

if TYPE_CHECKING:
    import onnx

Opened = Callable[["onnx.ModelProto", int | None], contextlib.AbstractContextManager[Answer]]
"""A stage, for another graph in the variant's place that has so many logits; None: as many as before."""
SATURATED_LEFT = 0.25
"""Of the difference, with weights in 7 bits, at the most."""
UNRELATED = 0.5
"""Correlation with the right logits below which the answers are those of another model."""


def runner_finding(trial: Trial, stage: Stage) -> Finding:
    """What the runner does with a graph that is right as it is written."""
    case = case_of(trial.chain, stage, trial.subject.images)
    if "contract" in trial.gates:
        told = f"the runner is not what was asked for: {trial.gates['contract'].detail}"
        return Finding(
            told, "install what the runner needs (`trueport doctor`), or name the runner that really runs", True
        )
    finding = _late(trial, stage) or _unsteady(trial, stage)
    if finding is None and case is not None:
        finding = _other_precision(trial)
        if finding is None and (mistake := known_mistake(trial, stage, case)) is not None:
            finding = Finding(mistake.cause, mistake.remedy, True)
        finding = finding or _by_place(trial, case) or _saturates(trial, case)
        finding = finding or _by_rounding(trial, case) or _other_graph(trial, case)
    finding = finding or Finding(
        f"{trial.runner} computes otherwise than the graph is written, from the first tensor told here on",
        "try other options of the runner or another version of it, or run the variant on another runner",
    )
    return replace(finding, first=finding.first or bisected(trial, stage, _on_runner(trial)))


def _unsteady(trial: Trial, stage: Stage) -> Finding | None:
    result = trial.chain.result(stage)
    repeated = result.measured.get("repeated", 0.0)
    if repeated is not None and repeated <= result.allowed.get("repeated", 0.0):
        return None
    return Finding(
        "the runner answers the same input otherwise each time: something random, or other rows",
        "look for shared buffers and for dropout in what runs around the graph",
    )


def _other_precision(trial: Trial) -> Finding | None:
    """An int8 or 16-bit variant that answers what fp32 does."""
    base, port = trial.chain.link("onnx"), trial.chain.link("runner")
    if trial.variant.name == trial.subject.base.name or not close_to(
        port.logits, base.logits, trial.subject.base.bounds.max_abs
    ):
        return None
    return Finding(
        f"the runner computes {trial.variant.name} in fp32: its answers are the fp32 graph's",
        "run it where that precision is computed, or deploy fp32",
        True,
    )


def _saturates(trial: Trial, case: Case) -> Finding | None:
    """Sums of two products of 8 bits that don't fit 16: weights in 7 bits mend it."""
    if trial.variant.precision != "int8" or trial.subject.no_onnx:
        return None
    from .integers import halved, saturating
    from .tensors import graph_answers

    graph = trial.subject.graph(trial.variant)
    layers = saturating(graph)
    if not layers or _unrelated(case):
        return None
    mended = halved(graph)
    try:
        with _on_runner(trial)(mended, None) as answer:
            left = distance(answer(case.images), graph_answers(mended, case.images))["max_abs"]
    except Exception as error:  # noqa: BLE001 — an application's runner need not take another graph
        trial.say(f"{trial.runner} does not take weights in 7 bits: {error}")
        left = float("inf")
    confirmed = left <= max(case.allowed, SATURATED_LEFT * distance(case.found, case.expected)["max_abs"])
    told = f"with weights in 7 bits {trial.runner} answers what is written; " if confirmed else ""
    return Finding(
        f"sums of 8-bit products saturate at 16 bits, as on CPUs without VNNI; {told}{len(layers)} layers can, first "
        f"{layers[0]}",
        "export int8 with export.int8.reduce_range = true, or run it on a CPU with VNNI",
        confirmed,
    )


def _late(trial: Trial, stage: Stage) -> Finding | None:
    """Answers that belong to the batch before."""
    link, images = trial.chain.link(stage), trial.subject.images
    answer, expected, count = link.answer, trial.chain.before(stage).logits, min(4, len(images) // 2)
    if answer is None or expected is None or link.refused:
        return None
    answer(images[:count])
    found = answer(images[count : 2 * count])
    limit = trial.variant.bounds.max_abs
    if close_to(found, expected[count : 2 * count], limit) or not close_to(found, expected[:count], limit):
        return None
    return Finding(
        "each answer is the one to the batch before: a buffer is read before it is written",
        "wait for the device before the answer is read (synchronise the stream), and share no buffers between requests",
        True,
    )


def _by_place(trial: Trial, case: Case) -> Finding | None:
    """Rows of a batch that are wrong by their place, while the others are right."""
    link, images = trial.chain.link("runner"), trial.subject.images[:32]
    answer, expected = link.answer, trial.chain.before("runner").logits
    if answer is None or expected is None or link.refused:
        return None
    with np.errstate(invalid="ignore"):
        away = np.abs(answer(images).astype(np.float64) - expected[: len(images)]).max(axis=1)
    wrong = np.flatnonzero(~(away <= case.allowed))
    alone = answered(answer, images[wrong[:4]], 1) if len(wrong) else expected[:0]
    if not 0 < len(wrong) < len(images) or not close_to(alone, expected[wrong[:4]], case.allowed):
        return None
    places = f"places {wrong[0]} to {wrong[-1]}" if len(wrong) > 1 else f"place {wrong[0]}"
    return Finding(
        f"rows at {places} of a batch of {len(images)} are answered wrongly, and rightly alone: a buffer or a kernel "
        "is made for fewer rows",
        "build for the largest batch that is asked (`trueport build`), or serve smaller batches",
        True,
    )


def _by_rounding(trial: Trial, case: Case) -> Finding | None:
    """Denormals taken for zero, or products of fewer bits, made with the graph as it is written."""
    if trial.subject.no_onnx:
        return None
    from .rounding import flushed, with_rounded_weights
    from .tensors import graph_answers

    graph = trial.subject.graph(trial.variant)
    before = distance(case.found, case.expected)["max_abs"]

    def explains(other: onnx.ModelProto | None) -> bool:
        if other is None:
            return False
        left = distance(case.found, graph_answers(other, case.images))["max_abs"]
        return left <= case.allowed and left <= LESS * before

    if explains(flushed(graph, case.images)):
        return Finding(
            "denormal numbers are flushed to zero: the graph as it is written answers the same once they are",
            "leave denormals on (no fast-math flags, session.set_denormal_as_zero=0), or scale such small weights",
            True,
        )
    for name, bits in (("bfloat16", 7), ("TF32 or float16", 10)):
        rounded = with_rounded_weights(graph, bits)
        if explains(rounded):
            return Finding(
                f"float32 is computed in {name}: with its weights rounded to that, the graph answers the same",
                "ask the runner for float32 (no TF32, no bf16 inference hint), or deploy a variant of that precision",
                True,
            )
    return None


def _other_graph(trial: Trial, case: Case) -> Finding | None:
    """A runner that answers the same whatever graph it is given."""
    if trial.subject.no_onnx:
        return None
    from .rounding import doubled

    told = "the runner answers the same whatever graph is in the bundle: it runs another one, as of an engine's cache"
    try:
        with _on_runner(trial)(doubled(trial.subject.graph(trial.variant)), None) as answer:
            deaf = close_to(answer(case.images), case.found, case.allowed)
    except Exception as error:  # noqa: BLE001 — an application's runner need not take another graph
        trial.say(f"{trial.runner} does not take another graph: {error}")
        deaf = False
    if not deaf and not _unrelated(case):
        return None
    return Finding(
        told if deaf else "the answers have nothing to do with this graph's: those of another model",
        "empty its caches, build engines anew from this very bundle (`trueport build`), and check which file is loaded",
        deaf,
    )


def _unrelated(case: Case) -> bool:
    if not np.isfinite(case.found).all() or case.found.std() == 0 or case.expected.std() == 0:
        return False
    return float(np.corrcoef(case.found.ravel(), case.expected.ravel())[0, 1]) < UNRELATED


def _on_runner(trial: Trial) -> Opened:
    @contextlib.contextmanager
    def opened(graph: onnx.ModelProto, outputs: int | None) -> Iterator[Answer]:
        from .cut import bundle_of

        with (
            bundle_of(trial.subject.bundle, trial.variant, graph, outputs) as other,
            contextlib.closing(trial.reopened(other)) as runner,
        ):
            yield answer_of(runner)

    return opened


def bisected(
    trial: Trial,
    stage: Stage,
    opened: Opened,
) -> tuple[Departure, ...]:
    """The first tensors that a stage makes otherwise than the graph as it is written."""
    case = case_of(trial.chain, stage, trial.subject.images)
    if case is None or trial.subject.no_onnx:
        return ()
    from .cut import first_beyond
    from .tensors import graph_tensors

    subject = trial.subject
    graph = subject.graph(trial.variant if stage == "runner" else subject.base)
    images = images_of(case)
    try:
        expected = graph_tensors(graph, images)
        return first_beyond(graph, images, expected, share(trial.chain.link(stage), case.expected), opened)
    except Exception as error:  # noqa: BLE001 — an application's runner need not take another graph
        trial.say(f"{trial.runner} can't be asked for single tensors: {error}")
        return ()
