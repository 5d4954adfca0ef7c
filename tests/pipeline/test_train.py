"""Training goes on to the same numbers after any interruption, refuses what does not fit, and loses nothing."""

from __future__ import annotations

import io
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from trueport.pipeline import checkpoint, run_folder
from trueport.pipeline.data import open_dataset, prepared
from trueport.pipeline.recipe import Recipe, load_recipe, recipe_from_table
from trueport.pipeline.run_folder import Run, RunInfo
from trueport.pipeline.train import train
from trueport.pipeline.training import records
from trueport.runtime.errors import MissingError, UsageError

EPOCHS, STEPS = 3, 4  # 20 training pictures in batches of 6, the last of 2


class StoppedError(Exception):
    """Stands for whatever ends a process in the middle."""


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of upright and lying bars in noise, 12 of each."""
    root = tmp_path_factory.mktemp("data") / "bars"
    chance = np.random.default_rng(0)
    for name in ("lying", "upright"):
        (root / name).mkdir(parents=True)
        for index in range(12):
            pixels = chance.integers(0, 100, (16, 16), np.uint8)
            place = chance.integers(2, 12)
            pixels[place : place + 3] = 255
            Image.fromarray(pixels if name == "lying" else pixels.T.copy()).save(root / name / f"{index}.png")
    return root


def recipe(bars: Path, **changes: Any) -> Recipe:
    table: dict[str, Any] = {
        "name": "bars",
        "data": {"source": str(bars), "validation": 0.1, "test": 0.1},
        "train": {"epochs": EPOCHS, "batch_size": 6, "learning_rate": 0.003, "device": "cpu"},
        "augment": {"shift_px": 2},
    }
    return recipe_from_table(table, [f"{key.replace('__', '.')}={value}" for key, value in changes.items()])


@pytest.fixture(scope="module")
def whole(bars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe(bars), out)
    return out


def stop_at(epoch: int, step: int, error: BaseException) -> Callable[[int, int], None]:
    def after_step(*now: int) -> None:
        if now == (epoch, step):
            raise error

    return after_step


def numbers(out: Path) -> dict[str, Any]:
    """All that a run says, the clock left out."""
    metrics = [msgspec.structs.replace(line, seconds=0, images_per_s=0) for line in Run.open(out).metrics()]
    last = checkpoint.load_checkpoint(out / run_folder.LAST)
    tensors = {
        f"{key}.{name}": value for key, entry in last.optimizer["state"].items() for name, value in entry.items()
    }
    tensors |= last.model
    return {
        "info": msgspec.structs.replace(Run.open(out).info, seconds=0),
        "metrics": metrics,
        "weights": (out / run_folder.WEIGHTS).read_bytes(),
        "last": {name: value.numpy().tobytes() for name, value in tensors.items()},
        "groups": last.optimizer["param_groups"],
        "state": msgspec.structs.replace(last.state, seconds=0),
        "recipe": (out / run_folder.RECIPE).read_text(),
    }


def test_a_run_holds_what_it_says(whole: Path, bars: Path) -> None:
    run = Run.open(whole)
    info = run.info
    assert [line.epoch for line in run.metrics()] == [1, 2, 3]
    assert run.recipe() == recipe(bars)
    assert info.labels == ("lying", "upright")
    assert (info.train_count, info.validation_count, info.test_count) == (20, 2, 2)
    assert info.preprocessing.shape == (32, 32, 1)
    best = max(run.metrics(), key=lambda line: (line.validation_score, -line.validation_loss, -line.epoch))
    assert (info.best_epoch, info.validation_score) == (best.epoch, best.validation_score)
    assert list((whole / run_folder.TENSORBOARD).iterdir())


def test_the_accuracy_is_that_of_the_weights_on_the_test_part(whole: Path) -> None:
    run = Run.open(whole)
    dataset, parts = run.data()
    pictures = torch.from_numpy(prepared(dataset, parts.test, run.info.preprocessing))
    mean, std = run.info.normalisation.mean[0], run.info.normalisation.std[0]
    with torch.inference_mode():
        logits = run.model()(((pictures.float() / 255 - mean) / std).permute(0, 3, 1, 2))
    right = (logits.argmax(1).numpy() == dataset.labels[parts.test]).mean()
    assert run.info.test_score == pytest.approx(right)


@pytest.mark.parametrize("when", [(1, 1), (1, STEPS), (2, 3), (3, 1), (3, STEPS)])
def test_going_on_after_an_interruption_gives_the_same_bits(
    when: tuple[int, int], whole: Path, bars: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        train(recipe(bars), tmp_path / "run", after_step=stop_at(*when, StoppedError()))
    with pytest.raises(UsageError, match="is not finished" if when[0] > 1 else "there is no folder"):
        Run.open(tmp_path / "run")
    train(recipe(bars), tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(whole)


@pytest.mark.parametrize("function", ["append_metrics", "save_checkpoint", "write_info"])
def test_going_on_after_a_stop_between_two_writes_gives_the_same_bits(
    function: str, whole: Path, bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = records if function == "save_checkpoint" else run_folder
    calls: Iterator[int] = iter(range(100))
    write = getattr(module, function)

    def stops_at_second(*arguments: object) -> None:
        if next(calls) == (0 if function == "write_info" else 1):
            raise StoppedError
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, stops_at_second)
        with pytest.raises(StoppedError):
            train(recipe(bars), tmp_path / "run")
    train(recipe(bars), tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"train__optimizer": "sgd", "train__schedule": "constant", "train__warmup_epochs": 0},
        {"train__optimizer": "adam", "train__label_smoothing": 0.1, "train__warmup_epochs": 9},
    ],
)
def test_every_optimizer_goes_on_to_the_same_bits(changes: dict[str, Any], bars: Path, tmp_path: Path) -> None:
    train(recipe(bars, **changes), tmp_path / "one")
    with pytest.raises(StoppedError):
        train(recipe(bars, **changes), tmp_path / "two", after_step=stop_at(2, 2, StoppedError()))
    train(recipe(bars, **changes), tmp_path / "two")
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")


def test_interrupting_keeps_the_last_complete_epoch(bars: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(bars), tmp_path, console=console, after_step=stop_at(3, 2, KeyboardInterrupt()))
    assert checkpoint.load_checkpoint(tmp_path / run_folder.LAST).state.epoch == 2
    assert "2 of 3 epochs are kept" in shown.getvalue()
    assert not (tmp_path / run_folder.RUN).exists()
    assert not list(tmp_path.glob(".*"))


def test_another_seed_gives_other_weights_and_global_randomness_is_left_alone(
    whole: Path, bars: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    train(recipe(bars, train__seed=1), tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert (tmp_path / run_folder.WEIGHTS).read_bytes() != (whole / run_folder.WEIGHTS).read_bytes()


def test_a_finished_run_is_answered_and_not_trained_again(whole: Path, bars: Path) -> None:
    def never(*_: int) -> None:
        raise AssertionError("a finished run was trained")

    before = (whole / run_folder.LAST).read_bytes()
    info = train(recipe(bars), whole, after_step=never)
    assert info == Run.open(whole).info
    assert (whole / run_folder.LAST).read_bytes() == before


def test_another_recipe_is_refused_by_what_differs_unless_started_afresh(bars: Path, tmp_path: Path) -> None:
    train(recipe(bars, train__epochs=1), tmp_path)
    for finished in (True, False):
        if not finished:
            (tmp_path / run_folder.RUN).unlink()
        with pytest.raises(
            UsageError, match=r"different in augment.shift_px \(was 2, is 0\), train.epochs \(was 1, is 2\)"
        ):
            train(recipe(bars, train__epochs=2, augment__shift_px=0), tmp_path)
        with pytest.raises(UsageError, match=r"different in the split .* discard this one with --afresh$"):
            train(recipe(bars, train__epochs=1, data__seed=7), tmp_path)
    info = train(recipe(bars, train__epochs=2), tmp_path, resume=False)
    assert info.epochs == 2
    assert [line.epoch for line in Run.open(tmp_path).metrics()] == [1, 2]


def test_what_training_does_not_depend_on_may_change(bars: Path, tmp_path: Path) -> None:
    first = train(recipe(bars, train__epochs=1), tmp_path)
    again = train(recipe(bars, train__epochs=1, bench__seconds=9.0), tmp_path)
    assert again.weights_sha256 == first.weights_sha256
    assert Run.open(tmp_path).recipe().bench.seconds == 9.0
    assert load_recipe(tmp_path / run_folder.RECIPE) == Run.open(tmp_path).recipe()
    (tmp_path / run_folder.RECIPE).unlink()
    train(recipe(bars, name="beams", train__epochs=1, check__runner=["onnxruntime:cuda"]), tmp_path)
    for found in (load_recipe(tmp_path / run_folder.RECIPE), Run.open(tmp_path).recipe()):
        assert (found.name, found.check.runner, found.bench.seconds) == ("beams", ("onnxruntime:cuda",), 2.0)


def with_a_broken_picture(bars: Path, root: Path) -> Path:
    shutil.copytree(bars, root)
    broken = root / "upright" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    return root


def test_a_broken_picture_is_named_before_the_first_epoch(bars: Path, tmp_path: Path) -> None:
    root = with_a_broken_picture(bars, tmp_path / "bars")

    def never(*_: int) -> None:
        raise AssertionError("training began")

    with pytest.raises(UsageError, match=r"pictures of bars can't be used: upright/3\.png"):
        train(recipe(root), tmp_path / "run", after_step=never)
    assert not (tmp_path / "run").exists()


def test_cuda_that_is_absent_is_missing(bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingError, match="sees no CUDA device"):
        train(recipe(bars, train__device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_training_afresh_that_fails_leaves_the_run_that_was_there(whole: Path, bars: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    before = contents(out)
    with pytest.raises(UsageError, match="can't be used"):
        train(recipe(with_a_broken_picture(bars, tmp_path / "bars")), out, resume=False)
    with pytest.raises(UsageError, match="has diverged"):
        train(recipe(bars, train__optimizer="sgd", train__learning_rate=1e9), out, resume=False)
    shown = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        train(
            recipe(bars, train__seed=1),
            out,
            resume=False,
            console=Console(file=shown, width=1000),
            after_step=stop_at(1, STEPS, KeyboardInterrupt()),
        )
    assert "no epoch was complete" in shown.getvalue()
    assert "discarded" not in shown.getvalue()
    assert contents(out) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_starting_afresh_says_what_it_discards_and_leaves_nothing_of_it(
    whole: Path, bars: Path, tmp_path: Path
) -> None:
    shown = io.StringIO()
    train(recipe(bars), tmp_path / "run", resume=False, console=Console(file=shown, width=1000))
    assert "discarded" not in shown.getvalue()
    train(recipe(bars, train__seed=3), tmp_path / "run", resume=False, console=Console(file=shown, width=1000))
    assert f"starting afresh: the run that was in {tmp_path / 'run'} is discarded" in shown.getvalue()
    assert Run.open(tmp_path / "run").info.seed == 3
    assert [line.epoch for line in Run.open(tmp_path / "run").metrics()] == [1, 2, 3]
    assert len(list((tmp_path / "run" / run_folder.TENSORBOARD).iterdir())) == 1


def test_a_run_of_another_setup_is_replaced_where_that_is_asked_for(whole: Path, bars: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    changed = recipe(bars, train__epochs=2)
    with pytest.raises(StoppedError):
        train(changed, out, replace=True, after_step=stop_at(2, 1, StoppedError()))
    assert checkpoint.load_checkpoint(out / run_folder.LAST).state.epoch == 1
    steps: list[int] = []
    assert train(changed, out, replace=True, after_step=lambda *now: steps.append(now[0])).epochs == 2
    assert set(steps) == {2}, "what was trained of the new setup is gone on with"
    assert train(changed, out, replace=True, after_step=stop_at(1, 1, StoppedError())).epochs == 2


@pytest.mark.parametrize("name", ["thesis.tex", run_folder.RECIPE, run_folder.WEIGHTS])
def test_a_foreign_folder_is_not_written_to(name: str, bars: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")
    for resume in (True, False):
        with pytest.raises(UsageError, match=r"is not empty and no run, which has run\.json or last\.safetensors or"):
            train(recipe(bars), tmp_path, resume=resume)
    assert contents(tmp_path) == {name: b"x"}


def test_what_trueport_run_has_begun_is_trained_in(bars: Path, tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text("{}")
    run_folder.write_recipe(tmp_path / run_folder.RECIPE, recipe(bars))
    assert train(recipe(bars, train__epochs=1), tmp_path).epochs == 1


def test_a_training_that_was_killed_before_its_first_checkpoint_can_be_repeated(
    whole: Path, bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(records, "save_checkpoint", stops)
        with pytest.raises(StoppedError):
            train(recipe(bars), tmp_path / "run")
    assert not (tmp_path / "run" / run_folder.LAST).exists()
    assert (tmp_path / "run" / run_folder.WEIGHTS).exists()
    train(recipe(bars), tmp_path / "run")
    assert numbers(tmp_path / "run") == numbers(whole)


def test_two_trainings_do_not_write_one_folder(whole: Path, bars: Path, tmp_path: Path) -> None:
    refused: list[str] = []

    def another(epoch: int, step: int) -> None:
        if step == 1:
            with pytest.raises(UsageError, match="another training is writing") as caught:
                train(recipe(bars), tmp_path / "run", resume=epoch > 1)
            refused.append(str(caught.value))

    train(recipe(bars), tmp_path / "run", after_step=another)
    assert len(refused) == EPOCHS
    assert numbers(tmp_path / "run") == numbers(whole)


def test_a_lock_is_left_by_a_killed_process_and_by_any_error(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holds = (
        "import sys, time; from pathlib import Path; from trueport.pipeline.run_folder import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", holds, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another training"), run_folder.locked(folder):
            pass
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(StoppedError), run_folder.locked(folder):
        (folder / "x").touch()
        raise StoppedError
    run_folder.refuse_foreign(folder)
    with run_folder.locked(folder):
        (folder / "x").unlink()
    assert not any(folder.iterdir()), "a lock alone is taken away"


def test_diverging_is_said_and_leaves_no_finished_run(bars: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"training has diverged: lower train\.learning_rate"):
        train(recipe(bars, train__optimizer="sgd", train__learning_rate=1e9), tmp_path)
    assert not (tmp_path / run_folder.RUN).exists()


def test_lines_elsewhere_than_on_a_terminal_have_no_control_characters(bars: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    train(recipe(bars), tmp_path, console=Console(file=shown))
    assert "epoch 3/3" in shown.getvalue()
    assert not {character for character in shown.getvalue() if ord(character) < 32} - {"\n"}


def test_colour_pictures_train_too(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    for name, shade in (("dark", 0), ("light", 155)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(5):
            pixels = chance.integers(shade, shade + 100, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.jpg")
    info: RunInfo = train(recipe(tmp_path / "data", train__epochs=1), tmp_path / "run")
    assert info.preprocessing.shape == (32, 32, 3)
    assert len(info.normalisation.mean) == 3
    assert not open_dataset(tmp_path / "data").grey
    assert math.isfinite(info.test_loss)
