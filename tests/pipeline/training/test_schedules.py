"""The learning rate by step: warm-up, then what torch's schedulers do, without their state."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from trueport.pipeline.recipe import TrainSection
from trueport.pipeline.training.schedules import learning_rate

PER_EPOCH, EPOCHS = 5, 8
STEPS = PER_EPOCH * EPOCHS


def rates(**changes: Any) -> list[float]:
    section = TrainSection(**({"epochs": EPOCHS, "warmup_epochs": 0, "learning_rate": 2.0} | changes))
    return [learning_rate(section, step, PER_EPOCH) for step in range(1, section.epochs * PER_EPOCH + 1)]


def torch_rates(make: Any, every: int = 1) -> list[float]:
    """What a scheduler of torch's gives, that is stepped after every so many steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = make(optimizer)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(1, STEPS + 1):
            found.append(optimizer.param_groups[0]["lr"])
            if step % every == 0 and step < STEPS:
                optimizer.step()
                scheduler.step()
    return found


def test_cosine_is_torchs() -> None:
    assert rates() == pytest.approx(torch_rates(lambda it: lr_scheduler.CosineAnnealingLR(it, STEPS)))


def test_step_is_torchs() -> None:
    found = rates(schedule="step", step_epochs=3, gamma=0.2)
    assert found == pytest.approx(torch_rates(lambda it: lr_scheduler.StepLR(it, 3, 0.2), PER_EPOCH))
    assert len(set(found)) == 3


def test_steps_at_listed_epochs_are_torchs() -> None:
    found = rates(schedule="step", step_epochs=(2, 3, 7), gamma=0.2)
    assert found == pytest.approx(torch_rates(lambda it: lr_scheduler.MultiStepLR(it, [2, 3, 7], 0.2), PER_EPOCH))
    assert len(set(found)) == 4


def test_exponential_is_torchs() -> None:
    found = rates(schedule="exponential", gamma=0.7)
    assert found == pytest.approx(torch_rates(lambda it: lr_scheduler.ExponentialLR(it, 0.7), PER_EPOCH))


@pytest.mark.parametrize("warmup", [1, 2.4, 7])
def test_one_cycle_is_torchs_and_rises_in_the_warm_up(warmup: float) -> None:
    found = rates(schedule="one-cycle", warmup_epochs=warmup)
    expected = torch_rates(lambda it: lr_scheduler.OneCycleLR(it, 2.0, STEPS, pct_start=warmup / EPOCHS))
    assert found == pytest.approx(expected)
    assert max(range(STEPS), key=found.__getitem__) == pytest.approx(warmup * PER_EPOCH - 1, abs=0.5)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step", "exponential"])
def test_every_schedule_begins_where_a_linear_warm_up_ends(schedule: str) -> None:
    found = rates(schedule=schedule, warmup_epochs=2, step_epochs=2)
    assert found[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    cold = rates(schedule=schedule, epochs=EPOCHS - 2, step_epochs=2)
    assert found[10:] == pytest.approx(cold)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "step", "exponential", "one-cycle"])
@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (1, 0.2), (1, 1), (2, 9), (3, 3)])
def test_no_length_of_training_is_too_short(schedule: str, epochs: int, warmup: float) -> None:
    for per_epoch in (1, 2, 7):
        section = TrainSection(epochs=epochs, warmup_epochs=warmup, schedule=schedule, learning_rate=2.0)  # type: ignore[arg-type]
        found = [learning_rate(section, step, per_epoch) for step in range(1, epochs * per_epoch + 1)]
        assert all(0 < rate <= 2.0 for rate in found)


def test_cosine_falls_and_ends_above_nothing() -> None:
    found = rates(warmup_epochs=1)
    assert all(later < earlier for earlier, later in itertools.pairwise(found[PER_EPOCH:]))
    assert 0 < found[-1] < 0.02
