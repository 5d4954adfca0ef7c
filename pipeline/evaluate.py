"""evaluate: how good are the answers, of a run's original or of a bundle's port, on any labelled pictures?

Pictures are prepared in threads while the batch before them runs, and only a few batches are held at a time: data may
be larger than memory. Labels of data and model are matched by name, never by position.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import ImageError, UsageError
from trueport.runtime.machine import available_cores, describe_machine
from trueport.runtime.manifest import MANIFEST, Preprocessing, Task
from trueport.runtime.preprocessing import prepare
from trueport.runtime.runner import Runner, RunnerOptions
from trueport.runtime.runners import DEFAULT, open_runner

from .data import Dataset, open_dataset, split
from .data.dataset import Indices, displayed, shortened
from .evaluation import EvaluationReport, judged
from .progress import Lines, Progress
from .recipe import DataSection
from .run_folder import RUN, Run

Wanted = Literal["test", "validation", "train", "all"]
SLICE = "evaluation slice"
BATCH = 32
AHEAD = 3
"""Batches that are prepared while one runs."""
Pixels = NDArray[np.uint8]


def evaluate(
    path: Path,
    *,
    data: str | None = None,
    part: Wanted | None = None,
    variant: str | None = None,
    runner: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Ask a run's original, or a bundle's port, about labelled pictures, and judge the answers.

    data: as `open_dataset` takes it; None: a run's own, a bundle's evaluation slice.
    part: None: test, of the data that the model was trained on and of data with a test part of its own; else all.
    variant, runner: of a bundle; None: its first, and the default.
    Raises UsageError where path, part or labels don't fit, BundleError and MissingError as `open_runner` does.
    """
    subject = _subject(path, variant, runner, threads)
    with closing(subject.runner), progress or nullcontext(Lines(io.StringIO())) as shown:
        sample = subject.sample(data, part, shown)
        begun = time.perf_counter()
        answers = _answers(subject, sample, shown)
        seconds = time.perf_counter() - begun
        return _report(subject, sample, answers, seconds)


def labelled_pictures(bundle: Bundle, data: str) -> tuple[NDArray[np.uint8], NDArray[np.integer[Any]]]:
    """Prepared pictures (N, H, W, C), and their true labels.

    Of the data that the model was trained on its test part, of other data a test part of its own, or all of it.

    Raises UsageError where labels don't fit, ImageError for a picture that can't be decoded.
    """
    subject = _subject(bundle.path, None, None, None)
    with closing(subject.runner):
        sample = subject.sample(data, None, Lines(io.StringIO()))
    pictures = []
    for start, batch in _batches(sample):
        for row, pixels in enumerate(batch):
            if isinstance(pixels, ImageError):
                raise ImageError(f"{sample.names(start + row)}: {pixels}")
            pictures.append(pixels)
    if not pictures:
        raise UsageError(f"there is no picture in {sample.data} ({sample.part})")
    return np.stack(pictures), sample.truth


@dataclass(frozen=True, eq=False)
class _Sample:
    """Pictures to be asked about."""

    data: str
    part: str
    truth: NDArray[np.integer[Any]]
    """(N,) or (N, K), in the model's own order of labels."""
    names: Callable[[int], str]
    prepared: Callable[[int], Pixels]
    """Raises ImageError."""


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is asked, how its labels are called, and what it was trained on."""

    name: str
    title: str
    task: Task
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    runner: Runner
    source: Run | Bundle

    def sample(self, data: str | None, part: Wanted | None, progress: Progress) -> _Sample:
        """The pictures that were asked for."""
        if data is not None:
            dataset = open_dataset(data)
            self._places(dataset)  # before all of it is read
            part, indices = self._part(dataset, part, progress)
        elif isinstance(self.source, Run):
            dataset, parts = self.source.data()
            part = part or "test"
            indices = np.arange(len(dataset)) if part == "all" else vars(parts)[part]
        elif part in (None, "test"):
            return _slice(self.source)
        else:
            raise UsageError(f"{self.name} holds pictures of its test part alone: give --data for its part {part}")
        return _Sample(
            data=dataset.name,
            part=part,
            truth=self._truth(dataset, indices),
            names=lambda row: displayed(dataset.ids[int(indices[row])]),
            prepared=lambda row: prepare(dataset.source(int(indices[row])), self.preprocessing),
        )

    def _part(self, dataset: Dataset, part: Wanted | None, progress: Progress) -> tuple[Wanted, Indices]:
        """Of the data that it was trained on the part that its recipe made; of other data one that it has itself."""
        if part == "all":
            return part, np.arange(len(dataset))
        progress.begin("compare with the training data", len(dataset))
        if dataset.fingerprinted(progress.advance) == self._trained_on[0]:
            section = _data_section(self.source)
            parts = split(dataset, section.validation, section.test, section.seed)
            if parts.fingerprint != self._trained_on[1]:
                raise UsageError(f"the split of {dataset.name} is not the one {self.name} was trained on: train again")
            return part or "test", vars(parts)[part or "test"]
        own = np.array([(part or "test") == its for its in dataset.parts])
        if own.any():
            return part or "test", np.flatnonzero(own)
        if part is None:
            return "all", np.arange(len(dataset))
        raise UsageError(
            f"{dataset.name} has no part {part} of its own and is not what {self.name} was trained on: leave --part out"
        )

    @property
    def _trained_on(self) -> tuple[str, str]:
        """Fingerprints of data and split."""
        origin = self.source.info if isinstance(self.source, Run) else self.source.manifest.provenance
        return origin.data_sha256, origin.split_sha256

    def _places(self, dataset: Dataset) -> Indices:
        """Where the model has each class of the data. Raises UsageError for classes that it does not know."""
        if dataset.task != self.task:
            found, expected = ("several labels", "one") if self.task == "classification" else ("one label", "several")
            raise UsageError(f"{dataset.name} has {found} a picture, {self.name} answers with {expected}")
        if unknown := [name for name in dataset.classes if name not in self.labels]:
            raise UsageError(
                f"{dataset.name} has the classes {shortened(unknown)}, which {self.name} does not know "
                f"(it knows {shortened(self.labels)}): give the folders or columns the names of its labels"
            )
        return np.array([self.labels.index(name) for name in dataset.classes], np.int64)

    def _truth(self, dataset: Dataset, indices: Indices) -> NDArray[np.integer[Any]]:
        """The labels in the model's own order. Raises as `_places` does."""
        place, labels = self._places(dataset), dataset.labels[indices]
        if self.task == "classification":
            return place[labels]
        truth = np.zeros((len(indices), len(self.labels)), np.uint8)
        truth[:, place] = labels
        return truth


