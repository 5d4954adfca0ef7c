"""Training: recipe in, run folder out; resumable to the same numbers after an interruption at any point.

Every random choice is derived from (seed, epoch, sample) and none from what ran before, so that a checkpoint needs no
generator's state and an interrupted epoch is repeated as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from trueport.runtime.errors import UsageError, missing_extra

from . import run_folder
from .data import open_dataset, prepared
from .data.dataset import Indices, shortened
from .progress import Progress, open_progress
from .recipe import Recipe
from .run_folder import EpochMetrics, Run, RunInfo

try:
    import torch

    from .checkpoint import Checkpoint, decode_checkpoint
    from .feed import Feed
    from .training.adaptation import adapt
    from .training.distributed import Processes, joined
    from .training.epoch import AfterStep, diverged, learn_epoch
    from .training.evaluation import Labelled, Measured, evaluate
    from .training.job import Job, found, new_job
    from .training.learner import Learner, new_learner, restore, scored
    from .training.records import Records, finished
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "torch", "train", "training") from error

if TYPE_CHECKING:
    from rich.console import Console


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = True,
    replace: bool = False,
    console: Console | None = None,
    after_step: AfterStep | None = None,
) -> RunInfo:
    """Train by a recipe into the run folder `out`, or go on with what is there; a finished run is answered as it is.

    resume: False starts afresh, in place of a run that may be there. replace: start afresh where the run that is there
    is of another setup, which otherwise is refused. A run is discarded when the first epoch of the new one is complete.
    console: None shows progress on standard error.
    Where torchrun or accelerate has started several processes they train together; the first one alone writes.
    Raises UsageError for data, recipe or folder that don't fit and where another training is writing the folder,
    MissingError for an absent device or package, and KeyboardInterrupt as it comes: the last complete epoch is kept.
    """
    out = Path(out)
    with joined(recipe.train.device) as processes, ExitStack() as held:

        def claim() -> bytes:
            run_folder.refuse_foreign(out)
            held.enter_context(run_folder.locked(out))
            return _told(found(job, out, replace) if resume else None, recipe, out)

        if processes.first:
            run_folder.refuse_foreign(out)  # before the data is read, which may take long
        job = new_job(recipe, open_dataset(recipe.data.source), processes.count)
        there = _heard(processes.from_first(claim), out)
        if isinstance(there, RunInfo):
            with _progress(processes, console) as progress:
                told = "is trained already; --afresh does it again" if there.epochs else "holds these weights already"
                progress.say(f"{out} {told}")
            return there
        with torch.random.fork_rng(), _progress(processes, console) as progress:
            for note in job.notes:
                progress.say(note)
            learner = _learner(job, processes, there, out)
            return _train(learner, out, progress, after_step)


def _told(there: Run | Checkpoint | None, recipe: Recipe, out: Path) -> bytes:
    """What was found, as the first process tells the others, who may not see its disk."""
    if there is None:
        return b""
    if isinstance(there, Run):
        return b"r" + msgspec.json.encode(run_folder.refreshed(there, recipe).info)
    return b"c" + (out / run_folder.LAST).read_bytes()


def _heard(told: bytes, out: Path) -> RunInfo | Checkpoint | None:
    if told[:1] == b"r":
        return msgspec.json.decode(told[1:], type=RunInfo)
    return decode_checkpoint(told[1:], out / run_folder.LAST) if told else None


def _progress(processes: Processes, console: Console | None) -> Progress:
    if not processes.first:
        from rich.console import Console

        console = Console(quiet=True)
    return open_progress(console)


def _learner(job: Job, processes: Processes, checkpoint: Checkpoint | None, out: Path) -> Learner:
    """Fresh, or as the checkpoint left it."""
    if checkpoint is None and job.recipe.train.epochs:
        adapt(job)
    learner = new_learner(job, processes)
    if checkpoint is not None:
        restore(learner, checkpoint, out / run_folder.LAST)
    return learner


def _train(learner: Learner, out: Path, progress: Progress, after_step: AfterStep | None) -> RunInfo:
    try:
        with ExitStack() as opened:
            pictures = _pictures(learner, out, progress, opened)
            _learn(learner, pictures, out, progress, after_step)
            return _finish(learner, pictures, out)
    except (RuntimeError, ValueError) as error:
        if (explained := _explained(error, learner)) is not None:
            raise explained from error
        raise
    except KeyboardInterrupt:
        if done := learner.state.epoch:
            kept = f"{done} of {learner.job.recipe.train.epochs} epochs are kept in {out}"
        else:
            kept = f"no epoch was complete, {out} is left as it was"
        progress.say(f"interrupted: {kept}; train again to go on")
        raise


@dataclass(frozen=True)
class _Pictures:
    train: Feed | None
    """None where no epoch is asked for."""
    validation: Labelled
    test: Labelled


def _pictures(learner: Learner, out: Path, progress: Progress, opened: ExitStack) -> _Pictures:
    """All three parts, so that a broken picture is found before the first epoch."""
    job, processes = learner.job, learner.processes
    recipe, dataset = job.recipe, job.dataset
    if ignored := dataset.ignored:
        progress.say(f"passed over, as they are no pictures: {shortened(ignored)}")
    progress.begin(f"preparing {dataset.name}", len(dataset))

    def part(indices: Indices) -> Labelled:
        own = indices[processes.rank :: processes.count]
        images = prepared(dataset, own, job.original.preprocessing, progress.advance, scratch=out)
        return Labelled(torch.from_numpy(images), torch.from_numpy(dataset.labels[own]))

    feed = None
    if recipe.train.epochs:
        feed = Feed(
            dataset,
            job.parts.train,
            job.original.preprocessing,
            recipe.augment,
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            classes=len(dataset.classes),
            workers=recipe.train.workers,
            rank=processes.rank,
            world=processes.count,
            progress=progress.advance,
            scratch=out,
        )
        opened.callback(feed.close)
    return _Pictures(feed, part(job.parts.validation), part(job.parts.test))


def _learn(learner: Learner, pictures: _Pictures, out: Path, progress: Progress, after_step: AfterStep | None) -> None:
    section, first = learner.job.recipe.train, learner.state.epoch + 1
    with Records(learner, out, progress) as records:
        if pictures.train is None:
            _take_as_it_is(learner, pictures.validation, records)
            return
        count = len(pictures.train)
        epochs = f"{section.epochs} epoch{'s' * (section.epochs > 1)} of {count:,}"
        progress.begin(f"training {learner.job.original.arch}, {epochs}", count * section.epochs, count * (first - 1))
        for epoch in range(first, section.epochs + 1):
            if _is_patience_over(learner):
                progress.say(
                    f"stopped after epoch {epoch - 1}: none was better than epoch {learner.state.best_epoch} "
                    f"for {section.patience} epochs"
                )
                break
            metrics = _epoch(learner, epoch, pictures.train, pictures.validation, progress, after_step)
            if learner.processes.first:
                records.keep(metrics)
            progress.report(_line(learner, metrics), last=epoch == section.epochs or _is_patience_over(learner))


def _epoch(
    learner: Learner,
    epoch: int,
    feed: Feed,
    validation: Labelled,
    progress: Progress,
    after_step: AfterStep | None,
) -> EpochMetrics:
    """Train, validate, and move the learner's state on."""
    started = time.perf_counter()
    learnt = learn_epoch(learner, feed, epoch, progress, after_step)
    measured = _validated(learner, validation, epoch)
    metrics = EpochMetrics(
        epoch=epoch,
        learning_rate=learnt.learning_rate,
        train_loss=learnt.loss,
        validation_loss=measured.loss,
        validation_score=measured.score,
        seconds=time.perf_counter() - started,
        images_per_s=learnt.images_per_s,
    )
    learner.state = scored(learner.state, epoch, measured.score, measured.loss, metrics.seconds)
    return metrics


