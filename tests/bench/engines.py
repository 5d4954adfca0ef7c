"""How long an fp16 engine of each of our architectures takes to build, without a GPU: `make bench-engines`.

Printed as Markdown. `load` is reading the graph into TensorRT-RTX, `build` what comes after it; torch's export before
both is not timed. Nothing here passes or fails: on a busy machine run it again.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime

import torch

from trueport import models
from trueport.export.engine import engine_from_onnx
from trueport.export.graph import onnx_from_original
from trueport.export.original import Original
from trueport.runtime.engine import EngineOptions
from trueport.runtime.flavours import FLAVOURS
from trueport.runtime.machine import describe_machine
from trueport.runtime.manifest import Normalisation, Preprocessing
from trueport.runtime.runners.reached import shown

TARGETS = ("sm86", "sm120")
SIDE = 224
SMALL = 64
"""Pixels up to which an architecture keeps the size it was designed for."""
LEFT_OUT = {"resnet1202": "1,202 layers"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch", nargs="*", help="all where none is named")
    chosen = parser.parse_args().arch
    warnings.simplefilter("ignore")
    machine = describe_machine()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine.cpu}, {machine.cores} cores, {machine.os}")
    print(", ".join(f"{name} {version}" for name, version in machine.versions.items()))
    print(f"\nfp16 for {' and '.join(TARGETS)}, batches of 1 to 64; `processor`: its time in `build`\n")
    print("| architecture | pixels | load | build | processor | MiB | layers that compute |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows(chosen or [name for name in models.names() if name not in LEFT_OUT]):
        print(f"| {' | '.join(row)} |", flush=True)
    if not chosen:
        print("\n".join(f"\nLeft out: {name}, {why}." for name, why in LEFT_OUT.items()))


def rows(names: list[str]) -> Iterator[tuple[str, ...]]:
    """A row of the table for each architecture, as it is measured."""
    for name in names:
        original = untrained(name)
        graph = onnx_from_original(original, dtype=torch.float16).SerializeToString()
        height, width = original.preprocessing.height, original.preprocessing.width
        del original
        begun, phases = time.perf_counter(), Phases()
        engine = engine_from_onnx(graph, FLAVOURS["rtx"], TARGETS, EngineOptions(), tell=phases)
        load, processor = time.perf_counter() - begun - engine.seconds, time.process_time() - phases.began
        sizes = f"{len(engine.plan) / 2**20:.1f}"
        yield (
            name,
            f"{height} x {width}",
            f"{load:.2f} s",
            f"{engine.seconds:.2f} s",
            f"{processor:.2f} s",
            sizes,
            shown(engine.layers),
        )


class Phases:
    """Takes the process's time when the builder begins."""

    def __init__(self) -> None:
        self.began = 0.0

    def __call__(self, phase: str) -> None:
        self.began = self.began or time.process_time()


def untrained(name: str) -> Original:
    """With random weights, in the size that it was designed for where that is small."""
    torch.manual_seed(0)
    spec = models.spec(name)
    height, width = spec.size if max(spec.size) <= SMALL else (SIDE, SIDE)
    channels = 3 if 3 in spec.channels else spec.channels[0]
    return Original(
        models.create(name, num_classes=10, channels=channels),
        tuple("0123456789"),
        Preprocessing(height=height, width=width, mode="RGB" if channels == 3 else "L"),
        Normalisation((0.5,) * channels, (0.5,) * channels),
        name,
    )


if __name__ == "__main__":
    main()
