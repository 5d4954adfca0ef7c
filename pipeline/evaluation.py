"""What an evaluation finds out: answers beside the truth become numbers, and these become a report people can read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import UsageError, missing_extra
from trueport.runtime.machine import Machine
from trueport.runtime.manifest import Task
from trueport.runtime.runner import RunnerReport
from trueport.runtime.scores import scores_from_logits

from . import metrics
from .console import Table
from .data.dataset import shortened
from .metrics import Means

SHOWN_CLASSES = 30
"""Most rows of the printed table: the worst; JSON has all."""
SHOWN_CONFUSIONS = 10
PLOT_SUFFIXES = (".png", ".svg", ".pdf")

Logits = NDArray[np.floating[Any]]
Truth = NDArray[np.integer[Any]]
"""Classes (N,), or 0 and 1 for each label (N, K)."""


class ClassResult(msgspec.Struct, frozen=True, kw_only=True):
    """Of one class or label; None where the sample says nothing about it."""

    label: str
    support: int
    """Pictures of it."""
    precision: float | None
    """None: never answered."""
    recall: float | None
    """None: no picture of it."""
    f1: float | None
    average_precision: float | None = None
    """Of a label among several."""


class MeanResult(msgspec.Struct, frozen=True, kw_only=True):
    """Means over classes; see `metrics.ClassMetrics`."""

    precision: float | None
    recall: float | None
    f1: float | None


class Confusion(msgspec.Struct, frozen=True, kw_only=True):
    """How often one class is taken for another."""

    label: str
    answer: str
    count: int
    support: int
    """Pictures of the true class."""


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True):
    """All of one evaluation; shares from 0 to 1, None where there is nothing to take a share of."""

    name: str
    task: Task
    subject: str
    """The variant and its runner, or the original."""
    data: str
    part: str
    count: int
    """Pictures evaluated."""
    unreadable: tuple[str, ...]
    """Pictures that could not be decoded, and why; they count nowhere."""
    unseen: tuple[str, ...]
    """Labels of the model that no picture has."""
    non_finite: int
    """Pictures answered with NaN or infinity, counted as wrong."""
    top1: float | None = None
    top5: float | None = None
    """None for five classes and fewer."""
    exact_match: float | None = None
    """Several labels a picture: share of pictures that are right in every one."""
    decision_accuracy: float | None = None
    """Several labels a picture: share of single decisions that are right."""
    mean_average_precision: float | None = None
    """Several labels a picture: over the labels that some picture has."""
    macro: MeanResult
    weighted: MeanResult
    micro: MeanResult | None = None
    """Several labels a picture: over all decisions."""
    calibration_error: float | None
    """Expected, in 15 bins of equal width."""
    classes: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...] = ()
    """True classes are rows, answers columns; empty for several labels a picture."""
    seconds: float
    """All of it: decoding, preparing, running."""
    images_per_s: float
    runner: RunnerReport
    machine: Machine

    def confusions(self, most: int = SHOWN_CONFUSIONS) -> tuple[Confusion, ...]:
        """The most frequent ones, largest count first."""
        matrix = np.array(self.confusion, np.int64).reshape(len(self.confusion), len(self.confusion))
        wrong = matrix - np.diag(np.diag(matrix))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        cells = [divmod(int(cell), len(matrix)) for cell in order]
        return tuple(
            Confusion(
                label=self.classes[true].label,
                answer=self.classes[answer].label,
                count=int(wrong[true, answer]),
                support=self.classes[true].support,
            )
            for true, answer in cells
            if wrong[true, answer]
        )


def judged(logits: Logits, truth: Truth, labels: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a report that follow from answers and truth alone; a row that is not finite is wrong."""
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    logits = np.where(finite, logits.astype(np.float64), np.nan)
    support = _support(truth, len(labels))
    return {
        "count": len(truth),
        "unseen": tuple(label for label, times in zip(labels, support, strict=True) if not times),
        "non_finite": int(np.sum(~finite)),
        **(_judged_classes if truth.ndim == 1 else _judged_labels)(logits, truth, labels),
    }


def _support(truth: Truth, labels: int) -> NDArray[np.int64]:
    return np.bincount(truth, minlength=labels) if truth.ndim == 1 else truth.sum(axis=0, dtype=np.int64)


def _judged_classes(logits: Logits, truth: Truth, labels: tuple[str, ...]) -> dict[str, Any]:
    scores = scores_from_logits(logits, "classification")
    matrix = metrics.confusion_matrix(logits, truth)
    found = metrics.class_metrics(matrix, _support(truth, len(labels)))
    right = metrics.ranks(logits, truth) == 0
    return {
        "top1": float(np.mean(right)),
        "top5": metrics.top_k_accuracy(logits, truth, 5) if len(labels) > 5 else None,
        "macro": _means(found.macro),
        "weighted": _means(found.weighted),
        "calibration_error": _known(metrics.reliability(scores.max(axis=1), right).error),
        "classes": _classes(found, labels),
        "confusion": tuple(map(tuple, matrix.tolist())),
    }


