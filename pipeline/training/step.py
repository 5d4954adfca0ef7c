"""One change of the weights: forward, backward, clip, update, in mixed precision where that is asked for.

Several batches may make one step, and several processes one batch. The loss of each is scaled by the rows of all of
them together, so that the gradient is that of their mean, the last and smaller ones included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ..feed import Batch
from ..recipe import TrainSection
from .distributed import Processes
from .losses import Loss

Answer = Tensor | tuple[Tensor, ...]
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Step:
    """Adds up gradients, then changes the weights.

    forward: the network as it is trained, compiled or distributed, of uint8 or float32 pictures (B, H, W, C).
    """

    def __init__(
        self,
        section: TrainSection,
        forward: Callable[[Tensor], Answer],
        network: nn.Module,
        optimizer: Optimizer,
        loss: Loss,
        processes: Processes,
    ) -> None:
        self._forward, self._optimizer, self._loss, self._processes = forward, optimizer, loss, processes
        self._learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self._clip_norm = section.clip_norm
        self._full = section.batch_size * processes.count
        kind = processes.device.type
        self._autocast: Callable[[], AbstractContextManager[Any]] = (
            partial(torch.autocast, kind, AMP[section.amp]) if section.amp in AMP else nullcontext
        )
        self.scaler = torch.amp.GradScaler(kind, enabled=section.amp == "fp16")

    def add(self, batch: Batch, rows: int, last: bool) -> Tensor:
        """Add the batch's share of the gradient of a step over so many rows, of all processes; answers its summed loss.

        last: of the step's batches; only then do processes exchange their gradients.
        """
        device = self._processes.device
        images, targets = (part.to(device, non_blocking=True) for part in (batch.images, batch.targets))
        with self._apart(last), self._resting(batch.total):
            with self._autocast():
                answer = self._forward(images)
            main, whole = self._loss.sums(answer, targets)
            scaled: Tensor = self.scaler.scale(whole * (batch.weight * self._processes.count / rows))
            scaled.backward()  # type: ignore[no-untyped-call]
        return main.detach() if batch.weight == 1 else main.detach() * batch.weight

    def take(self, rate: float) -> None:
        """Change the weights by what was added up, and begin anew."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self._clip_norm:
            self.scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._learning, self._clip_norm)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self._optimizer.zero_grad()

    def _apart(self, last: bool) -> AbstractContextManager[Any]:
        """Keep this process's gradients to itself for now."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return self._forward.no_sync()

    def _resting(self, rows: int) -> AbstractContextManager[None]:
        """A last batch of one row a process has no variance: batch norms take their running statistics for it."""
        alone = rows < min(2 * self._processes.count, self._full)
        return _in_eval_mode(self._norms) if alone and self._norms else nullcontext()


@contextmanager
def _in_eval_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)
