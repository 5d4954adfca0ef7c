"""A tuned port beside its original, and beside what one gets by hand: `make bench-ports BUNDLES="one two"`.

Each bundle is loaded as an application loads it, so that the choice `trueport tune` made for this machine is used: the
one for latency at batch 1, the one for throughput at batch 32. It is timed in ABBA blocks in one process
(trueport.runtime.timing) against the eager float32 original, and against each library used bare, with its defaults, on
the same graphs: onnxruntime and OpenVINO, float32 and int8. Nothing here passes or fails: on a busy
machine run it again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from trueport.export.original import original_runner
from trueport.pipeline.bench import Load, tiled
from trueport.runtime import load
from trueport.runtime.bundle import Bundle
from trueport.runtime.machine import describe_machine
from trueport.runtime.runners.openvino_cpu import shared_core
from trueport.runtime.timing import Paired, compare
from trueport.runtime.tuned import Prefer, find_choice

Images = NDArray[np.uint8]
Call = Callable[[], object]
INT8 = "int8-cpu"


def main() -> None:
    """Measure and print as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=8, help="for each comparison")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 32])
    options = parser.parse_args()
    machine = describe_machine()
    versions = ", ".join(f"{name} {machine.versions[name]}" for name in ("torch", "onnxruntime", "openvino"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine.cpu}, {machine.cores} cores, {versions}\n")
    print("| model | batch | tuned choice | images/s | over the eager original | best by hand | over it | busy |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for path in options.bundles:
        for batch in options.batch:
            print(row(path, batch, options.seconds), flush=True)


def row(path: Path, batch: int, seconds: float) -> str:
    """One bundle at one batch size."""
    bundle, busy = Bundle.open(path), Load(describe_machine().logical_cores)
    images = tiled(bundle.evaluation().images, batch)
    prefer: Prefer = "latency" if batch == 1 else "throughput"
    choice, _, _ = find_choice(bundle, prefer)
    with (
        load(path, prefer=prefer) as session,
        closing(original_runner(bundle, trust_code=True)) as original,
    ):
        tuned = partial(session.run, images)
        torch.set_num_threads(describe_machine().cores)
        eager = timed(partial(original.run, {"image": images}), tuned, seconds, batch)
        rivals = {name: timed(call, tuned, seconds, batch) for name, call in by_hand(bundle, images)}
        chosen = choice.described() if choice else session.chosen
    best = min(rivals, key=lambda name: rivals[name].ratio)
    return (
        f"| {bundle.manifest.provenance.arch} | {batch} | {chosen} | {eager.b.images_per_s:,.0f} | {ratio(eager)} "
        f"| {best} | {ratio(rivals[best])} | {busy.others() or 0:.0%} |"
    )


def timed(rival: Call, tuned: Call, seconds: float, batch: int) -> Paired:
    """How many times faster the tuned port is."""
    return compare(rival, tuned, seconds=seconds, min_blocks=5, rows=batch)


def ratio(paired: Paired) -> str:
    """With its interval, and the noise of the same minute."""
    return f"{paired.ratio:.2f}x ({paired.ratio_low:.2f} to {paired.ratio_high:.2f}, noise {paired.noise:.2f})"


def by_hand(bundle: Bundle, images: Images) -> Iterator[tuple[str, Call]]:
    """Both libraries with nothing but their defaults, on the bundle's own graphs."""
    variants = {variant.name: variant.file for variant in bundle.manifest.variants}
    for name in ("fp32", INT8):
        if name not in variants:
            continue
        graph = bundle.read(variants[name])
        bare = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        yield f"onnxruntime {name}", partial(bare.run, None, {"image": images})
        core: Any = shared_core()
        compiled = core.compile_model(core.read_model(graph), "CPU")
        yield f"openvino {name}", partial(compiled.create_infer_request().infer, {"image": images})


if __name__ == "__main__":
    main()
