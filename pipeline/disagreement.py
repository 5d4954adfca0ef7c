"""Ports and original on the evaluation slice: where they differ most, and what neither gets right."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trueport.export.written import open_as_written
from trueport.runtime.bundle import Bundle, Evaluation
from trueport.runtime.errors import TrueportError
from trueport.runtime.manifest import Variant
from trueport.runtime.runner import Runner, RunnerOptions, run_in_batches
from trueport.runtime.runners import open_runner
from trueport.runtime.runners.written import WRITTEN
from trueport.runtime.scores import sigmoid, softmax

from .wording import number, percent

NO_LABEL = "no label"
LARGEST_PX = 160
"""Pictures larger than this are shown smaller."""


@dataclass(frozen=True)
class Answer:
    """What one side says of a picture."""

    label: str
    score: str
    right: bool


@dataclass(frozen=True)
class Sample:
    """One picture of the evaluation slice with both answers."""

    index: int
    source: str
    """PNG as a data URI."""
    pixelated: bool
    label: str
    original: Answer
    port: Answer
    difference: str
    """Largest absolute difference of its logits."""
    flip: bool
    change: str
    """What a flip did: `lost`, where only the original is right, `won`, where only the port is, or neither."""


@dataclass(frozen=True, eq=False)
class Answers:
    """Both sides on the evaluation slice: logits (N, K) as float64; labels (N,), or (N, K) where there are several."""

    labels: NDArray[np.integer[Any]]
    original: NDArray[np.float64]
    port: NDArray[np.float64]

    @property
    def differences(self) -> NDArray[np.float64]:
        """(N, K), absolute; NaN where the port answers NaN."""
        return np.abs(self.port - self.original)

    @property
    def largest(self) -> NDArray[np.float64]:
        """(N,): of each picture; infinite where the port's answer is no number."""
        largest: NDArray[np.float64] = np.nan_to_num(self.differences, nan=np.inf, posinf=np.inf).max(axis=1)
        return largest

    @property
    def several(self) -> bool:
        """Whether a picture may have several labels: each is said to be there where its logit is above 0."""
        return self.labels.ndim == 2

    @property
    def flips(self) -> NDArray[np.bool_]:
        """(N,): whether the best class differs, or of several labels any."""
        if self.several:
            return np.asarray(((self.port > 0) != (self.original > 0)).any(axis=1))
        return np.asarray(self.port.argmax(1) != self.original.argmax(1))

    def right(self, logits: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(N,): whether one side's answers are true, of several labels every one."""
        if self.several:
            return np.asarray(((logits > 0) == (self.labels > 0)).all(axis=1))
        return np.asarray(logits.argmax(1) == self.labels)

    def worst(self) -> list[int]:
        """Pictures on which the two differ at all: flips first, then by the largest difference."""
        order = np.lexsort((-self.largest, ~self.flips))
        return [index for index in order.tolist() if self.largest[index] > 0]

    def both_wrong(self) -> list[int]:
        """Pictures that neither gets right, those the original is surest of first."""
        wrong = ~self.right(self.port) & ~self.right(self.original)
        if self.several:  # of a decision that is wrong
            sure = np.where((self.original > 0) != (self.labels > 0), np.abs(self.original), 0).max(axis=1)
        else:
            sure = softmax(self.original).max(axis=1)
        return [index for index in np.argsort(-sure, kind="stable").tolist() if wrong[index]]

    @property
    def lost(self) -> NDArray[np.bool_]:
        """(N,): only the original is right."""
        return np.asarray(self.right(self.original) & ~self.right(self.port))

    @property
    def won(self) -> NDArray[np.bool_]:
        """(N,): only the port is right."""
        return np.asarray(self.right(self.port) & ~self.right(self.original))

    def confusion(self) -> NDArray[np.int64]:
        """(K, K): pictures of each true class (row) by the port's answer (column); there is none of several labels."""
        return self._confusion(self.port)

    def changes(self) -> NDArray[np.int64]:
        """(K, K): the port's confusion matrix minus the original's."""
        return self._confusion(self.port) - self._confusion(self.original)

    def changed_kinds(self) -> list[tuple[tuple[int, int, int], int]]:
        """(true class, the original's answer, the port's) and how many pictures, of all flips; the most frequent first.

        There are none of several labels.
        """
        triples = zip(self.labels.tolist(), self.original.argmax(1).tolist(), self.port.argmax(1).tolist(), strict=True)
        counts = Counter(triple for triple in triples if triple[1] != triple[2])
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))

    def _confusion(self, logits: NDArray[np.float64]) -> NDArray[np.int64]:
        matrix = np.zeros((logits.shape[1],) * 2, np.int64)
        np.add.at(matrix, (self.labels, logits.argmax(1)), 1)
        return matrix


