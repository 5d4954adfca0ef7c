"""ResNets in fp16 on an NVIDIA GPU beside eager and compiled PyTorch, written to docs/gpu.md: part of `make gpu`.

What is timed is what an application waits for: uint8 pictures in host memory in, float32 logits in host memory out.
Original and port take turns (trueport.runtime.timing). Without a GPU it says what is missing and ends with 3.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trueport import models
from trueport.export.bundle import Origin, write_bundle
from trueport.export.original import Original, served_module
from trueport.export.variants import Material
from trueport.pipeline.build import build
from trueport.runtime.atomic import write_text
from trueport.runtime.bundle import Bundle
from trueport.runtime.engine import EngineOptions, profiles_from_text
from trueport.runtime.errors import EXIT_MISSING, TrueportError
from trueport.runtime.flavours import FLAVOURS
from trueport.runtime.machine import describe_machine, find_gpus
from trueport.runtime.manifest import Normalisation, Preprocessing
from trueport.runtime.runner import Runner
from trueport.runtime.runners import open_runner
from trueport.runtime.runners.tensorrt import TensorRtRunner
from trueport.runtime.timing import Paired, compare

ARCHITECTURES = ("resnet18", "resnet50")
BATCHES = (1, 32, 128)
CLASSES, SIDE = 1000, 224
RUNNERS = ("onnxruntime:cuda", *FLAVOURS)
TIMED_RUNS = 50
REPORT = Path(__file__).parents[2] / "docs" / "gpu.md"

Call = Callable[[], Any]


def main() -> None:
    """Measure and write, or say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each figure")
    parser.add_argument("--out", type=Path, default=REPORT)
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        reason = find_gpus()[1] or f"torch {torch.__version__} sees no CUDA device"
        print(f"the GPU bench needs an NVIDIA GPU: {reason}", file=sys.stderr)
        raise SystemExit(EXIT_MISSING)
    warnings.simplefilter("ignore")
    lines = []
    for line in report(chosen.seconds):
        print(line, flush=True)
        lines.append(line)
    write_text(chosen.out, "\n".join(lines) + "\n")


def report(seconds: float) -> Iterator[str]:
    """The lines of the report, as they are measured."""
    machine = describe_machine()
    yield "# On a GPU"
    yield ""
    yield f"Measured {datetime.now(UTC):%Y-%m-%d} by `make gpu` on {torch.cuda.get_device_name()}, driver of CUDA"
    yield f"{torch.version.cuda} and {', '.join(f'{gpu.driver} ({gpu.memory_gib} GiB)' for gpu in machine.gpus)};"
    yield f"{machine.cpu}, {machine.cores} cores, {machine.os}."
    yield f"{', '.join(f'{name} {version}' for name, version in machine.versions.items())}."
    yield ""
    yield f"fp16, {SIDE} x {SIDE}, random weights, {CLASSES} classes; uint8 pictures in host memory, logits back there."
    yield "Originals are in fp16 too, channels last; compiled is `torch.compile(mode='max-autotune', dynamic=False)`."
    yield "A ratio is how many times faster the port is, with its 95 % interval; `outside` is the share of the engine's"
    yield "time that goes into anything but computing."
    yield ""
    yield "| architecture | batch | runner | port ms | images/s | to eager | to compiled | outside | max difference |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for arch in ARCHITECTURES:
            yield from rows(arch, Path(folder) / f"{arch}.bundle", seconds, missing)
    for runner, reason in missing.items():
        yield ""
        yield f"Not run: {runner}, {reason}."


def rows(arch: str, path: Path, seconds: float, missing: dict[str, str]) -> Iterator[str]:
    """A row of the table for each batch and runner of an architecture. missing: why a runner was not run."""
    original = new_original(arch)
    chance = np.random.default_rng(0)
    pictures = chance.integers(0, 256, (max(BATCHES), SIDE, SIDE, 3), dtype=np.uint8)
    write(original, path, pictures)
    eager = served_module(original, torch.float16).cuda().to(memory_format=torch.channels_last)
    compiled = torch.compile(eager, mode="max-autotune", dynamic=False)
    for name in RUNNERS:
        try:
            runner = opened(path, name)
        except TrueportError as error:
            missing[name] = str(error).rstrip(".")
            continue
        with closing(runner):
            for batch in BATCHES:
                yield row(arch, name, runner, pictures[:batch], (eager, compiled), seconds)


def row(
    arch: str, name: str, runner: Runner, images: NDArray[np.uint8], originals: tuple[Any, Any], seconds: float
) -> str:
    """One line of the table."""
    feeds = {"image": images}

    def port() -> Any:
        return runner.run(feeds)["logits"]

    calls = [torch_call(module, images) for module in originals]
    difference = float(np.abs(port() - calls[0]()).max())
    paired = [compare(call, port, seconds=seconds, min_blocks=5, rows=len(images)) for call in calls]
    outside = "–"
    if isinstance(runner, TensorRtRunner):
        shares = [runner.timed_run(feeds)[1].outside_compute for _ in range(TIMED_RUNS)]
        outside = f"{statistics.median(shares):.0%}"
    best = paired[0].b
    cells = (
        *(arch, str(len(images)), name, f"{best.median_ms:.3f}", f"{best.images_per_s:,.0f}"),
        *(ratio(each) for each in paired),
        *(outside, f"{difference:.2g}"),
    )
    return f"| {' | '.join(cells)} |"


def ratio(paired: Paired) -> str:
    """Such as `2.1x (2.0 to 2.2)`."""
    return f"{paired.ratio:.2f}x ({paired.ratio_low:.2f} to {paired.ratio_high:.2f})"


def torch_call(module: Any, images: NDArray[np.uint8]) -> Call:
    """The original as an application would call it: pinned upload, logits back in host memory."""
    host = torch.from_numpy(images.copy()).pin_memory()

    def call() -> Any:
        with torch.inference_mode():
            return module(host.to("cuda", non_blocking=True)).cpu().numpy()

    for _ in range(5):  # compiles, tunes and captures before anything is timed
        call()
    return call


def opened(path: Path, name: str) -> Runner:
    """The fp16 variant on a runner, its engine built where it takes one."""
    if name in FLAVOURS:
        batches = ",".join(map(str, BATCHES))
        build(path, flavour_name=name, variants=["fp16"], options=EngineOptions(profiles=profiles_from_text(batches)))
    return open_runner(Bundle.open(path), name, "fp16")


def new_original(arch: str) -> Original:
    """With random weights: they make no difference to the time."""
    torch.manual_seed(0)
    labels = tuple(f"{index:03}" for index in range(CLASSES))
    normalisation = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    module = models.create(arch, num_classes=CLASSES, channels=3)
    return Original(module, labels, Preprocessing(height=SIDE, width=SIDE), normalisation, arch)


def write(original: Original, path: Path, pictures: NDArray[np.uint8]) -> None:
    """A bundle of the original in fp32 and fp16."""
    some = pictures[:8]
    write_bundle(
        original,
        path,
        name=original.arch,
        origin=Origin("random", "", "", 0, {}),
        golden=some,
        pictures=(),
        evaluation=(some, np.zeros(len(some), np.int64)),
        precisions=("fp32", "fp16"),
        material=Material(some),
    )


if __name__ == "__main__":
    main()
