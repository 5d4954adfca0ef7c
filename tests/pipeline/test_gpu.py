"""On an NVIDIA GPU: every variant is faithful on every runner, engines are built, loaded, refused; training learns.

`make gpu` runs these, then tests/bench/gpu.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trueport.export.engine import known_targets
from trueport.pipeline.build import build
from trueport.pipeline.check import check
from trueport.pipeline.export_run import export_run
from trueport.pipeline.recipe import Recipe, load_recipe
from trueport.pipeline.train import train
from trueport.runtime import load
from trueport.runtime.bundle import Bundle
from trueport.runtime.engine import EngineOptions, Sidecar, profiles_from_text, read_sidecar
from trueport.runtime.errors import BundleError, InvalidRequestError, MissingError, TrueportError
from trueport.runtime.flavours import FLAVOURS, installed_flavours
from trueport.runtime.runners import RUNNERS, open_runner
from trueport.runtime.runners.cuda import Cuda
from trueport.runtime.runners.tensorrt import TensorRtRunner, open_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

VARIANTS = ("fp32", "fp16", "bf16", "int8-gpu")
PROFILES = "1:8:64,64:128:256"
GPU_RUNNERS = [name for name, kind in RUNNERS.items() if kind.target == "gpu"]


@pytest.fixture(scope="module")
def all_variants(run_path: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of every variant for GPUs, without engines."""
    section = msgspec.structs.replace(recipe.export, precision=("fp32", "fp16", "bf16", "int8"))
    out = tmp_path_factory.mktemp("gpu") / "digits.bundle"
    return export_run(run_path, out, msgspec.structs.replace(recipe, export=section))[0]


def usable(flavour: str) -> None:
    """Skip with the reason where engines of the flavour can't run here."""
    kind = FLAVOURS[flavour]
    if kind not in installed_flavours():
        pytest.skip(f"{kind.module} is not installed")
    known, target = known_targets(kind), Cuda(flavour).device.target
    if known and target not in known:
        pytest.skip(f"{kind.title} has no target {target}")


