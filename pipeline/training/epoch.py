"""One epoch: every training picture once, a step for each batch or group of batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from trueport.runtime.errors import UsageError

from ..feed import Batch, Feed
from ..progress import Progress
from .learner import Learner
from .schedules import learning_rate

SECONDS_BETWEEN_NOTES = 0.2
"""Reading the loss waits for a GPU, and a bar is not read any faster."""

AfterStep = Callable[[int, int], None]
"""Called with the epoch and the step in it, both from 1, when the weights have been changed."""


class Learnt(NamedTuple):
    """What an epoch of training amounted to, over all processes."""

    loss: float
    """Mean over the augmented pictures while the weights were changing; auxiliary classifiers are not counted."""
    learning_rate: float
    """At the last step."""
    images_per_s: float


def learn_epoch(
    learner: Learner, feed: Feed, epoch: int, progress: Progress, after_step: AfterStep | None = None
) -> Learnt:
    """Go through the training part once. Raises UsageError where the loss is no number any more."""
    section, processes, started = learner.job.recipe.train, learner.processes, time.perf_counter()
    learner.begin_epoch(epoch)
    watch = _Watch(learner, epoch, progress)
    steps, step = math.ceil(feed.batches / section.accumulate), 0
    for batch, rows, last in grouped(feed, epoch, section.batch_size * processes.count, section.accumulate):
        summed = learner.step.add(batch, rows, last)
        if last:
            step += 1
            take_step(learner, (epoch - 1) * steps + step, steps)
        watch.saw(summed, batch)
        if last and after_step is not None:
            after_step(epoch, step)
    loss = watch.finish(len(feed))
    rate = learning_rate(section, epoch * steps, steps)
    return Learnt(loss, rate, len(feed) / (time.perf_counter() - started))


def take_step(learner: Learner, step: int, steps_per_epoch: int) -> None:
    """Change the weights, and their average, by what was added up; step: of the whole training, from 1."""
    learner.step.take(learning_rate(learner.job.recipe.train, step, steps_per_epoch))
    if learner.average is not None:
        learner.average.update(step)


def grouped(feed: Feed, epoch: int, batch_rows: int, accumulate: int) -> Iterator[tuple[Batch, int, bool]]:
    """Each batch with the rows of the step that it is part of, and whether it is the last of that step.

    batch_rows: of a full batch, over all processes.
    """
    rows_left, rows = len(feed), 0
    for number, batch in enumerate(feed.epoch(epoch), start=1):
        if (number - 1) % accumulate == 0:
            rows = min(rows_left, batch_rows * accumulate)
            rows_left -= rows
        yield batch, rows, number % accumulate == 0 or number == feed.batches


class _Watch:
    """Adds up losses, and shows them now and then."""

    def __init__(self, learner: Learner, epoch: int, progress: Progress) -> None:
        self._learner, self._epoch, self._progress = learner, epoch, progress
        self._total = torch.zeros((), dtype=torch.float64, device=learner.processes.device)
        self._own = self._unshown = 0
        self._due = 0.0

    def saw(self, loss: torch.Tensor, batch: Batch) -> None:
        """Count a batch of this summed loss."""
        self._total += loss
        self._own += len(batch.images) if batch.weight else 0
        self._unshown += batch.total
        now = time.perf_counter()
        if now >= self._due:
            self._due = now + SECONDS_BETWEEN_NOTES
            self._progress.advance(self._unshown, self._note())
            self._unshown = 0

    def finish(self, rows: int) -> float:
        """The mean over the rows of all processes."""
        self._progress.advance(self._unshown)
        return self._checked(self._learner.processes.add(self._total).item() / rows)

    def _note(self) -> str:
        state, epochs = self._learner.state, self._learner.job.recipe.train.epochs
        loss = self._checked(self._total.item() / max(1, self._own))
        best = f"  best {state.best_score:.2%}" if state.epoch else ""
        return f"epoch {self._epoch}/{epochs}  loss {loss:.4f}{best}"

    def _checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise diverged(loss, self._epoch, self._learner.job.recipe.train.learning_rate)
        return loss


def diverged(loss: float, epoch: int, rate: float) -> UsageError:
    """The error for a loss that is no number any more."""
    return UsageError(
        f"the loss is {loss} in epoch {epoch}, training has diverged: lower train.learning_rate, now {rate}"
    )
