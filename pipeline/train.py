"""Training: recipe in, run folder out; resumable to the same numbers after an interruption at any point.

Every random choice is derived from (seed, epoch, sample) and none from what ran before, so that a checkpoint needs no
generator's state and an interrupted epoch is repeated as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trueport.runtime.atomic import write_bytes
from trueport.runtime.errors import UsageError, missing_extra

from . import run_folder
from .data import Dataset, Split, open_dataset, prepared, split
from .data.dataset import shortened
from .progress import Progress, open_progress
from .recipe import Recipe
from .resolve import new_model, resolve
from .run_folder import EpochMetrics, Run, RunInfo

try:
    import safetensors.torch
    import tomli_w  # noqa: F401 — named here before it is missed at the end of a long training
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.optim import Optimizer
    from torch.utils.tensorboard import SummaryWriter
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "torch", "train", "training") from error

from trueport.export.original import Original, served_module

from .checkpoint import Checkpoint, State, load_checkpoint, save_checkpoint, stored
from .learning import Labelled, batches, choose_device, derived_seed, evaluate, learning_rate, new_optimizer

if TYPE_CHECKING:
    from rich.console import Console

STEPS_BETWEEN_NOTES = 10

AfterStep = Callable[[int, int], None]
"""Called with the epoch and the step in it, both from 1, when the weights have been changed."""


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
    Raises UsageError for data, recipe or folder that don't fit and where another training is writing the folder,
    MissingError for an absent device or package, and KeyboardInterrupt as it comes: the last complete epoch is kept.
    """
    out = Path(out)
    run_folder.refuse_foreign(out)
    device = choose_device(recipe.train.device)
    dataset = open_dataset(recipe.data.source)
    job = _job(recipe, dataset)
    with run_folder.locked(out):
        found = _found(job, out, replace) if resume else None
        if isinstance(found, Run):
            return run_folder.refreshed(found, recipe).info
        learner = _learner(job, out, device, found)
        with torch.random.fork_rng(), open_progress(console) as progress:
            return _train(learner, progress, after_step)


class _Pictures(NamedTuple):
    train: Labelled
    validation: Labelled
    test: Labelled


@dataclass(frozen=True)
class _Job:
    """What is to be done, resolved and checked."""

    recipe: Recipe
    dataset: Dataset
    parts: Split
    original: Original
    """Freshly initialised; its module is what is trained."""
    setup: dict[str, Any]


@dataclass
class _Learner:
    """What changes while training."""

    job: _Job
    out: Path
    device: torch.device
    served: nn.Module
    optimizer: Optimizer
    state: State


def _job(recipe: Recipe, dataset: Dataset) -> _Job:
    section = recipe.data
    preprocessing, normalisation = resolve(recipe, dataset)
    parts = split(dataset, section.validation, section.test, section.seed)
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(recipe.train.seed, "weights"))
        module = new_model(recipe.model, len(dataset.classes), preprocessing.channels)
    original = Original(
        module,
        dataset.classes,
        preprocessing,
        normalisation,
        recipe.model.arch,
        dict(recipe.model.args),
        dataset.task,
    )
    return _Job(recipe, dataset, parts, original, _setup(recipe, dataset.fingerprint, parts.fingerprint))


def _setup(recipe: Recipe, data_sha256: str, split_sha256: str) -> dict[str, Any]:
    """All that the numbers follow from, flat. Where the data lies and what device computes is not part of it."""
    table = run_folder.recipe_table(recipe)
    flat = {
        f"{section}.{key}": value
        for section in ("model", "preprocessing", "augment", "train")
        for key, value in table[section].items()
        if (section, key) != ("train", "device")
    }
    return flat | {"the data": data_sha256, "the split": split_sha256}


def _found(job: _Job, out: Path, replace: bool) -> Run | Checkpoint | None:
    """What there is of this training: the finished run, the checkpoint to go on from, or nothing."""
    found: Run | Checkpoint
    if (out / run_folder.RUN).exists():
        found = Run.open(out)
        before = _setup(found.recipe(), found.info.data_sha256, found.info.split_sha256)
    elif (out / run_folder.LAST).exists():
        found = load_checkpoint(out / run_folder.LAST)
        before = found.state.setup
    else:
        return None
    changed = [key for key in sorted(before.keys() | job.setup.keys()) if before.get(key) != job.setup.get(key)]
    if changed and not replace:
        raise _other_setup(out, changed, before, job.setup)
    return None if changed else found


def _other_setup(out: Path, changed: list[str], before: dict[str, Any], now: dict[str, Any]) -> UsageError:
    missing = "left out"
    told = [
        f"{key} (not the same pictures or parts)"
        if key.startswith("the ")
        else f"{key} (was {before.get(key, missing)}, is {now.get(key, missing)})"
        for key in changed
    ]
    return UsageError(
        f"{out} holds a run of another setup, different in {', '.join(told)}: "
        "train into another folder, or discard this one with --afresh (resume=False)"
    )