@pytest.fixture(scope="module", params=list(FLAVOURS))
def flavour(request: pytest.FixtureRequest) -> str:
    usable(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def with_engines(all_variants: Path, flavour: str) -> Path:
    """The same bundle with an engine of each variant; don't damage them."""
    build(all_variants, flavour_name=flavour, options=EngineOptions(profiles=profiles_from_text(PROFILES)))
    return all_variants


@pytest.fixture
def runner(with_engines: Path, flavour: str) -> Iterator[TensorRtRunner]:
    bundle = Bundle.open(with_engines)
    made = open_engine(bundle, bundle.variant("fp16"), flavour)
    yield made
    made.close()


def pictures(path: Path, rows: int) -> NDArray[np.uint8]:
    images = Bundle.open(path).evaluation().images
    return images[np.arange(rows) % len(images)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", GPU_RUNNERS)
def test_every_gate_passes(all_variants: Path, name: str, variant: str) -> None:
    if name in FLAVOURS:
        usable(name)
        build(all_variants, flavour_name=name, variants=[variant])
    if (name, variant) == ("onnxruntime:cuda", "int8-gpu"):  # this provider has no integer convolution
        with pytest.raises(MissingError, match="in int8"):
            check(all_variants, variants=[variant], runners=[name])
        return
    try:
        report = check(all_variants, variants=[variant], runners=[name])
    except MissingError as error:
        if name == "onnxruntime:tensorrt":  # links TensorRT 10, which is not to be had beside 11
            pytest.skip(str(error))
        raise
    assert report, [(verdict.gate, verdict.measured, verdict.would_pass) for verdict in report.failed]
    assert report.runners[0].device.startswith("cuda")


def test_a_session_is_on_the_gpu(bundle_path: Path) -> None:
    with load(bundle_path, runner="onnxruntime:cuda") as session:
        assert session.report.provider == "CUDAExecutionProvider"
        evaluation = session.bundle.evaluation()
        assert (session.run(evaluation.images).argmax(1) == evaluation.logits.argmax(1)).all()


def test_layers_are_read_back_from_each_engine(with_engines: Path, flavour: str) -> None:
    found = {sidecar.identity.variant: sidecar for _, sidecar in sidecars(with_engines, flavour)}
    assert set(found) >= set(VARIANTS)
    for sidecar in found.values():
        assert sidecar.layers.get(sidecar.precision), sidecar.layers
        assert sidecar.identity.driver
    if flavour == "tensorrt":
        assert {sidecar.layers_from for sidecar in found.values()} == {"inspector"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_batch_is_the_same_as_its_rows(with_engines: Path, flavour: str, variant: str) -> None:
    bundle = Bundle.open(with_engines)
    allowed = bundle.variant(variant).bounds.max_abs
    runner = open_engine(bundle, bundle.variant(variant), flavour)
    images = pictures(with_engines, 256)
    alone = np.concatenate([runner.run({"image": image[np.newaxis]})["logits"] for image in images[:64]])
    for rows in (1, 2, 7, 8, 8, 8, 63, 64, 65, 128, 128, 128, 256):
        logits = runner.run({"image": images[:rows]})["logits"]
        assert np.abs(logits[:64] - alone[:rows]).max() <= 2 * allowed, rows
    with pytest.raises(InvalidRequestError, match="1 to 64 and 64 to 256"):
        runner.run({"image": pictures(with_engines, 257)})
    runner.close()


def test_threads_get_their_own_answers(runner: TensorRtRunner, with_engines: Path) -> None:
    batches = [np.roll(pictures(with_engines, 8 + seed % 60), seed, axis=0) for seed in range(200)]
    expected = [runner.run({"image": batch})["logits"] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda batch: runner.run({"image": batch})["logits"], batches))
    allowed = 2 * Bundle.open(with_engines).variant("fp16").bounds.max_abs
    assert max(np.abs(a - b).max() for a, b in zip(answers, expected, strict=True)) <= allowed


def test_captured_graphs_agree_with_plain_runs(with_engines: Path, flavour: str) -> None:
    bundle = Bundle.open(with_engines)
    on, off = (open_engine(bundle, bundle.variant("fp16"), flavour, graphs=graphs) for graphs in (True, False))
    allowed = bundle.variant("fp16").bounds.max_abs
    for rows in (8, 128, 5, 8, 128, 8):
        batch = np.roll(pictures(with_engines, rows), rows, axis=0)
        answers = [runner.run({"image": batch})["logits"] for runner in (on, off)]
        assert np.abs(answers[0] - answers[1]).max() <= allowed
    assert off.captured == ()
    if flavour == "tensorrt":
        assert on.captured == (8, 128)
    on.close()
    off.close()


def test_times_are_measured_on_the_device(runner: TensorRtRunner, with_engines: Path) -> None:
    batch = pictures(with_engines, 128)
    for _ in range(5):
        _, timing = runner.timed_run({"image": batch})
    assert min(timing) > 0
    assert timing.upload_ms + timing.compute_ms + timing.download_ms <= timing.total_ms * 1.1
    assert 0 < timing.outside_compute < 1


def sidecars(path: Path, flavour: str) -> list[tuple[Path, Sidecar]]:
    found = ((engine, read_sidecar(engine)) for engine in sorted((path / "engines").glob(f"{flavour}-*.engine")))
    return [(engine, sidecar) for engine, sidecar in found if sidecar is not None]


def refused(path: Path, flavour: str) -> TrueportError:
    with pytest.raises(TrueportError) as error:
        open_runner(Bundle.open(path), flavour, "fp16")
    assert "--rebuild" in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"targets": ("sm35",)}, MissingError, "on sm35, the GPU here is sm"),
        ({"version": "1.0"}, MissingError, "1.0 on"),
        ({"weights_sha256": "0" * 64}, BundleError, "other weights"),
        ({"graph_sha256": "0" * 64}, BundleError, "another graph"),
    ],
)
def test_an_engine_of_something_else_is_refused(
    with_engines: Path, flavour: str, tmp_path: Path, changed: dict[str, object], kind: type[Exception], words: str
) -> None:
    path = Path(shutil.copytree(with_engines, tmp_path / "own.bundle"))
    for engine, sidecar in sidecars(path, flavour):
        identity = msgspec.structs.replace(sidecar.identity, **changed)
        edited = msgspec.structs.replace(sidecar, identity=identity)
        engine.with_suffix(".json").write_bytes(msgspec.json.encode(edited))
    error = refused(path, flavour)
    assert isinstance(error, kind)
    assert words in str(error)


def test_a_truncated_engine_is_refused_and_built_again(with_engines: Path, flavour: str, tmp_path: Path) -> None:
    path = Path(shutil.copytree(with_engines, tmp_path / "own.bundle"))
    for engine, _ in sidecars(path, flavour):
        engine.write_bytes(engine.read_bytes()[:-64])
    assert isinstance(refused(path, flavour), BundleError)
    options = EngineOptions(profiles=profiles_from_text(PROFILES))
    (built,) = build(path, flavour_name=flavour, variants=["fp16"], options=options).engines
    assert built.built
    open_runner(Bundle.open(path), flavour, "fp16").close()


def test_a_full_gpu_says_what_fits(with_engines: Path, flavour: str) -> None:
    open_runner(Bundle.open(with_engines), flavour, "fp16").close()  # what CUDA itself takes is taken
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = []
    try:
        for size in (free, 2**28, 2**24, 2**21):  # less and less, until nothing is left
            try:
                while True:
                    taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                continue
        with pytest.raises(MissingError, match=r"rows fit|free some of its memory|can't make a context|out of memory"):
            open_runner(Bundle.open(with_engines), flavour, "fp16")
    finally:
        taken.clear()
        torch.cuda.empty_cache()
    open_runner(Bundle.open(with_engines), flavour, "fp16").close()


def test_training_on_cuda_learns(tmp_path: Path) -> None:
    info = train(load_recipe("digits", ["train.epochs=3", "train.device=cuda"]), tmp_path / "run")
    assert info.test_score > 0.8
