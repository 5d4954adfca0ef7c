"""What a training writes into its run folder, and in which order: whatever is interrupted is repeated."""

from __future__ import annotations

from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import safetensors.torch
import tomli_w  # noqa: F401 — named here before it is missed at the end of a long training
import torch
from torch.utils.tensorboard import SummaryWriter

from trueport.models.state import stored
from trueport.runtime.atomic import write_bytes

from .. import run_folder
from ..checkpoint import save_checkpoint
from ..progress import Progress
from ..run_folder import EpochMetrics, RunInfo
from .evaluation import Measured
from .learner import Learner

SCALARS = ("train_loss", "validation_loss", "validation_score", "learning_rate", "images_per_s")


class Records:
    """The run folder while it is written. Until the first epoch is kept it stays as it was."""

    def __init__(self, learner: Learner, out: Path, progress: Progress) -> None:
        self._learner, self._out, self._progress = learner, out, progress
        self._events: SummaryWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._events is not None:
            self._events.close()

    def keep(self, metrics: EpochMetrics) -> None:
        """Write what an epoch brought; the checkpoint last, for all before it is repeated where it is missing."""
        if self._events is None:
            self._events = self._begin(metrics.epoch - 1)
        if self._learner.state.best_epoch == metrics.epoch:
            self.keep_weights()
        run_folder.append_metrics(self._out / run_folder.METRICS, metrics)
        save_checkpoint(self._out / run_folder.LAST, self._learner.checkpoint())
        for name in SCALARS:
            self._events.add_scalar(name, getattr(metrics, name), metrics.epoch)

    def keep_weights(self) -> None:
        """Write the weights as they are."""
        write_bytes(self._out / run_folder.WEIGHTS, safetensors.torch.save(stored(self._learner.kept)))

    def keep_initial(self) -> None:
        """Write the weights that no epoch has changed."""
        with closing(self._begin(0)):
            self.keep_weights()

    def _begin(self, epochs: int) -> SummaryWriter:
        """Make the folder ready for what comes after so many epochs."""
        out = self._out
        if epochs == 0:
            _clear(out, self._progress)
        run_folder.write_recipe(out / run_folder.RECIPE, self._learner.job.recipe)
        kept = run_folder.read_metrics(out / run_folder.METRICS, epochs)
        run_folder.write_metrics(out / run_folder.METRICS, kept)  # an interrupted epoch may have left a line
        return SummaryWriter(str(out / run_folder.TENSORBOARD), purge_step=epochs + 1)


def _clear(out: Path, progress: Progress) -> None:
    """Forget the run that may be there, its mark of being finished first."""
    if any((out / name).exists() for name in (run_folder.RUN, run_folder.LAST)):
        progress.say(f"starting afresh: the run that was in {out} is discarded")
    for name in (run_folder.RUN, run_folder.LAST, run_folder.WEIGHTS, run_folder.METRICS):
        (out / name).unlink(missing_ok=True)
    for events in (out / run_folder.TENSORBOARD).glob("events.out.tfevents.*"):
        with suppress(FileNotFoundError):
            events.unlink()


def finished(learner: Learner, tested: Measured, weights: Path) -> RunInfo:
    """All that run.json says, where the weights in this file were measured on the test part."""
    job, state, device = learner.job, learner.state, learner.processes.device
    original, recipe = job.original, job.recipe
    return RunInfo(
        task=original.task,
        arch=original.arch,
        arch_args=original.arch_args,
        labels=original.labels,
        preprocessing=original.preprocessing,
        normalisation=original.normalisation,
        data=job.dataset.name,
        data_sha256=job.dataset.fingerprint,
        split_sha256=job.parts.fingerprint,
        weights_sha256=run_folder.file_sha256(weights),
        initial_sha256=job.initial_sha256,
        seed=recipe.train.seed,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        metric=run_folder.METRIC[original.task],
        validation_score=state.best_score,
        validation_loss=state.best_loss,
        test_score=tested.score,
        test_loss=tested.loss,
        train_count=len(job.parts.train),
        validation_count=len(job.parts.validation),
        test_count=len(job.parts.test),
        parameters=sum(parameter.numel() for parameter in original.module.parameters()),
        seconds=state.seconds,
        processes=learner.processes.count,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        versions=run_folder.versions(),
        recipe=run_folder.recipe_table(recipe),
    )
