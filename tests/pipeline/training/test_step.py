"""Optimizers, gradients of whole groups of batches, clipping, averages, precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from trueport.pipeline.feed import Batch
from trueport.pipeline.recipe import TrainSection
from trueport.pipeline.training.averaging import Average
from trueport.pipeline.training.distributed import Processes
from trueport.pipeline.training.losses import new_loss
from trueport.pipeline.training.optimizers import new_optimizer
from trueport.pipeline.training.step import Step

CPU = Processes(torch.device("cpu"))
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), np.uint8))
LABELS = torch.arange(10) % 3


class Flat(nn.Module):
    """A linear classifier of bytes."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.head = nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(images.float().flatten(1) / 255))
        return logits.float()


def batch(*rows: int, total: int | None = None, weight: float = 1.0) -> Batch:
    return Batch(IMAGES[list(rows)], LABELS[list(rows)], weight, len(rows) if total is None else total)


def step_of(network: nn.Module, **changes: Any) -> Step:
    table: dict[str, Any] = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "batch_size": 4}
    section = TrainSection(**(table | changes))
    loss = new_loss(section, "classification", LABELS.numpy(), 3, CPU.device)
    return Step(section, network, network, new_optimizer(section, network), loss, CPU)


def gradient(network: nn.Module) -> torch.Tensor:
    return torch.cat([it.grad.flatten() for it in network.parameters() if it.grad is not None])


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_the_gradient_of_several_batches_is_that_of_all_their_rows(weights: str) -> None:
    one, several = Flat(), Flat()
    whole, parts = step_of(one, class_weights=weights), step_of(several, class_weights=weights)
    total = whole.add(batch(*range(10)), 10, True)
    summed = sum(
        parts.add(batch(*rows), 10, last)
        for rows, last in (((0, 1, 2, 3), False), ((4, 5, 6, 7), False), ((8, 9), True))
    )
    assert summed == pytest.approx(total.item())
    torch.testing.assert_close(gradient(several), gradient(one))
    if weights == "none":
        functional.cross_entropy(one(IMAGES), LABELS).backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(gradient(one), 2 * gradient(several))


def test_a_stand_in_row_changes_nothing() -> None:
    network = Flat()
    assert step_of(network).add(batch(3, weight=0.0, total=1), 1, True) == 0
    assert not gradient(network).any()


def test_a_last_batch_of_one_row_has_no_statistics() -> None:
    network = Flat(norm=True)
    step = step_of(network)
    before = network.get_buffer("norm.running_mean").clone()
    step.add(batch(0, total=1), 1, True)
    assert torch.equal(network.get_buffer("norm.running_mean"), before)
    assert network.norm.training
    step.add(batch(0, 1, total=2), 2, True)
    assert not torch.equal(network.get_buffer("norm.running_mean"), before)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        step_of(network, batch_size=1).add(batch(0), 1, True)


def test_gradients_are_clipped_together() -> None:
    network = Flat()
    before = [it.detach().clone() for it in network.parameters()]
    step = step_of(network, clip_norm=0.01)
    step.add(batch(*range(10)), 10, True)
    step.take(1.0)
    moved = torch.cat([(it.detach() - then).flatten() for it, then in zip(network.parameters(), before, strict=True)])
    assert moved.norm() == pytest.approx(0.01, rel=1e-3)
    assert all(it.grad is None for it in network.parameters())


@pytest.mark.parametrize(("amp", "tolerance"), [("bf16", 2e-2), ("fp16", 4e-3)])
def test_mixed_precision_is_the_same_step_but_for_rounding(amp: str, tolerance: float) -> None:
    exact, mixed = Flat(), Flat()
    for network, options in ((exact, {}), (mixed, {"amp": amp})):
        step = step_of(network, **options)
        step.add(batch(*range(10)), 10, True)
        step.take(0.5)
        assert all(it.dtype == torch.float32 for it in network.parameters())
    difference = torch.cat([(a - b).flatten() for a, b in zip(exact.parameters(), mixed.parameters(), strict=True)])
    assert 0 < difference.abs().max() < tolerance


def test_fp16_passes_over_a_step_that_overflows() -> None:
    network = Flat()
    step = step_of(network, amp="fp16")
    scale = step.scaler.get_scale()
    before = network.head.weight.detach().clone()
    step.add(batch(*range(10)), 10, True)
    assert network.head.weight.grad is not None
    network.head.weight.grad[0, 0] = torch.inf
    step.take(0.5)
    assert torch.equal(network.head.weight, before)
    assert step.scaler.get_scale() == scale / 2


@pytest.mark.parametrize(
    ("section", "make"),
    [
        ({"optimizer": "sgd", "momentum": 0.8}, lambda it: torch.optim.SGD(it, 0.1, 0.8, weight_decay=0.2)),
        ({"optimizer": "sgd", "nesterov": True}, lambda it: torch.optim.SGD(it, 0.1, 0.9, 0, 0.2, nesterov=True)),
        ({"optimizer": "rmsprop"}, lambda it: torch.optim.RMSprop(it, 0.1, momentum=0.9, weight_decay=0.2)),
        ({"optimizer": "adagrad"}, lambda it: torch.optim.Adagrad(it, 0.1, weight_decay=0.2)),
        ({"optimizer": "adam"}, lambda it: torch.optim.Adam(it, 0.1, weight_decay=0.2)),
        ({"optimizer": "adamw"}, lambda it: torch.optim.AdamW(it, 0.1, weight_decay=0.2)),
    ],
)
def test_optimizers_are_torchs(section: dict[str, Any], make: Callable[[Any], torch.optim.Optimizer]) -> None:
    ours, theirs = Flat(), Flat()
    one = new_optimizer(TrainSection(learning_rate=0.1, weight_decay=0.2, **section), ours)
    other = make(theirs.parameters())
    for _ in range(3):
        for network, optimizer in ((ours, one), (theirs, other)):
            optimizer.zero_grad()
            functional.cross_entropy(network(IMAGES), LABELS).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for mine, wanted in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted)


def test_decay_reaches_norms_and_biases_unless_they_are_spared_and_nothing_that_is_frozen() -> None:
    network = Flat(norm=True)
    (group,) = new_optimizer(TrainSection(weight_decay=0.2), network).param_groups
    assert len(group["params"]) == 4
    decayed, spared = new_optimizer(TrainSection(weight_decay=0.2, decay_norms=False), network).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.2, 0.0)
    assert decayed["params"] == [network.head.weight]
    network.norm.requires_grad_(False)
    (group,) = new_optimizer(TrainSection(), network).param_groups
    assert group["params"] == [network.head.weight, network.head.bias]


def test_the_average_follows_weights_and_statistics() -> None:
    network = Flat(norm=True)
    average = Average(network, 0.9)
    assert not any(it.requires_grad for it in average.module.parameters())
    start = network.head.weight.detach().clone()
    with torch.no_grad():
        for tensor in (*network.parameters(), network.get_buffer("norm.running_mean")):
            tensor.add_(1.0)
        network.get_buffer("norm.num_batches_tracked").add_(7)
    average.update(10_000)
    followed = dict(average.module.named_parameters()) | dict(average.module.named_buffers())
    torch.testing.assert_close(followed["head.weight"], start + 0.1)
    torch.testing.assert_close(followed["norm.running_mean"], torch.full((16,), 0.1))
    assert followed["norm.num_batches_tracked"] == 7
    average.update(1)  # the decay is 2 / 11 then
    torch.testing.assert_close(followed["head.weight"], start + 1 - 0.9 * 2 / 11)
    assert average.module.state_dict().keys() == network.state_dict().keys()