def _clear(out: Path, progress: Progress) -> None:
    """Forget the run that may be there, its mark of being finished first."""
    if any((out / name).exists() for name in (run_folder.RUN, run_folder.LAST)):
        progress.say(f"starting afresh: the run that was in {out} is discarded")
    for name in (run_folder.RUN, run_folder.LAST, run_folder.WEIGHTS, run_folder.METRICS):
        (out / name).unlink(missing_ok=True)
    for events in (out / run_folder.TENSORBOARD).glob("events.out.tfevents.*"):
        events.unlink()


def _learner(job: _Job, out: Path, device: torch.device, checkpoint: Checkpoint | None) -> _Learner:
    """Fresh, or as the checkpoint left it."""
    served = served_module(job.original).to(device)
    section = job.recipe.train
    optimizer = new_optimizer(section, served)
    state = State(epoch=0, best_epoch=0, best_accuracy=-1.0, best_loss=math.inf, seconds=0.0, setup=job.setup)
    learner = _Learner(job, out, device, served, optimizer, state)
    if checkpoint is not None:
        if not (out / run_folder.WEIGHTS).exists():
            raise UsageError(
                f"{out} has lost its {run_folder.WEIGHTS}, the best so far: "
                "restore it, or discard the run with --afresh (resume=False)"
            )
        run_folder.load_weights(job.original.module, checkpoint.model, out / run_folder.LAST, job.original.labels)
        optimizer.load_state_dict(checkpoint.optimizer)
        learner.state = checkpoint.state
    return learner


def _pictures(job: _Job, out: Path, progress: Progress) -> _Pictures:
    """All three parts, so that a broken picture is found before the first epoch."""
    if ignored := job.dataset.ignored:
        progress.say(f"passed over, as they are no pictures: {shortened(ignored)}")
    progress.begin(f"preparing {job.dataset.name}", len(job.dataset))

    def part(indices: Any) -> Labelled:
        images = prepared(job.dataset, indices, job.original.preprocessing, progress.advance, scratch=out)
        return Labelled(torch.from_numpy(images), torch.from_numpy(job.dataset.labels[indices]))

    return _Pictures(part(job.parts.train), part(job.parts.validation), part(job.parts.test))


def _train(learner: _Learner, progress: Progress, after_step: AfterStep | None) -> RunInfo:
    section = learner.job.recipe.train
    try:
        pictures = _pictures(learner.job, learner.out, progress)
        _learn(learner, pictures, progress, after_step)
        return _finish(learner, pictures)
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"{learner.device} has too little memory for batches of {section.batch_size}: lower train.batch_size"
        ) from error
    except KeyboardInterrupt:
        if done := learner.state.epoch:
            kept = f"{done} of {section.epochs} epochs are kept in {learner.out}"
        else:
            kept = f"no epoch was complete, {learner.out} is left as it was"
        progress.say(f"interrupted: {kept}; train again to go on")
        raise


def _learn(learner: _Learner, pictures: _Pictures, progress: Progress, after_step: AfterStep | None) -> None:
    section = learner.job.recipe.train
    first, count = learner.state.epoch + 1, len(pictures.train)
    progress.begin(f"training {learner.job.original.arch}", count * section.epochs, count * (first - 1))
    with ExitStack() as opened:
        for epoch in range(first, section.epochs + 1):
            metrics = _epoch(learner, epoch, pictures, progress, after_step)
            if not math.isfinite(metrics.train_loss + metrics.validation_loss):
                raise UsageError(
                    f"the loss is {metrics.train_loss} in epoch {epoch}, training has diverged: "
                    f"lower train.learning_rate, now {section.learning_rate}"
                )
            if epoch == first:
                events = opened.enter_context(_open_records(learner, progress))
            _keep(learner, metrics)
            for name in ("train_loss", "validation_loss", "validation_accuracy", "learning_rate", "images_per_s"):
                events.add_scalar(name, getattr(metrics, name), epoch)
            progress.report(_line(metrics, section.epochs), last=epoch == section.epochs)


def _open_records(learner: _Learner, progress: Progress) -> SummaryWriter:
    """Make the folder ready for the first epoch that is to be kept; until then it is as it was."""
    out, epoch = learner.out, learner.state.epoch
    if epoch == 0:
        _clear(out, progress)
    run_folder.write_recipe(out / run_folder.RECIPE, learner.job.recipe)
    kept = run_folder.read_metrics(out / run_folder.METRICS, epoch)
    run_folder.write_metrics(out / run_folder.METRICS, kept)  # an interrupted epoch may have left a line
    return SummaryWriter(str(out / run_folder.TENSORBOARD), purge_step=epoch + 1)


