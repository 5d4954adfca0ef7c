"""What the report says of each port: how close its numbers are, what it answers otherwise, which pictures show that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trueport.runtime.bundle import Bundle, Evaluation

from . import fidelity_plots, plots
from .bench import BenchReport
from .check import CheckReport
from .disagreement import Answers, Port, asked_port, samples
from .evaluation import judged
from .gates import OPENING

SHOWN = 10
"""Most pictures, and most kinds of confusion, in each list."""


def asked_ports(
    bundle: Bundle,
    evaluation: Evaluation,
    check: CheckReport,
    bench: BenchReport | None,
    progress: Callable[[str], None],
) -> list[Port]:
    """Those that were timed or judged, the timed one first."""
    variants = {variant.name: variant for variant in bundle.manifest.variants}
    judged_ones = [
        (verdict.variant, verdict.runner)
        for verdict in check.verdicts
        if verdict.gate != OPENING and verdict.variant in variants
    ]
    timed = [(bench.variant, bench.port.name)] if bench is not None else []
    ports = []
    for variant, runner in dict.fromkeys([*timed, *judged_ones]):
        progress(f"{variant} on {runner}")
        ports.append(asked_port(bundle, evaluation, runner, bundle.variant(variant)))
    return ports


def closeness(port: Port, index: int) -> dict[str, Any]:
    """How close a port is, and its histogram."""
    view = {"name": port.name, "variant": port.variant, "bounds": port.variant.bounds, "why": port.why}
    if port.answers is None:
        return {**view, "answers": None}
    differences, bounds = port.answers.differences, port.variant.bounds
    finite = differences[np.isfinite(differences)]
    drawn = bool((finite > 0).any())
    return {
        **view,
        "answers": port.answers,
        "largest": float(port.answers.largest.max()),
        "rms": float(np.sqrt(np.mean(differences**2))),
        "equal": float(np.mean(differences == 0)),
        "broken": int(np.sum(~np.isfinite(differences))),
        "flips": int(port.answers.flips.sum()),
        "lost": int(port.answers.lost.sum()),
        "won": int(port.answers.won.sum()),
        "svg": fidelity_plots.differences_svg(differences, bounds, f"differences{index}") if drawn else None,
    }


def main_port(port: Port, bundle: Bundle) -> dict[str, Any]:
    """The port that the page's figures of accuracy are of."""
    answers = port.answers
    if answers is None:
        return {}
    right = answers.right(answers.port)
    return {
        "name": port.name,
        "variant": port.variant,
        "file": bundle.manifest.files[port.variant.file],
        "accuracy": float(np.mean(right)),
        "original_accuracy": float(np.mean(answers.right(answers.original))),
        "wrong": int(np.sum(~right)),
        "flips": int(answers.flips.sum()),
        "largest": float(answers.largest.max()),
        "judged": judged(answers.port, answers.labels, bundle.manifest.labels),
    }


def confusions(answers: Answers, labels: Sequence[str]) -> dict[str, Any] | None:
    """The port's confusions; None of several labels."""
    if answers.several:
        return None
    matrix = answers.confusion()
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN]
    pairs = [(int(index) // len(labels), int(index) % len(labels)) for index in order]
    return {
        "svg": plots.confusion_svg(matrix, labels),
        "pairs": [
            (labels[true], labels[answer], int(wrong[true, answer]), int(matrix[true].sum()))
            for true, answer in pairs
            if wrong[true, answer]
        ],
        "kinds": int(np.count_nonzero(wrong)),
    }


def changes(port: Port, index: int, labels: Sequence[str]) -> dict[str, Any] | None:
    """What a port answers otherwise than the original, by kind; None where that is nothing, or of several labels."""
    answers = port.answers
    if answers is None or answers.several or not answers.flips.any():
        return None
    kinds, cells = answers.changed_kinds(), answers.changes()
    classes = max(int(np.any(cells, axis=axis).sum()) for axis in (0, 1))
    drawn = 0 < classes <= plots.COUNTED_CLASSES
    return {
        "name": port.name,
        "svg": fidelity_plots.changes_svg(cells, labels, f"changes{index}") if drawn else None,
        "classes": classes,
        "kinds": [
            (labels[true], labels[before], labels[after], pictures, _change(true, before, after))
            for (true, before, after), pictures in kinds[:SHOWN]
        ],
        "all": len(kinds),
    }


def _change(true: int, before: int, after: int) -> str:
    return "lost" if true == before else "won" if true == after else "wrong in both"


def pictures(ports: Sequence[Port], main: Port | None, evaluation: Evaluation, labels: Sequence[str]) -> list[Any]:
    """Of the main port the pictures that differ most, of the others those that got another answer."""
    lists = []
    for port in ports:
        if port.answers is None:
            continue
        worst, flips = port.answers.worst(), int(port.answers.flips.sum())
        chosen = worst[:SHOWN] if port is main else worst[: min(flips, SHOWN)]
        if chosen or port is main:
            shown_ones = list(samples(chosen, port.answers, evaluation.images, labels))
            lists.append({"name": port.name, "flips": flips, "samples": shown_ones, "main": port is main})
    return lists


def both_wrong(main: Port | None, evaluation: Evaluation, labels: Sequence[str]) -> dict[str, Any]:
    """Pictures that neither the main port nor the original gets right."""
    answers = main.answers if main else None
    if answers is None:
        return {"count": 0, "samples": []}
    wrong = answers.both_wrong()
    return {"count": len(wrong), "samples": list(samples(wrong[:SHOWN], answers, evaluation.images, labels))}
