"""A small network with all that goes wrong: batch norms, dropout, an auxiliary head; a bundle of three precisions."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from trueport import models
from trueport.export.attribution.examine import examined
from trueport.export.attribution.subject import Subject
from trueport.export.bundle import Origin, write_bundle
from trueport.export.golden import answers, picture_cards
from trueport.export.int8 import Int8Options
from trueport.export.original import Original
from trueport.export.variants import Material
from trueport.models import registry
from trueport.runtime.bundle import Bundle, sealed
from trueport.runtime.explanation import Explanation
from trueport.runtime.manifest import MANIFEST, FileEntry, Manifest, Normalisation, Preprocessing
from trueport.runtime.runner import Runner, RunnerOptions
from trueport.runtime.runners import open_runner
from trueport.runtime.runners.written import open_written
from trueport.runtime.verdict import judged

SIZE = 16
CLASSES = ("ant", "bee", "cat", "dog", "eel")
Change = Callable[[onnx.ModelProto], None]


class Speck(nn.Module):
    """Two convolutions with batch norms, a pool between them, dropout, and a second head for training."""

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3)
        self.bn2 = nn.BatchNorm2d(12)
        self.drop = nn.Dropout(0.4)
        self.fc = nn.Linear(12 * 5 * 5, num_classes)
        self.aux = nn.Linear(8, num_classes)

    def forward(self, image: torch.Tensor) -> Any:
        maps = functional.relu(self.bn1(self.conv1(image)))
        aux = self.aux(maps.mean((2, 3)))
        maps = functional.max_pool2d(maps, 2)
        maps = functional.avg_pool2d(functional.relu(self.bn2(self.conv2(maps))), 2, ceil_mode=False)[:, :, :5, :5]
        if maps.shape[-1] < 5:
            maps = functional.pad(maps, (0, 2, 0, 2))
        logits = self.fc(self.drop(maps).flatten(1))
        return (logits, aux) if self.training else logits


def speck() -> Speck:
    torch.manual_seed(3)
    network = Speck(len(CLASSES))
    with torch.no_grad():
        for norm in (network.bn1, network.bn2):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.01, 0.3)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.2)
    return network


def pictures(count: int, seed: int) -> NDArray[np.uint8]:
    """uint8 (N, 16, 16, 3): coloured blocks with noise."""
    chance = np.random.default_rng(seed)
    blocks = chance.integers(0, 256, (count, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(blocks + chance.normal(0, 20, (count, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def speck_original(module: nn.Module | None = None) -> Original:
    return Original(
        module or speck(),
        CLASSES,
        Preprocessing(height=SIZE, width=SIZE),
        Normalisation((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)),
        "speck",
    )


@pytest.fixture(scope="session")
def speck_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle in fp32, fp16 and int8; don't write into it. Its labels are what the original answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_SPECS", dict(registry._SPECS))
        models.register("speck", summary="-", paper="-", url="-", size=(SIZE, SIZE))(Speck)
        path = tmp_path_factory.mktemp("speck") / "bundle"
        _write(path)
        yield path


@pytest.fixture
def own_speck(speck_path: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(speck_path, tmp_path / "own.bundle"))


def put(
    bundle: Path, name: str, data: bytes, change: Callable[[Manifest], Manifest] = lambda manifest: manifest
) -> None:
    """Put another file into a bundle and seal it as if it had been exported so."""
    (bundle / name).write_bytes(data)
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    entry = FileEntry(hashlib.sha256(data).hexdigest(), len(data))
    manifest = change(msgspec.structs.replace(manifest, files=manifest.files | {name: entry}))
    (bundle / MANIFEST).write_bytes(sealed(manifest))


def operate(bundle: Path, change: Change, variant: str = "fp32") -> None:
    """Graph surgery."""
    name = f"model.{variant}.onnx"
    model = onnx.load(bundle / name)
    change(model)
    put(bundle, name, model.SerializeToString())


@pytest.fixture(scope="session")
def surgery() -> Any:
    """Graph surgery on a bundle: `operate(bundle, change, variant)` seals what `change` makes of the graph."""
    return operate


def _write(path: Path) -> None:
    original = speck_original()
    held_out, validation = pictures(120, 1), pictures(60, 2)
    write_bundle(
        original,
        path,
        name="speck",
        origin=Origin("made up", "ab" * 32, "cd" * 32, 0, {}),
        golden=pictures(10, 0),
        pictures=picture_cards(),
        evaluation=(held_out, answers(original, held_out).argmax(1)),
        precisions=("fp16", "int8"),
        material=Material(pictures(32, 3), validation, answers(original, validation).argmax(1)),
        max_drop=8.0,
        int8=Int8Options(method="minmax"),
    )


@pytest.fixture(scope="session")
def healthy_subject(speck_path: Path) -> Subject:
    """The healthy bundle; its original, the graph that this exports to, and the stages before ONNX are made once."""
    subject = Subject(Bundle.open(speck_path))
    subject.fresh(subject.base)
    gates = {"parity": judged("parity", "fp32", "written", {"max_abs": 1.0}, {"max_abs": 0.1}, "a test")}
    examined(
        subject, subject.base, "written", gates, lambda bundle: open_written(bundle, bundle.variant(), RunnerOptions())
    )
    return subject


Explain = Callable[..., Explanation]


@pytest.fixture(scope="session")
def why(healthy_subject: Subject) -> Explain:
    """Why a variant on a runner fails such gates; what the healthy bundle has made already is taken over."""

    def explained(
        bundle: Path,
        variant: str = "fp32",
        runner: str = "onnxruntime:cpu",
        gates: Sequence[str] = ("parity",),
        opened: Callable[[Bundle], Runner] | None = None,
        **changes: Any,
    ) -> Explanation:
        subject = Subject(Bundle.open(bundle))
        subject.original = healthy_subject.original  # a cached property may be set
        subject._fresh = dict(healthy_subject._fresh)
        subject.links = {stage: healthy_subject.links[stage] for stage in ("original", "export")}
        for name, value in changes.items():
            setattr(subject, name, value)
        failed = {
            gate: judged(gate, variant, runner, {"max_abs": 1.0}, {"max_abs": 0.1}, "as the gate says")
            for gate in gates
        }
        default: Callable[[Bundle], Runner] = partial(open_runner, runner=runner, variant=variant)
        if runner == "written":
            default = lambda other: open_written(other, other.variant(variant), RunnerOptions())  # noqa: E731
        return examined(subject, subject.bundle.variant(variant), runner, failed, opened or default)

    return explained


@pytest.fixture(scope="session")
def speck_module(speck_path: Path) -> Callable[[], Original]:
    """The original anew, to be changed."""
    return speck_original
