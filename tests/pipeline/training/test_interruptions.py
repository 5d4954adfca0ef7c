"""However often a training is interrupted, and whatever it does besides, it ends at the same bits."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch

from trueport.pipeline import run_folder
from trueport.pipeline.checkpoint import load_checkpoint
from trueport.pipeline.recipe import Recipe
from trueport.pipeline.run_folder import Run
from trueport.pipeline.train import train

INTERRUPTIONS = 10
EVERYTHING: dict[str, Any] = {
    "train": {
        "epochs": 6, "accumulate": 2, "ema": 0.95, "amp": "bf16", "clip_norm": 1.0, "label_smoothing": 0.1,
        "class_weights": "balanced", "channels_last": True, "schedule": "one-cycle",
    },
    "augment": {"mixup": 0.3, "cutmix": 0.5, "shift_px": 1, "horizontal_flip": 0.5, "erase": 0.2},
}  # fmt: skip
OTHERS: dict[str, Any] = {
    "adagrad": {"train": {"optimizer": "adagrad", "schedule": "exponential", "gamma": 0.8}},
    "rmsprop": {
        "train": {"optimizer": "rmsprop", "schedule": "step", "step_epochs": 1, "loss": "binary-cross-entropy"}
    },
    "nesterov in fp16": {"train": {"optimizer": "sgd", "nesterov": True, "amp": "fp16", "channels_last": True}},
    "frozen": {"train": {"optimizer": "adam", "freeze": True, "decay_norms": False}},
}


class StoppedError(Exception):
    """Stands for whatever ends a process in the middle."""


def stopping_after(steps: int) -> Callable[[int, int], None]:
    left = iter(range(steps - 1, -1, -1))

    def after_step(*_: int) -> None:
        if not next(left):
            raise StoppedError

    return after_step


def numbers(out: Path) -> dict[str, Any]:
    """All that a run and its checkpoint say, the clock left out."""
    last = load_checkpoint(out / run_folder.LAST)
    return {
        "weights": safetensors.torch.load_file(out / run_folder.WEIGHTS),
        "last": safetensors.torch.load_file(out / run_folder.LAST),
        "scaler": last.scaler,
        "groups": last.optimizer["param_groups"],
        "state": msgspec.structs.replace(last.state, seconds=0),
        "metrics": [msgspec.structs.replace(it, seconds=0, images_per_s=0) for it in Run.open(out).metrics()],
        "scores": (Run.open(out).info.validation_score, Run.open(out).info.test_loss),
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for kind in ("weights", "last"):
        bits = [{name: value.numpy().tobytes() for name, value in it.pop(kind).items()} for it in (one, other)]
        assert bits[0] == bits[1], kind
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_ten_interruptions_change_nothing(workers: int, recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of(
        train=EVERYTHING["train"] | {"workers": workers},
        augment=EVERYTHING["augment"] | ({"randaugment": 1, "crop_scale": [0.7, 1.0]} if workers else {}),
    )
    train(recipe, tmp_path / "whole")
    assert Run.open(tmp_path / "whole").info.test_score > 0.5
    chance = random.Random(workers)  # an epoch has four steps
    for _ in range(INTERRUPTIONS):
        with pytest.raises(StoppedError):
            train(recipe, tmp_path / "often", after_step=stopping_after(chance.randint(1, 7)))
    assert load_checkpoint(tmp_path / "often" / run_folder.LAST).state.epoch >= 1
    train(recipe, tmp_path / "often")
    assert_same(numbers(tmp_path / "often"), numbers(tmp_path / "whole"))


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_every_way_to_learn_goes_on_to_the_same_bits(
    options: dict[str, Any], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = recipe_of(**options)
    train(recipe, tmp_path / "whole")
    with pytest.raises(StoppedError):
        train(recipe, tmp_path / "two", after_step=stopping_after(9))
    assert load_checkpoint(tmp_path / "two" / run_folder.LAST).state.epoch == 1
    train(recipe, tmp_path / "two")
    assert_same(numbers(tmp_path / "two"), numbers(tmp_path / "whole"))
