"""Checkpoints come back as they were, without pickle; runs that don't fit their weights are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch
from torch import nn

from trueport import models
from trueport.pipeline import run_folder
from trueport.pipeline.checkpoint import Checkpoint, State, load_checkpoint, save_checkpoint
from trueport.pipeline.recipe import recipe_from_table
from trueport.pipeline.run_folder import EpochMetrics, Run, RunInfo
from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Normalisation, Preprocessing

STATE = State(epoch=3, best_epoch=2, best_score=0.1 + 0.2, best_loss=1e-17, seconds=1.5, setup={"train.epochs": 5})


def trained(kind: type[torch.optim.Optimizer], **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = kind(model.parameters(), **options)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(5, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.AdamW, {"lr": 1e-3, "betas": (0.8, 0.9)}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.SGD, {"lr": 0.1}),
    ],
)
def test_round_trip(kind: type[torch.optim.Optimizer], options: dict[str, Any], tmp_path: Path) -> None:
    model, optimizer = trained(kind, **options)
    save_checkpoint(tmp_path / "last", Checkpoint(model.state_dict(), optimizer.state_dict(), STATE))
    found = load_checkpoint(tmp_path / "last")
    assert found.state == STATE
    assert found.optimizer["param_groups"] == optimizer.state_dict()["param_groups"]
    for name, value in model.state_dict().items():
        assert torch.equal(found.model[name], value)
        assert found.model[name].dtype == value.dtype
    expected = optimizer.state_dict()["state"]
    assert found.optimizer["state"].keys() == expected.keys()
    for key, entries in expected.items():
        assert found.optimizer["state"][key].keys() == entries.keys()
        for name, value in entries.items():
            torch.testing.assert_close(found.optimizer["state"][key][name], value, rtol=0, atol=0)
    fresh = kind(model.parameters(), **options)
    fresh.load_state_dict(found.optimizer)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = trained(torch.optim.SGD, lr=0.1)
    save_checkpoint(tmp_path / "last", Checkpoint(model.state_dict(), optimizer.state_dict(), STATE))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    later = msgspec.structs.replace(STATE, epoch=4)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "last", Checkpoint(model.state_dict(), optimizer.state_dict(), later))
    assert load_checkpoint(tmp_path / "last").state.epoch == 3
    assert [file.name for file in tmp_path.iterdir()] == ["last"]


def test_damaged_and_newer_checkpoints_are_refused(tmp_path: Path) -> None:
    model, optimizer = trained(torch.optim.SGD, lr=0.1)
    newer = msgspec.structs.replace(STATE, schema=99)
    save_checkpoint(tmp_path / "last", Checkpoint(model.state_dict(), optimizer.state_dict(), newer))
    with pytest.raises(UsageError, match="has schema 99"):
        load_checkpoint(tmp_path / "last")
    data = (tmp_path / "last").read_bytes()
    for broken in (data[:50], data[:-4], b"", safetensors.torch.save({"x": torch.zeros(1)})):
        (tmp_path / "last").write_bytes(broken)
        with pytest.raises(UsageError, match="can't go on from"):
            load_checkpoint(tmp_path / "last")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run of three classes that was never trained."""
    model = models.create("lenet", num_classes=3, channels=1)
    (tmp_path / run_folder.WEIGHTS).write_bytes(safetensors.torch.save(model.state_dict()))
    info = RunInfo(
        task="classification",
        metric="top-1 accuracy",
        arch="lenet",
        arch_args={},
        labels=("ant", "bee", "cat"),
        preprocessing=Preprocessing(height=32, width=32, mode="L"),
        normalisation=Normalisation((0.5,), (0.5,)),
        data="insects",
        data_sha256="0" * 64,
        split_sha256="1" * 64,
        weights_sha256=run_folder.file_sha256(tmp_path / run_folder.WEIGHTS),
        seed=0,
        epochs=1,
        best_epoch=1,
        validation_score=0.5,
        validation_loss=1.0,
        test_score=0.5,
        test_loss=1.0,
        train_count=7,
        validation_count=1,
        test_count=2,
        parameters=1,
        seconds=1.0,
        device="cpu",
        versions=run_folder.versions(),
        recipe=run_folder.recipe_table(recipe_from_table({"name": "insects"})),
    )
    run_folder.write_info(tmp_path / run_folder.RUN, info)
    return tmp_path


