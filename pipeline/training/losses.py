"""What is minimised: cross-entropy, or binary cross-entropy where a picture may have several labels.

Losses are sums over rows, so that a step can be divided by the rows of its whole batch, wherever they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Task

from ..recipe import TrainSection


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of logits (B, K) against classes (B,), or labels or shares (B, K), summed over rows."""

    kind: str
    task: Task
    classes: int
    smoothing: float
    auxiliary_weight: float
    weights: Tensor | None
    """Of each class (K,), float32; for binary cross-entropy what its presence counts against its absence."""

    def sum(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Over rows. Raises UsageError where the logits are not one for each class."""
        if logits.ndim != 2 or logits.shape[1] != self.classes:
            raise UsageError(
                f"the architecture answers {tuple(logits.shape)} for {len(targets)} pictures, expected "
                f"{(len(targets), self.classes)}, a logit for each class: build it for {self.classes} classes"
            )
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        if self.kind == "cross-entropy":
            if targets.is_floating_point():
                targets = targets.to(logits.dtype)
            return functional.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=self.smoothing)
        wanted = self._smoothed(targets).to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights, reduction="sum")
        return losses / self.classes

    def sums(self, answer: Tensor | tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of the logits alone, and of all that is minimised: auxiliary classifiers' losses too, where there are any."""
        logits, *others = answer if isinstance(answer, tuple) else (answer,)
        main = self.sum(logits, targets)
        whole = main
        for other in others:
            whole = whole + self.auxiliary_weight * self.sum(other, targets)
        return main, whole

    def _smoothed(self, targets: Tensor) -> Tensor:
        """As (B, K): what is not there is a little, shared among all classes where a picture has one."""
        if targets.ndim == 1:
            targets = functional.one_hot(targets, self.classes).float()
        share = self.smoothing / (self.classes if self.task == "classification" else 2)
        return targets * (1 - self.smoothing) + share


def new_loss(
    section: TrainSection, task: Task, labels: NDArray[np.integer[Any]], classes: int, device: torch.device
) -> Loss:
    """The recipe's loss; labels: of the training part, (N,) or (N, K).

    Raises UsageError for cross-entropy where a picture may have several labels.
    """
    kind = section.loss
    if kind == "auto":
        kind = "cross-entropy" if task == "classification" else "binary-cross-entropy"
    if kind == "cross-entropy" and task == "multilabel":
        raise UsageError(
            "train.loss is cross-entropy, but the data has several labels a picture: use binary-cross-entropy or auto"
        )
    weights = None
    if section.class_weights == "balanced":
        balanced = _balanced(kind, labels, classes)
        weights = torch.from_numpy(balanced.astype(np.float32)).to(device)
    return Loss(kind, task, classes, section.label_smoothing, section.auxiliary_weight, weights)


def _balanced(kind: str, labels: NDArray[np.integer[Any]], classes: int) -> NDArray[np.float64]:
    """By which every class counts alike: their mean over pictures is 1, or presence weighs what absence does."""
    count = np.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.sum(axis=0, dtype=np.int64)
    present = np.maximum(count, 1).astype(np.float64)
    if kind == "cross-entropy":
        return len(labels) / (classes * present)
    return np.maximum(len(labels) - present, 1) / present