def _take_as_it_is(learner: Learner, validation: Labelled, records: Records) -> None:
    measured = _validated(learner, validation, 0)
    learner.state = scored(learner.state, 0, measured.score, measured.loss, 0.0)
    if learner.processes.first:
        records.keep_initial()


def _validated(learner: Learner, validation: Labelled, epoch: int) -> Measured:
    learner.processes.spread(learner.measured)  # statistics of batch norms are each process's own
    measured = evaluate(learner.measured, validation, learner.loss, learner.processes)
    if not math.isfinite(measured.loss):
        raise diverged(measured.loss, epoch, learner.job.recipe.train.learning_rate)
    return measured


def _is_patience_over(learner: Learner) -> bool:
    state, patience = learner.state, learner.job.recipe.train.patience
    return 0 < patience <= state.epoch - state.best_epoch


def _finish(learner: Learner, pictures: _Pictures, out: Path) -> RunInfo:
    """Measure the best weights on the held-out test pictures and mark the run as finished."""
    original, processes, weights = learner.job.original, learner.processes, out / run_folder.WEIGHTS
    if processes.first:
        run_folder.load_weights(original.module, run_folder.read_tensors(weights), weights, original.labels)
    processes.spread(learner.served)
    tested = evaluate(learner.served, pictures.test, learner.loss, processes)

    def write() -> bytes:
        info = finished(learner, tested, weights)
        run_folder.write_recipe(out / run_folder.RECIPE, learner.job.recipe)
        run_folder.write_info(out / run_folder.RUN, info)
        return msgspec.json.encode(info)

    return msgspec.json.decode(processes.from_first(write), type=RunInfo)


def _explained(error: Exception, learner: Learner) -> UsageError | None:
    """What a user can do about an error of torch's; None where it is no user's."""
    size, text = learner.job.recipe.train.batch_size, str(error)
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        device = learner.processes.device
        return UsageError(f"{device} has too little memory for batches of {size}: lower train.batch_size")
    if "Expected more than 1 value per channel" in text:
        return UsageError(f"batch norm can't learn from batches of {size} picture: raise train.batch_size")
    return None


def _line(learner: Learner, metrics: EpochMetrics) -> str:
    metric = run_folder.METRIC[learner.job.original.task]
    return (
        f"epoch {metrics.epoch}/{learner.job.recipe.train.epochs}  loss {metrics.train_loss:.4f}  "
        f"validation {metrics.validation_loss:.4f}  {metric} {metrics.validation_score:.2%}  "
        f"{metrics.images_per_s:,.0f} images/s"
    )