def test_a_run_gives_back_its_model_in_eval_mode(folder: Path) -> None:
    run = Run.open(folder)
    assert run.recipe() == recipe_from_table({"name": "insects"})
    assert not run.model().training
    original = run.original()
    assert original.labels == ("ant", "bee", "cat")
    stored = safetensors.torch.load_file(folder / run_folder.WEIGHTS)
    assert all(torch.equal(value, stored[name]) for name, value in run.weights().items())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_classes": 7, "channels": 1}, r"trained for 7 classes, the run has 3 \(ant, bee, cat"),
        ({"num_classes": 3, "channels": 3}, "conv1.weight as .*, the model expects"),
        ({"num_classes": 3, "channels": 1}, "is not the file whose accuracy run.json states"),
    ],
)
def test_weights_of_another_model_are_refused(folder: Path, arguments: dict[str, int], sentence: str) -> None:
    other = models.create("lenet", **arguments)
    (folder / run_folder.WEIGHTS).write_bytes(safetensors.torch.save(other.state_dict()))
    with pytest.raises(UsageError, match=sentence):
        Run.open(folder).weights()


def test_damaged_runs_are_refused(folder: Path) -> None:
    weights = (folder / run_folder.WEIGHTS).read_bytes()
    (folder / run_folder.WEIGHTS).write_bytes(weights[:1000])
    with pytest.raises(UsageError, match=r"can't read .*weights"):
        Run.open(folder).model()
    (folder / run_folder.WEIGHTS).write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    with pytest.raises(UsageError, match="of another architecture"):
        Run.open(folder).model()
    (folder / run_folder.WEIGHTS).unlink()
    with pytest.raises(UsageError, match="has lost its weights"):
        Run.open(folder)


def test_what_is_no_run_is_refused_and_says_why(folder: Path, tmp_path: Path) -> None:
    text = (folder / run_folder.RUN).read_text()
    (folder / run_folder.WEIGHTS).touch()
    for broken, sentence in (
        (text.replace('"schema": 2', '"schema": 9'), "has schema 9, this trueport reads 2"),
        (text.replace('"labels"', '"lables"'), "it is damaged"),
        (text[:40], "it is damaged"),
    ):
        (folder / run_folder.RUN).write_text(broken)
        with pytest.raises(UsageError, match=sentence):
            Run.open(folder)
    (folder / run_folder.RUN).unlink()
    with pytest.raises(UsageError, match="is not a run"):
        Run.open(folder)
    (folder / run_folder.LAST).touch()
    with pytest.raises(UsageError, match="is not finished"):
        Run.open(folder)
    with pytest.raises(UsageError, match="there is no folder"):
        Run.open(tmp_path / "nowhere")


def test_metrics_end_where_the_file_was_cut_and_at_the_epoch_asked_for(tmp_path: Path) -> None:
    path = tmp_path / run_folder.METRICS
    lines = [
        EpochMetrics(
            epoch=epoch,
            learning_rate=0.1,
            train_loss=1 / 3,
            validation_loss=0.5,
            validation_score=0.9,
            seconds=1.0,
            images_per_s=10.0,
        )
        for epoch in (1, 2, 3)
    ]
    for line in lines:
        run_folder.append_metrics(path, line)
    assert run_folder.read_metrics(path) == lines
    path.write_bytes(path.read_bytes()[:-10])
    assert run_folder.read_metrics(path) == lines[:2]
    assert run_folder.read_metrics(path, until=1) == lines[:1]
    run_folder.write_metrics(path, lines[:1])
    assert len(path.read_text().splitlines()) == 1
    assert run_folder.read_metrics(tmp_path / "none") == []