def _subject(path: Path, variant: str | None, runner: str | None, threads: int | None) -> _Subject:
    if (path / MANIFEST).is_file():
        bundle = Bundle.open(path)
        opened = open_runner(bundle, runner or DEFAULT, variant, RunnerOptions(threads=threads))
        manifest, title = bundle.manifest, f"{bundle.variant(variant).name} on {opened.report().name}"
        return _Subject(
            manifest.name, title, manifest.task, manifest.labels, manifest.preprocessing, opened, source=bundle
        )
    if not (path / RUN).is_file():
        raise UsageError(f"{path} is neither a bundle nor a finished run: it has no {MANIFEST} and no {RUN}")
    if asked := [name for name, value in (("variant", variant), ("runner", runner)) if value is not None]:
        raise UsageError(f"{path} is a run, which is the original alone: --{asked[0]} goes with a bundle")
    run = Run.open(path)
    original = run.original()
    from trueport.export.original import OriginalRunner

    info, recipe = run.info, run.recipe()
    return _Subject(
        recipe.name, "original", info.task, info.labels, info.preprocessing, OriginalRunner(original, threads), run
    )


def _data_section(source: Run | Bundle) -> DataSection:
    if isinstance(source, Run):
        return source.recipe().data
    try:
        return msgspec.convert(source.manifest.provenance.recipe.get("data", {}), DataSection)
    except msgspec.ValidationError as error:
        raise UsageError(f"the recipe in {source.path} is of another trueport ({error}): give --part all") from error


def _slice(bundle: Bundle) -> _Sample:
    evaluation = bundle.evaluation()
    return _Sample(
        data=bundle.manifest.provenance.data,
        part=SLICE,
        truth=evaluation.labels,
        names=lambda row: f"picture {row} of the {SLICE}",
        prepared=lambda row: evaluation.images[row],
    )


@dataclass(frozen=True, eq=False)
class _Answers:
    """Logits (N, K) of the pictures that could be decoded, the rows of the sample that these are, and the others."""

    logits: NDArray[np.floating[Any]]
    rows: Indices
    unreadable: tuple[str, ...]


def _answers(subject: _Subject, sample: _Sample, progress: Progress) -> _Answers:
    image, output = subject.runner.inputs[0].name, subject.runner.outputs[0].name
    logits: list[NDArray[np.floating[Any]]] = []
    rows: list[int] = []
    unreadable: list[str] = []
    progress.begin("evaluate", len(sample.truth))
    for start, batch in _batches(sample):
        readable = {start + row: pixels for row, pixels in enumerate(batch) if not isinstance(pixels, ImageError)}
        unreadable += [
            f"{sample.names(start + row)}: {pixels}"
            for row, pixels in enumerate(batch)
            if isinstance(pixels, ImageError)
        ]
        if readable:
            logits.append(subject.runner.run({image: np.stack(list(readable.values()))})[output])
            rows += readable
        progress.advance(len(batch))
    if not logits:
        told = f", the first is {unreadable[0]}" if unreadable else ""
        raise UsageError(f"there is no picture to evaluate in {sample.data} ({sample.part}){told}")
    return _Answers(np.concatenate(logits), np.array(rows), tuple(unreadable))


def _batches(sample: _Sample) -> Iterator[tuple[int, list[Pixels | ImageError]]]:
    """Row of the first, and the pictures, prepared ahead in threads: Pillow frees the interpreter while it works."""

    def attempt(row: int) -> Pixels | ImageError:
        try:
            return sample.prepared(row)
        except ImageError as error:
            return error

    count = len(sample.truth)
    pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="trueport-decode")
    try:
        waiting: deque[tuple[int, list[Future[Pixels | ImageError]]]] = deque()
        for start in range(0, count + AHEAD * BATCH, BATCH):
            if start < count:
                waiting.append((start, [pool.submit(attempt, row) for row in range(start, min(start + BATCH, count))]))
            if len(waiting) > AHEAD or (waiting and start >= count):
                first, batch = waiting.popleft()
                yield first, [picture.result() for picture in batch]
    finally:
        pool.shutdown(cancel_futures=True)


def _report(subject: _Subject, sample: _Sample, answers: _Answers, seconds: float) -> EvaluationReport:
    return EvaluationReport(
        name=subject.name,
        task=subject.task,
        subject=subject.title,
        data=sample.data,
        part=sample.part,
        unreadable=answers.unreadable,
        seconds=seconds,
        images_per_s=len(answers.rows) / seconds,
        runner=subject.runner.report(),
        machine=describe_machine(),
        **judged(answers.logits, sample.truth[answers.rows], subject.labels),
    )