def _judged_labels(logits: Logits, truth: Truth, labels: tuple[str, ...]) -> dict[str, Any]:
    scores = scores_from_logits(logits, "multilabel")
    found = metrics.label_metrics(logits, truth, 0.0)  # a logit above 0 is a probability above a half
    return {
        "exact_match": metrics.exact_match(logits, truth, 0.0),
        "decision_accuracy": metrics.decision_accuracy(logits, truth, 0.0),
        "mean_average_precision": _known(metrics.mean_average_precision(logits, truth)),
        "macro": _means(found.macro),
        "weighted": _means(found.weighted),
        "micro": _means(found.micro),
        "calibration_error": _known(metrics.reliability(scores.ravel(), truth.ravel()).error),
        "classes": _classes(found, labels, metrics.average_precision(logits, truth)),
    }


def _classes(
    found: metrics.ClassMetrics, labels: tuple[str, ...], average_precision: metrics.Values | None = None
) -> tuple[ClassResult, ...]:
    precision, recall, f1 = found.precision, found.recall, found.f1
    return tuple(
        ClassResult(
            label=label,
            support=int(found.support[index]),
            precision=_known(precision[index]),
            recall=_known(recall[index]),
            f1=_known(f1[index]),
            average_precision=None if average_precision is None else _known(average_precision[index]),
        )
        for index, label in enumerate(labels)
    )


def _means(means: Means) -> MeanResult:
    return MeanResult(precision=_known(means.precision), recall=_known(means.recall), f1=_known(means.f1))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def evaluation_tables(report: EvaluationReport) -> tuple[Table, ...]:
    """What people read: a summary, the classes, and what is taken for what."""
    tables = [_summary(report), _class_table(report)]
    if confusions := report.confusions():
        rows = tuple((it.label, it.answer, f"{it.count:,}", f"{it.support:,}") for it in confusions)
        tables.append(Table("Most frequent confusions", ("true class", "answer", "pictures", "of the class"), rows))
    return tuple(tables)


def _summary(report: EvaluationReport) -> Table:
    if report.task == "classification":
        rows = [("top-1", share(report.top1))] + ([("top-5", share(report.top5))] if report.top5 is not None else [])
    else:
        rows = [
            ("mAP", share(report.mean_average_precision)),
            ("all labels right", f"{share(report.exact_match)} of the pictures"),
            ("decisions right", share(report.decision_accuracy)),
        ]
    for name, means in (("macro", report.macro), ("micro", report.micro)):
        if means:
            told = f"precision {share(means.precision)}, recall {share(means.recall)}, F1 {share(means.f1)}"
            rows.append((name, told))
    rows.append(("calibration error", share(report.calibration_error)))
    rows.append(("time", f"{report.seconds:.2f} s, {report.images_per_s:,.0f} images/s"))
    notes = []
    if report.unseen:
        notes.append(f"labels that no picture here has: {shortened(report.unseen)}")
    if report.non_finite:
        notes.append(f"answered with NaN or infinity, which counts as wrong: {_pictures(report.non_finite)}")
    if report.unreadable:
        notes.append(f"left out, as they can't be decoded: {_pictures(len(report.unreadable))}")
    if report.part == "all":
        notes.append("of all pictures: some that the model was trained on may be among them")
    return Table(_title(report), ("", ""), tuple(rows), tuple(notes))


def _pictures(count: int) -> str:
    return f"{count:,} picture{'s' * (count != 1)}"


def _title(report: EvaluationReport) -> str:
    return f"{report.name}, {report.subject}: {_pictures(report.count)} of {report.data} ({report.part})"


def _class_table(report: EvaluationReport) -> Table:
    """All classes in their order; of many, those of lowest F1."""
    classes, count, several = report.classes, len(report.classes), report.task == "multilabel"
    title = "Labels" if several else "Classes"
    if count > SHOWN_CLASSES:
        classes = tuple(sorted(classes, key=lambda it: math.inf if it.f1 is None else it.f1))[:SHOWN_CLASSES]
        title += f": the {SHOWN_CLASSES} of lowest F1 of {count:,}, --json has all"
    columns = ("label" if several else "class", "pictures", "precision", "recall", "F1", *(["AP"] if several else []))
    rows = tuple(
        (
            it.label,
            f"{it.support:,}",
            *map(share, (it.precision, it.recall, it.f1, *([it.average_precision] if several else []))),
        )
        for it in classes
    )
    return Table(title, columns, rows)


def share(value: float | None) -> str:
    """In percent; what the sample says nothing about is none."""
    return "none" if value is None else f"{value:.2%}"


def refuse_plot(file: Path) -> None:
    """Raise UsageError for a suffix that is no format of a plot, MissingError without matplotlib."""
    if file.suffix.lower() not in PLOT_SUFFIXES:
        raise UsageError(f"expected a plot as {', '.join(PLOT_SUFFIXES)}, found {file}: give one of these suffixes")
    try:
        import matplotlib as _  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "train", "a plot") from error


def draw_confusion(report: EvaluationReport, file: Path) -> None:
    """Put the confusion matrix at `file`; its suffix says which format.

    Raises as `refuse_plot` does, and UsageError where pictures have several labels.
    """
    refuse_plot(file)
    if not report.confusion:
        raise UsageError(f"{report.name} answers with several labels a picture, of which there is no confusion matrix")
    from .plots import confusion_file

    matrix = np.array(report.confusion, np.int64)
    confusion_file(file, matrix, [it.label for it in report.classes], _title(report))
