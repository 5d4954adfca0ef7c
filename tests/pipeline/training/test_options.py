"""What a recipe's training keys do, from the recipe to the run that is exported."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from trueport import models
from trueport.models import registry
from trueport.pipeline import run_folder
from trueport.pipeline.bench import bench
from trueport.pipeline.check import check
from trueport.pipeline.checkpoint import load_checkpoint
from trueport.pipeline.data import Dataset
from trueport.pipeline.export_run import export_run
from trueport.pipeline.recipe import Recipe
from trueport.pipeline.report import write_report
from trueport.pipeline.run_folder import Run
from trueport.pipeline.train import train
from trueport.pipeline.training import epoch as epochs
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import MissingError, UsageError

Make = Callable[..., Recipe]


def test_patience_ends_a_training_that_gets_no_better(recipe_of: Make, tmp_path: Path) -> None:
    shown = io.StringIO()
    recipe = recipe_of(train={"epochs": 50, "patience": 2, "learning_rate": 1e-9, "warmup_epochs": 0})
    info = train(recipe, tmp_path, console=Console(file=shown, width=1000))
    assert info.epochs == info.best_epoch + 2 < 50
    assert f"none was better than epoch {info.best_epoch} for 2 epochs" in shown.getvalue()
    assert f"epoch {info.epochs}/50" in shown.getvalue(), "of many lines, the last is shown"
    (tmp_path / run_folder.RUN).unlink()
    assert train(recipe, tmp_path).epochs == info.epochs, "going on trains no further"


def test_the_average_is_what_is_kept_and_measured(recipe_of: Make, tmp_path: Path) -> None:
    train(recipe_of(train={"epochs": 1, "ema": 0.9}), tmp_path)
    last = load_checkpoint(tmp_path / run_folder.LAST)
    kept = safetensors.torch.load_file(tmp_path / run_folder.WEIGHTS)
    assert kept.keys() == last.average.keys() == last.model.keys()
    for name, value in kept.items():
        assert torch.equal(value, last.average[name])
        assert name.endswith("num_batches_tracked") or not torch.equal(value, last.model[name])


def test_a_frozen_backbone_stays_as_it_was(recipe_of: Make, tmp_path: Path) -> None:
    train(recipe_of(train={"epochs": 1, "learning_rate": 1e-9, "freeze": True}), tmp_path / "start")
    train(recipe_of(train={"epochs": 2, "learning_rate": 0.1, "freeze": True}), tmp_path / "end")
    start, end = (load_checkpoint(tmp_path / name / run_folder.LAST).model for name in ("start", "end"))
    changed = {name for name in start if not torch.allclose(start[name].float(), end[name].float(), atol=1e-6)}
    assert changed == {"head.weight", "head.bias"}


@pytest.mark.slow
def test_weights_that_are_given_become_a_run_without_an_epoch(recipe_of: Make, tmp_path: Path) -> None:
    module = models.create("tiny", num_classes=3, channels=1)
    file = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(module.state_dict(), file)
    recipe = recipe_of(model={"init": str(file)}, train={"epochs": 0}, export={"golden": 4})
    info = train(recipe, tmp_path / "run")
    assert (info.epochs, info.best_epoch) == (0, 0)
    run = Run.open(tmp_path / "run")
    assert run.metrics() == []
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in run.weights().items())
    path, _ = export_run(tmp_path / "run", tmp_path / "bundle")
    report = check(path)
    assert [verdict.gate for verdict in (*report.failed, *report.undecided)] == ["evidence"], "of a dozen pictures"
    write_report(tmp_path / "report.html", run, Bundle.open(path), report, bench(path, batches=(1,), seconds=0.05))
    with pytest.raises(UsageError, match=r"train.epochs is 0, .* set model.init"):
        train(recipe_of(train={"epochs": 0}), tmp_path / "other")


def test_a_head_that_nobody_has_trained_is_not_taken_as_it_is(recipe_of: Make, tmp_path: Path) -> None:
    file = tmp_path / "five.safetensors"
    safetensors.torch.save_file(models.create("tiny", num_classes=5, channels=1).state_dict(), file)
    with pytest.raises(UsageError, match=r"epochs is 0, but .*five.* does not bring .*head.* 3 classes"):
        train(recipe_of(model={"init": str(file)}, train={"epochs": 0}), tmp_path / "run")


def test_other_initial_weights_under_the_same_name_are_another_setup(recipe_of: Make, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    recipe = recipe_of(model={"init": str(file)}, train={"epochs": 0})
    for seed in (1, 2):
        torch.manual_seed(seed)
        safetensors.torch.save_file(models.create("tiny", num_classes=3, channels=1).state_dict(), file)
        if seed == 1:
            first = train(recipe, tmp_path / "run")
            assert train(recipe, tmp_path / "run") == first
    with pytest.raises(UsageError, match="different in the initial weights"):
        train(recipe, tmp_path / "run")


def test_several_labels_are_learnt_and_scored_by_precision(
    recipe_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Halves(Dataset):
        """Whether the left half is bright, and the upper one."""

        grey = True

        def __init__(self) -> None:
            chance = np.random.default_rng(0)
            marks = np.stack(np.divmod(np.arange(80) % 4, 2), 1).astype(np.uint8)
            super().__init__("halves", ("left", "upper"), [f"{it:02d}" for it in range(80)], marks)
            self._pixels = chance.integers(0, 100, (80, 16, 16), np.uint8)
            self._pixels[marks[:, 0] == 1, :, :8] += 120
            self._pixels[marks[:, 1] == 1, :8] += 30

        def encoded(self, index: int) -> bytes:
            file = io.BytesIO()
            Image.fromarray(self._pixels[index]).save(file, "PNG")
            return file.getvalue()

    monkeypatch.setattr("trueport.pipeline.train.open_dataset", lambda _: Halves())
    recipe = recipe_of(train={"epochs": 15, "learning_rate": 0.02, "class_weights": "balanced", "ema": 0.5})
    info = train(recipe, tmp_path)
    assert (info.task, info.metric) == ("multilabel", "mean average precision")
    assert info.test_score > 0.8
    assert math.isfinite(info.test_loss)


def test_a_training_that_diverges_ends_within_the_epoch(
    recipe_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "SECONDS_BETWEEN_NOTES", 0)
    steps: list[int] = []
    with pytest.raises(UsageError, match=r"the loss is nan in epoch 1, training has diverged: lower train.learning"):
        train(
            recipe_of(model={"arch": "lenet"}, train={"optimizer": "sgd", "learning_rate": 1e30, "warmup_epochs": 0}),
            tmp_path,
            after_step=lambda _, step: steps.append(step),
        )
    assert max(steps) < 7


def test_batch_norm_needs_more_than_one_picture(recipe_of: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"batch norm can't learn from batches of 1 picture: raise train.batch_size"):
        train(recipe_of(train={"batch_size": 1}), tmp_path / "one")
    info = train(recipe_of(train={"batch_size": 7, "epochs": 1}), tmp_path / "seven")
    assert info.train_count % 7 == 1, "the last batch has one picture"


def test_a_network_of_other_classes_is_refused(
    recipe_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stubborn(nn.Module):
        def __init__(self, num_classes: int, channels: int = 1) -> None:
            super().__init__()
            self.head = nn.Linear(256, 1000)

        def forward(self, image: torch.Tensor) -> Any:
            return self.head(image.flatten(1))

    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    models.register("stubborn", summary="-", paper="-", url="-", size=16, channels=(1,))(Stubborn)
    with pytest.raises(UsageError, match=r"answers \(8, 1000\) for 8 pictures, expected \(8, 3\)"):
        train(recipe_of(model={"arch": "stubborn"}), tmp_path)


def test_an_architecture_that_adapts_sees_normalised_training_pictures_once(
    recipe_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    class Adapting(nn.Module):
        def __init__(self, num_classes: int, channels: int = 1) -> None:
            super().__init__()
            self.head = nn.Linear(256, num_classes)
            self.threshold = nn.Buffer(torch.zeros(()))

        def adapt(self, images: torch.Tensor) -> None:
            seen.append(images)
            self.threshold.copy_(images.mean())

        def forward(self, image: torch.Tensor) -> Any:
            return self.head((image > self.threshold).float().flatten(1))

    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    models.register("adapting", summary="-", paper="-", url="-", size=16, channels=(1,))(Adapting)
    recipe = recipe_of(model={"arch": "adapting"}, train={"ema": 0.9, "epochs": 2})
    train(recipe, tmp_path)
    (images,) = seen
    assert images.shape == (Run.open(tmp_path).info.train_count, 1, 16, 16)
    assert images.min() == pytest.approx(-1, abs=0.02)
    assert Run.open(tmp_path).weights()["threshold"] == images.mean()
    (tmp_path / run_folder.RUN).unlink()
    train(recipe, tmp_path)
    assert len(seen) == 1, "going on, the threshold is in the checkpoint"


@pytest.mark.slow
def test_compiled_training_keeps_the_names_and_nearly_the_numbers(recipe_of: Make, tmp_path: Path) -> None:
    model = {"arch": "tiny", "args": {"dropout": 0.0}}
    recipes = [recipe_of(model=model, train={"epochs": 1, "compile": it, "optimizer": "sgd"}) for it in (False, True)]
    plain, compiled = (train(it, tmp_path / it.model.arch / str(it.train.compile)) for it in recipes)
    assert compiled.test_loss == pytest.approx(plain.test_loss, rel=1e-3)
    one, other = (Run.open(tmp_path / "tiny" / str(it)).weights() for it in (False, True))
    assert one.keys() == other.keys()


def test_a_missing_compiler_is_named(recipe_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(MissingError, match=r"needs a C\+\+ compiler on the CPU, found none: install g\+\+"):
        train(recipe_of(train={"compile": True}), tmp_path)
