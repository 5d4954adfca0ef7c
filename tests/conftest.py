"""What many tests need: a small trained run and the bundle exported from it, made once."""

from __future__ import annotations

import runpy
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.onnx._internal.exporter._registration import ONNXRegistry

from trueport.pipeline.export_run import export_run
from trueport.pipeline.recipe import Recipe, load_recipe
from trueport.pipeline.train import train

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs are deaf to Ctrl-C, and the programs that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The digits recipe, three epochs of it: enough to be right about nine in ten."""
    return load_recipe("digits", ["train.epochs=3", "export.golden=16", "bench.seconds=0.2"])


@pytest.fixture(scope="session")
def run_path(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; don't write into it."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    train(recipe, path)
    return path


@pytest.fixture(scope="session")
def bundle_path(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that run; don't write into it."""
    path, _ = export_run(run_path, tmp_path_factory.mktemp("bundles") / "digits.bundle")
    return path


@pytest.fixture
def own_bundle(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle_path, tmp_path / "own.bundle"))


@pytest.fixture(scope="session", autouse=True)
def exporter_functions() -> Iterator[None]:
    """torch's exporter reads the source of its five hundred functions anew for every export: here, once."""
    once = runpy.run_path(str(Path(__file__).with_name("forking.py")))["read_once"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(once(ONNXRegistry.from_torchlib)))
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `sweep`, hours of it, unless -m names it."""
    if "sweep" in str(config.option.markexpr):
        return
    left_out = [item for item in items if item.get_closest_marker("sweep")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("sweep")]


def pytest_unconfigure() -> None:
    """Forget the storages that torch's workers have shared: at the interpreter's end each would miss torch aloud."""
    from torch.multiprocessing.reductions import shared_cache

    shared_cache.clear()
