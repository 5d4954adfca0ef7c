"""The learning rate as a pure function of the step: an interrupted training needs no scheduler's state.

Each schedule begins where the linear warm-up ends and then agrees with torch.optim.lr_scheduler's; one-cycle rises
during the warm-up by half a cosine (Smith, Topin: Super-Convergence, 2017, https://arxiv.org/abs/1708.07120).
"""

from __future__ import annotations

import math

from ..recipe import TrainSection

START, END = 1 / 25, 1 / 25e4
"""Of the peak, where one-cycle starts and ends; OneCycleLR's defaults."""


def learning_rate(section: TrainSection, step: int, steps_per_epoch: int) -> float:
    """Of a step of the whole training, counted from 1."""
    warmup, total = section.warmup_epochs * steps_per_epoch, section.epochs * steps_per_epoch
    if section.schedule == "one-cycle":
        return section.learning_rate * _one_cycle(step - 1, warmup - 1, total - 1)
    if step <= warmup:
        return section.learning_rate * step / warmup
    return section.learning_rate * _falling(section, step - 1 - warmup, total - warmup, steps_per_epoch)


def _falling(section: TrainSection, done: float, total: float, steps_per_epoch: int) -> float:
    """Share of the peak after `done` of `total` steps behind the warm-up."""
    done = max(0.0, done)
    if section.schedule == "cosine":
        return _half_cosine(1.0, 0.0, done / total)
    epochs = int(done / steps_per_epoch)
    if section.schedule == "exponential":
        return section.gamma**epochs
    if section.schedule == "step":
        return float(section.gamma ** _steps_taken(section.step_epochs, epochs))
    return 1.0


def _steps_taken(step_epochs: int | tuple[int, ...], epochs: int) -> int:
    if isinstance(step_epochs, int):
        return epochs // step_epochs
    return sum(milestone <= epochs for milestone in step_epochs)


def _one_cycle(done: int, peak: float, end: float) -> float:
    """Share of the peak after `done` steps, where the peak and the end are reached after so many."""
    if done < peak:
        return _half_cosine(START, 1.0, done / peak)
    return _half_cosine(1.0, END, (done - peak) / (end - peak)) if done > peak else 1.0


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