@dataclass(frozen=True, eq=False)
class Port:
    """One variant on one runner, asked for the evaluation slice."""

    variant: Variant
    runner: str
    answers: Answers | None
    why: str = ""
    """It could not be asked here; empty where it could."""

    @property
    def name(self) -> str:
        """As people read it."""
        return f"{self.variant.name} on {self.runner}"


def asked_port(bundle: Bundle, evaluation: Evaluation, runner: str, variant: Variant) -> Port:
    """Ask one port; what it can't answer, or why it can't be opened here, is told and not raised."""
    try:
        return Port(variant, runner, answers_of_both(bundle, evaluation, runner, variant.name))
    except TrueportError as error:
        return Port(variant, runner, None, str(error))
    except Exception as error:  # noqa: BLE001 — a library's own, of a graph that it opens and can't run
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Port(variant, runner, None, f"it can't answer: {why}")


def answers_of_both(bundle: Bundle, evaluation: Evaluation, runner: str, variant: str) -> Answers:
    """Ask the port anew; the original's answers are those that were recorded.

    runner: also `written`. Raises as `open_runner` does, and ValueError for logits of another shape.
    """
    opened = _opened(bundle, runner, variant)
    try:
        port = _answered(opened, evaluation.images)
    finally:
        opened.close()
    if port.shape != evaluation.logits.shape:
        raise ValueError(f"expected logits {list(evaluation.logits.shape)}, found {list(port.shape)}")
    return Answers(evaluation.labels, evaluation.logits.astype(np.float64), port.astype(np.float64))


def _opened(bundle: Bundle, runner: str, variant: str) -> Runner:
    if runner == WRITTEN:
        return open_as_written(bundle, bundle.variant(variant), RunnerOptions())
    return open_runner(bundle, runner, variant)


def _answered(runner: Runner, images: NDArray[np.uint8]) -> NDArray[Any]:
    """In batches; one by one where those are refused."""
    try:
        return run_in_batches(runner, images)
    except Exception:  # noqa: BLE001 — whatever the library raises; what it raises for single rows is told
        return run_in_batches(runner, images, 1)


def samples(
    indices: Iterable[int], answers: Answers, images: NDArray[np.uint8], labels: Sequence[str]
) -> Iterator[Sample]:
    """These pictures of the slice, ready to be shown."""
    flips, lost, won = answers.flips, answers.lost, answers.won
    for index in indices:
        pixels, truth = images[index], answers.labels[index]
        yield Sample(
            index=index,
            source=data_uri(pixels),
            pixelated=max(pixels.shape[:2]) < LARGEST_PX,
            label=label_names(truth, labels),
            original=_answer(answers.original[index], truth, labels),
            port=_answer(answers.port[index], truth, labels),
            difference=number(float(answers.largest[index])),
            flip=bool(flips[index]),
            change="lost" if lost[index] else "won" if won[index] else "",
        )


def label_names(truth: NDArray[np.integer[Any]] | np.integer[Any], labels: Sequence[str]) -> str:
    """Of a picture's class, or of its row of 0 and 1 for each label."""
    if not truth.ndim:
        return labels[int(truth)]
    return ", ".join(labels[index] for index in np.flatnonzero(truth).tolist()) or NO_LABEL


def _answer(
    logits: NDArray[np.float64], truth: NDArray[np.integer[Any]] | np.integer[Any], labels: Sequence[str]
) -> Answer:
    if not truth.ndim:
        best = int(logits.argmax())
        return Answer(labels[best], percent(float(softmax(logits)[best])), best == truth)
    said, scores = logits > 0, sigmoid(logits)
    told = ", ".join(percent(float(score)) for score in scores[said]) or f"at most {percent(float(scores.max()))}"
    return Answer(label_names(said.astype(np.uint8), labels), told, bool((said == truth).all()))


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """uint8 (H, W, C) as a PNG to put into a page, no side above `LARGEST_PX`."""
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((LARGEST_PX, LARGEST_PX))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
