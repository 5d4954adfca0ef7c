"""The command in this process; and bundles made by hand, nothing trained: which quarters of a picture are bright?"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from trueport import models
from trueport.export.bundle import Origin, write_bundle
from trueport.export.golden import picture_cards
from trueport.export.original import Original
from trueport.models import registry
from trueport.pipeline import cli
from trueport.runtime.manifest import Normalisation, Preprocessing, Task

SIZE = (10, 6)
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
GAIN = 12.0


class Quarters(nn.Module):
    """Logits are the mean brightness of each quarter, above or below a half."""

    def __init__(self, num_classes: int, channels: int = 1) -> None:
        super().__init__()
        if (num_classes, channels) != (4, 1):
            raise models.ModelArgumentError("quarters has four labels and one channel")
        self.gain = nn.Parameter(torch.tensor(GAIN))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.gain * functional.avg_pool2d(image - 0.5, (5, 3)).flatten(1)


def bright(truth: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """Pictures uint8 (N, 10, 6, 1) of rows of four 0 or 1, so noisy that some are taken for another."""
    chance = np.random.default_rng(seed)
    level = 128 + (truth.astype(np.int64) * 2 - 1) * 40 + chance.normal(0, 40, truth.shape)
    pixels = level.reshape(-1, 2, 2).repeat(5, axis=1).repeat(3, axis=2) + chance.normal(0, 10, (len(truth), *SIZE))
    return np.clip(pixels, 0, 255).astype(np.uint8)[..., np.newaxis]


def quarters_bundle(folder: Path, task: Task, rows: int = 120) -> Path:
    """A bundle whose original is `Quarters`, and whose evaluation slice it does not get right throughout."""
    original = Original(
        Quarters(4), QUARTERS, Preprocessing(height=SIZE[0], width=SIZE[1], mode="L"), Normalisation((0.0,), (1.0,)),
        "quarters", task=task,
    )  # fmt: skip
    chance = np.random.default_rng(1)
    labels = chance.integers(0, 4, rows)
    truth = np.eye(4, dtype=np.uint8)[labels]
    if task == "multilabel":
        truth = (chance.random((rows, 4)) < 0.4).astype(np.uint8)
    write_bundle(
        original,
        folder,
        name="quarters",
        origin=Origin("made up", "ab" * 32, "cd" * 32, 0, {}),
        golden=bright(truth[:8], seed=2),
        pictures=picture_cards()[:1],
        evaluation=(bright(truth), truth if task == "multilabel" else labels),
    )
    return folder


@pytest.fixture
def trueport(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trueport", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def small_heap(bundle_path: Path) -> Iterator[None]:
    """For tests that time: what torch and an export leave is most of a second's work for each collection before it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def quarters() -> Iterator[None]:
    """`quarters` in the catalogue, so that the original can be rebuilt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_SPECS", dict(registry._SPECS))
        models.register("quarters", summary="-", paper="-", url="-", size=SIZE, channels=(1,))(Quarters)
        yield


@pytest.fixture(scope="session")
def one_label_bundle(quarters: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The brightest quarter; don't write into it."""
    return quarters_bundle(tmp_path_factory.mktemp("one") / "bundle", "classification")


@pytest.fixture(scope="session")
def labels_bundle(quarters: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every bright quarter; don't write into it."""
    return quarters_bundle(tmp_path_factory.mktemp("several") / "bundle", "multilabel")
