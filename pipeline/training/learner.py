"""The network as it learns, with all that changes while it does: made fresh, or as a checkpoint left it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trueport.export.original import served_module
from trueport.models.head import head_parameters
from trueport.runtime.errors import MissingError, UsageError

from .. import run_folder
from ..checkpoint import Checkpoint, State
from ..seeds import derived_seed
from .averaging import Average
from .distributed import Processes
from .job import Job
from .losses import Loss, new_loss
from .optimizers import new_optimizer
from .step import Answer, Step


@dataclass
class Learner:
    """What changes while training."""

    job: Job
    processes: Processes
    served: nn.Module
    """The network with its normalisation before it, plain: what evaluation calls and checkpoints hold."""
    optimizer: Optimizer
    loss: Loss
    step: Step
    average: Average | None
    state: State

    @property
    def measured(self) -> nn.Module:
        """What is validated and kept, with its normalisation: the average where there is one."""
        return self.average.module if self.average else self.served

    @property
    def kept(self) -> dict[str, Tensor]:
        """The weights of that, by the names that the architecture gives them."""
        return self.measured.get_submodule("network").state_dict()

    def begin_epoch(self, epoch: int) -> None:
        """Into training mode, dropout drawn anew; a frozen network stays as it is when it is measured."""
        section = self.job.recipe.train
        self.served.train(not section.freeze)
        rank = self.processes.rank
        torch.manual_seed(derived_seed(section.seed, "epoch", epoch, *([rank] if rank else [])))

    def checkpoint(self) -> Checkpoint:
        """All that is needed to go on from here."""
        average = self.average.module.get_submodule("network").state_dict() if self.average else {}
        network = self.job.original.module.state_dict()
        return Checkpoint(network, self.optimizer.state_dict(), self.state, average, self.step.scaler.state_dict())


def new_learner(job: Job, processes: Processes) -> Learner:
    """A network that has learnt nothing yet. Raises UsageError, and MissingError for torch.compile's needs."""
    section = job.recipe.train
    if section.compile:
        _require_compiler(processes.device)
    if section.freeze:
        _freeze(job)
    if processes.device.type == "cuda" and processes.count > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(job.original.module)  # type: ignore[no-untyped-call]
    if section.channels_last:
        job.original.module.to(memory_format=torch.channels_last)
    served = served_module(job.original).to(processes.device)
    optimizer = new_optimizer(section, served)
    labels = job.dataset.labels[job.parts.train]
    loss = new_loss(section, job.original.task, labels, len(job.original.labels), processes.device)
    step = Step(section, _trained(served, job, processes), served, optimizer, loss, processes)
    average = Average(served, section.ema) if section.ema else None
    state = State(epoch=0, best_epoch=0, best_score=-1.0, best_loss=math.inf, seconds=0.0, setup=job.setup)
    return Learner(job, processes, served, optimizer, loss, step, average, state)


def restore(learner: Learner, checkpoint: Checkpoint, file: Path) -> None:
    """Put everything back as the checkpoint has it; file: where it came from, for messages."""
    labels, network = learner.job.original.labels, learner.job.original.module
    run_folder.load_weights(network, checkpoint.model, file, labels)
    if learner.average:
        averaged = learner.average.module.get_submodule("network")
        run_folder.load_weights(averaged, checkpoint.average, file, labels)
    learner.optimizer.load_state_dict(checkpoint.optimizer)
    _lay_out(learner.optimizer)
    learner.step.scaler.load_state_dict(checkpoint.scaler)
    learner.state = checkpoint.state


def _lay_out(optimizer: Optimizer) -> None:
    """Give each tensor of the state its parameter's memory format, which fused kernels take for granted."""
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _trained(served: nn.Module, job: Job, processes: Processes) -> Callable[[Tensor], Answer]:
    """What a step calls: compiled and distributed where that is asked for, on the very same weights."""
    section, forward = job.recipe.train, served
    if section.compile:
        forward = torch.compile(forward)  # type: ignore[assignment]
    if processes.count == 1:
        return forward
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(
        forward, device_ids=devices, gradient_as_bucket_view=True, find_unused_parameters=section.freeze
    )


def _freeze(job: Job) -> None:
    """Let the last layer learn alone."""
    network, shape = job.original.module, job.original.preprocessing.shape
    example = torch.zeros(2, shape[2], *shape[:2])
    try:
        head = head_parameters(network, len(job.original.labels), example)
    except ValueError as error:
        raise UsageError(f"train.freeze can't tell the last layer of {job.original.arch}: {error}") from error
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in head)


def _require_compiler(device: torch.device) -> None:
    """Raise MissingError where torch.compile can't make code for the device."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise MissingError("train.compile needs Triton on CUDA, which is not there: install it, or leave it out")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise MissingError(
            "train.compile needs a C++ compiler on the CPU, found none: install g++, or set train.compile=false"
        ) from error


def scored(state: State, epoch: int, score: float, loss: float, seconds: float) -> State:
    """The state after an epoch with these results.

    Of epochs of equal score the one with the lower loss is the best, by the very loss that is trained: by one without
    label smoothing it would be an early epoch.
    """
    better = (score, -loss) > (state.best_score, -state.best_loss)
    best = (epoch, score, loss) if better else (state.best_epoch, state.best_score, state.best_loss)
    return msgspec.structs.replace(
        state, epoch=epoch, best_epoch=best[0], best_score=best[1], best_loss=best[2], seconds=state.seconds + seconds
    )