def _epoch(
    learner: _Learner, epoch: int, pictures: _Pictures, progress: Progress, after_step: AfterStep | None
) -> EpochMetrics:
    section, served, started = learner.job.recipe.train, learner.served, time.perf_counter()
    served.train()
    torch.manual_seed(derived_seed(section.seed, "epoch", epoch))
    total, seen, rate = torch.zeros((), dtype=torch.float64, device=learner.device), 0, 0.0
    steps = math.ceil(len(pictures.train) / section.batch_size)
    for step, (images, labels) in enumerate(batches(pictures.train, learner.job.recipe, epoch), start=1):
        rate = learning_rate(section, (epoch - 1) * steps + step, steps)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        logits = served(images.to(learner.device))
        loss = functional.cross_entropy(logits, labels.to(learner.device), label_smoothing=section.label_smoothing)
        learner.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()
        total += loss.detach().double() * len(labels)
        seen += len(labels)
        noted = step % STEPS_BETWEEN_NOTES == 1  # reading the loss waits for a GPU
        progress.advance(len(labels), _note(learner.state, epoch, section.epochs, total.item() / seen) if noted else "")
        if after_step is not None:
            after_step(epoch, step)
    trained = time.perf_counter() - started
    validation_loss, accuracy = evaluate(served, pictures.validation, learner.device, section.label_smoothing)
    return EpochMetrics(
        epoch=epoch,
        learning_rate=rate,
        train_loss=total.item() / seen,
        validation_loss=validation_loss,
        validation_accuracy=accuracy,
        seconds=time.perf_counter() - started,
        images_per_s=seen / trained,
    )


def _keep(learner: _Learner, metrics: EpochMetrics) -> None:
    """Write what this epoch brought; the checkpoint last, for all before it is repeated where it is missing.

    Of equally accurate epochs the one with the lower loss is the best, by the very loss that is trained: by one without
    label smoothing it would be an early epoch.
    """
    state, out, network = learner.state, learner.out, learner.job.original.module
    if (metrics.validation_accuracy, -metrics.validation_loss) > (state.best_accuracy, -state.best_loss):
        write_bytes(out / run_folder.WEIGHTS, safetensors.torch.save(stored(network.state_dict())))
        best = (metrics.epoch, metrics.validation_accuracy, metrics.validation_loss)
    else:
        best = (state.best_epoch, state.best_accuracy, state.best_loss)
    run_folder.append_metrics(out / run_folder.METRICS, metrics)
    state = State(
        epoch=metrics.epoch,
        best_epoch=best[0],
        best_accuracy=best[1],
        best_loss=best[2],
        seconds=state.seconds + metrics.seconds,
        setup=state.setup,
    )
    save_checkpoint(out / run_folder.LAST, Checkpoint(network.state_dict(), learner.optimizer.state_dict(), state))
    learner.state = state


def _finish(learner: _Learner, pictures: _Pictures) -> RunInfo:
    """Measure the best weights on the held-out test pictures and mark the run as finished."""
    job, state, weights = learner.job, learner.state, learner.out / run_folder.WEIGHTS
    original, recipe = job.original, job.recipe
    run_folder.load_weights(original.module, run_folder.read_tensors(weights), weights, original.labels)
    test_loss, test_accuracy = evaluate(learner.served, pictures.test, learner.device, recipe.train.label_smoothing)
    info = RunInfo(
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
        seed=recipe.train.seed,
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        validation_accuracy=state.best_accuracy,
        validation_loss=state.best_loss,
        test_accuracy=test_accuracy,
        test_loss=test_loss,
        train_count=len(pictures.train),
        validation_count=len(pictures.validation),
        test_count=len(pictures.test),
        parameters=sum(parameter.numel() for parameter in original.module.parameters()),
        seconds=state.seconds,
        device=torch.cuda.get_device_name(learner.device) if learner.device.type == "cuda" else "cpu",
        versions=run_folder.versions(),
        recipe=run_folder.recipe_table(recipe),
    )
    run_folder.write_recipe(learner.out / run_folder.RECIPE, recipe)
    run_folder.write_info(learner.out / run_folder.RUN, info)
    return info


def _note(state: State, epoch: int, epochs: int, loss: float) -> str:
    accuracy = f"  best {state.best_accuracy:.2%}" if state.epoch else ""
    return f"epoch {epoch}/{epochs}  loss {loss:.4f}{accuracy}"


def _line(metrics: EpochMetrics, epochs: int) -> str:
    return (
        f"epoch {metrics.epoch}/{epochs}  loss {metrics.train_loss:.4f}  validation {metrics.validation_loss:.4f}  "
        f"accuracy {metrics.validation_accuracy:.2%}  {metrics.images_per_s:,.0f} images/s"
    )
