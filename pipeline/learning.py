"""The parts of a training that hold no state: seeds, batches, augmentation, learning rate, optimizer, evaluation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer

from trueport.runtime.errors import MissingError

from .recipe import Recipe, TrainSection

EVALUATION_BATCH = 256


class Labelled(NamedTuple):
    """Prepared pictures uint8 (N, H, W, C) and their classes int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where torch sees it. Raises MissingError where CUDA is asked for and is not there."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise MissingError(
            f"train.device is cuda, but this torch ({torch.__version__}, {built}) sees no CUDA device: "
            "install NVIDIA's driver and a CUDA build of torch, or set train.device=cpu"
        )
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def evaluate(
    served: nn.Module, data: Labelled, device: torch.device, label_smoothing: float = 0.0
) -> tuple[float, float]:
    """Mean cross-entropy, smoothed as in training, and the share of right answers, 0 to 1, in eval mode."""
    served.eval()
    loss, right = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(data), EVALUATION_BATCH):
            images, labels = (part[start : start + EVALUATION_BATCH].to(device) for part in data)
            logits = served(images)
            loss += functional.cross_entropy(
                logits.double(), labels, reduction="sum", label_smoothing=label_smoothing
            ).item()
            right += int((logits.argmax(1) == labels).sum())
    return loss / len(data), right / len(data)


def batches(data: Labelled, recipe: Recipe, epoch: int) -> Iterator[Labelled]:
    """The epoch's batches in its own order, each picture moved in its own way; the last one may be smaller."""
    section = recipe.train
    chance = torch.Generator().manual_seed(derived_seed(section.seed, "order", epoch))
    order = torch.randperm(len(data), generator=chance)
    chance.manual_seed(derived_seed(section.seed, "shift", epoch))
    reach = recipe.augment.shift_px
    shifts = torch.randint(-reach, reach + 1, (len(data), 2), generator=chance)  # by sample, not by place in the order
    for rows in torch.split(order, section.batch_size):
        images = data.images[rows]
        yield Labelled(shifted(images, shifts[rows]) if reach else images, data.labels[rows])


def shifted(images: Tensor, shifts: Tensor) -> Tensor:
    """Move each of (B, H, W, C) by its (B, 2) pixels down and right; the border's pixels fill what is laid bare."""
    batch, height, width, _ = images.shape
    down, right = shifts[:, :1], shifts[:, 1:]
    rows = (torch.arange(height) - down).clamp(0, height - 1)  # (B, H)
    columns = (torch.arange(width) - right).clamp(0, width - 1)  # (B, W)
    return images[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


def learning_rate(section: TrainSection, step: int, steps_per_epoch: int) -> float:
    """Of a step, counted from 1: linear warm-up, then constant or half a cosine down to nearly zero."""
    warmup = section.warmup_epochs * steps_per_epoch
    if step <= warmup:
        return section.learning_rate * step / warmup
    if section.schedule == "constant":
        return section.learning_rate
    share = (step - 1 - warmup) / (section.epochs * steps_per_epoch - warmup)
    return section.learning_rate * 0.5 * (1 + math.cos(math.pi * max(0.0, share)))


def new_optimizer(section: TrainSection, module: nn.Module) -> Optimizer:
    """The recipe's optimizer over all of the module's parameters."""
    parameters, rate, decay = module.parameters(), section.learning_rate, section.weight_decay
    if section.optimizer == "sgd":
        return SGD(parameters, rate, momentum=section.momentum, weight_decay=decay, fused=True)
    kind = AdamW if section.optimizer == "adamw" else Adam
    return kind(parameters, rate, weight_decay=decay, fused=True)


def derived_seed(*parts: object) -> int:
    """A seed of 63 bits for one purpose: different parts give unrelated seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
