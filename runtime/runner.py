"""The contract that every way of running a model satisfies: narrow, so that parity is a loop over runners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from .manifest import TensorSpec

Array = NDArray[Any]


class RunnerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner really does, read back from it rather than from what it was asked."""

    name: str
    """As on the command line: `onnxruntime:cpu`, `onnxruntime:cuda`, `original`."""
    provider: str
    device: str
    threads: int
    versions: dict[str, str]


class Runner(Protocol):
    """Runs one variant on one device. Safe to call from several threads."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes it takes; -1 is the batch."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Names, types and shapes it answers."""
        ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one batch; every output by name. Refuses names, types and shapes other than those of `inputs`."""
        ...

    def report(self) -> RunnerReport:
        """What this runner really is."""
        ...

    def close(self) -> None:
        """Free what it holds; it can't run afterwards."""
        ...


def run_in_batches(runner: Runner, images: NDArray[np.uint8], batch: int = 32) -> NDArray[Any]:
    """Logits (N, K) of all images (N, H, W, C), `batch` rows at a time; the last batch holds what is left."""
    image, logits = runner.inputs[0].name, runner.outputs[0].name
    starts = range(0, len(images), batch)
    return np.concatenate([runner.run({image: images[start : start + batch]})[logits] for start in starts])
