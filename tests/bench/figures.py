"""The figures of docs/numbers.md, measured on this machine and printed as Markdown: `make bench`.

Ratios and differences come from interleaved blocks (trueport.runtime.timing); whole processes are timed in turns.
Nothing here passes or fails: on a busy machine run it again.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from trueport.pipeline.bench import bench
from trueport.pipeline.run_folder import Run
from trueport.runtime import load
from trueport.runtime.machine import describe_machine
from trueport.runtime.runners.ort import OrtRunner
from trueport.runtime.timing import compare

PROCESSES = 15
IMPORT = "import numpy, onnxruntime, time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"


def main() -> None:
    """Measure and print."""
    machine = describe_machine()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine.cpu}, {machine.cores} cores, {machine.os}")
    print(", ".join(f"{name} {version}" for name, version in machine.versions.items()))
    print("\n| figure | measured |\n| --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, value in figures(Path(folder) / "demo"):
            print(f"| {name} | {value} |", flush=True)


def figures(out: Path) -> Iterator[tuple[str, str]]:
    """Name and value of each figure, as they are measured."""
    seconds = process_seconds("run", "digits", "--out", str(out))
    yield "the demo, all five stages, whole process", f"{seconds:.1f} s"
    info = Run.open(out).info
    yield "LeNet on held-out digits", f"{info.test_score:.2%} of {info.test_count}"
    yield from speed(out / "bundle")
    yield "Session.run over the bare InferenceSession.run, batch 1", session_overhead(out / "bundle")
    yield "trueport --help, whole process", spread(lambda: process_seconds("--help"))
    for statement in ("import trueport.runtime", "from trueport.runtime import load"):
        yield f"`{statement}` after numpy and onnxruntime", spread(lambda code=statement: import_seconds(code))  # type: ignore[misc]


def speed(bundle: Path) -> Iterator[tuple[str, str]]:
    """Port against original, with one thread each and with all."""
    for threads in sorted({1, describe_machine().cores}):
        for result in bench(bundle, seconds=4, threads=threads).batches:
            paired = result.paired
            if paired is None:
                continue
            name = f"port against eager original, batch {result.batch}, threads {threads}"
            times = f"{paired.b.median_ms:.3f} against {paired.a.median_ms:.3f} ms"
            yield name, f"{paired.ratio:.1f}x ({paired.ratio_low:.1f} to {paired.ratio_high:.1f}), {times}"


def session_overhead(bundle: Path) -> str:
    """What our own checks add to onnxruntime's call."""
    with load(bundle, threads=1) as session:
        images = session.bundle.evaluation().images[:1]
        runner = session.runner
        if not isinstance(runner, OrtRunner):
            raise TypeError(f"expected the onnxruntime runner, found {type(runner).__name__}")
        bare = runner._session  # the object an application without trueport would hold
        feeds = {"image": images}
        paired = compare(
            lambda: session.run(images), lambda: bare.run(["logits"], feeds), seconds=4, min_blocks=20, rows=1
        )
    bare_us = paired.b.median_ms * 1000
    low, added, high = ((ratio - 1) * bare_us for ratio in (paired.ratio_low, paired.ratio, paired.ratio_high))
    return f"{added:+.1f} us ({low:+.1f} to {high:+.1f}) on {bare_us:.0f} us"


def process_seconds(*arguments: str) -> float:
    """Wall time of a whole `trueport` process. Raises CalledProcessError where it fails."""
    begun = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("trueport"), *arguments], check=True, capture_output=True)
    return time.perf_counter() - begun


def import_seconds(code: str) -> float:
    """Seconds of a statement in a fresh process that has imported numpy and onnxruntime."""
    done = subprocess.run([sys.executable, "-c", IMPORT.format(code)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def spread(measure: Callable[[], float]) -> str:
    """Median of several processes, with the fastest and the slowest."""
    values = sorted(measure() for _ in range(PROCESSES))
    return f"{statistics.median(values):.3f} s ({values[0]:.3f} to {values[-1]:.3f})"


if __name__ == "__main__":
    main()
