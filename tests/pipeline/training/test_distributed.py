"""Several processes reach what one reaches, started for real; and end together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from trueport.pipeline import run_folder
from trueport.pipeline.recipe import Recipe
from trueport.pipeline.run_folder import Run
from trueport.pipeline.train import train
from trueport.pipeline.training.distributed import Processes, joined
from trueport.runtime.errors import UsageError

SECONDS = 180


def launched(recipe: Recipe, out: Path, *more: str, processes: int = 2) -> subprocess.Popen[str]:
    """`trueport train` under torchrun, by this recipe."""
    file = out.with_suffix(".toml")
    run_folder.write_recipe(file, recipe)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--master-addr", "127.0.0.1", "--master-port", str(port), "--max-restarts", "0",
        "-m", "trueport.pipeline.cli", "train", "--recipe", str(file), "--out", str(out), *more,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def weights(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / run_folder.WEIGHTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd"},
        {
            "optimizer": "sgd",
            "nesterov": True,
            "accumulate": 2,
            "class_weights": "balanced",
            "ema": 0.9,
            "clip_norm": 0.5,
        },
    ],
)
def test_two_processes_reach_what_one_reaches_with_the_double_batch(
    options: dict[str, Any], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    # 50 pictures in batches of 2 x 7: the last one has 8. Not Adam, whose first steps go by the signs of gradients that
    # are nothing but rounding.
    model = {"arch": "lenet"}
    one = recipe_of(model=model, train=options | {"batch_size": 14}, augment={"shift_px": 1, "horizontal_flip": 0.5})
    two = recipe_of(model=model, train=options | {"batch_size": 7}, augment={"shift_px": 1, "horizontal_flip": 0.5})
    train(one, tmp_path / "one")
    code, out, err = ended(launched(two, tmp_path / "two"))
    assert code == 0, err
    assert len(out.splitlines()) == 1, out
    assert err.count("epoch 3/3") == 1
    alone, together = Run.open(tmp_path / "one"), Run.open(tmp_path / "two")
    assert together.info.processes == 2
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-6, atol=1e-6, msg=name)
    for mine, theirs in zip(together.metrics(), alone.metrics(), strict=True):
        assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-5)
        assert mine.validation_score == theirs.validation_score
    assert together.info.test_score == alone.info.test_score


@pytest.mark.slow
def test_processes_go_on_together_and_end_together(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of(model={"arch": "lenet"}, train={"epochs": 400, "batch_size": 4})
    process = launched(recipe, tmp_path / "run")
    give_up = time.monotonic() + SECONDS
    while not (tmp_path / "run" / run_folder.LAST).exists() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = ended(process)
    assert code != 0
    assert "epochs are kept" in err
    assert not (tmp_path / "run" / run_folder.RUN).exists()
    with pytest.raises(UsageError, match=r"different in processes \(was 2, is 1\)"):
        train(recipe, tmp_path / "run")


@pytest.mark.slow
def test_an_error_is_said_once_and_ends_all(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    code, _, err = ended(launched(recipe_of(model={"arch": "lenet"}), tmp_path / "run"))
    assert code != 0
    assert err.count("is not empty and no run") == 1
    assert "process 1 has stopped" in err or "SIGTERM" in err
    assert "defect of trueport" not in err


def test_without_a_launcher_there_is_one_process_and_half_a_launcher_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as processes:
        assert processes == Processes(torch.device("cpu"), 0, 1)
        assert processes.from_first(lambda: b"x") == b"x"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match=r"WORLD_SIZE is 2, but RANK, MASTER_PORT is not set"), joined("cpu"):
        pass
