"""The contract that every way of running a model satisfies: narrow, so that parity is a loop over runners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .manifest import TensorSpec

Array = NDArray[Any]
MOST_THREADS = 1024
"""Of one inference; a file from elsewhere may ask for any number, and the libraries take what fits in 32 bits."""


class RunnerOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a variant is run. What a runner does not know it ignores; the answers are the same within the bounds.

    Raises UsageError for fewer than 1 thread, or more than `MOST_THREADS`.
    """

    threads: int | None = None
    """Of one inference; None: one for each core that this process may use."""
    graph_level: Literal["basic", "extended", "all"] = "all"
    """onnxruntime's optimisations. `all` changes the memory layout too, which slows some large convolutions."""
    spinning: bool = False
    """Let idle threads burn their cores for lower latency; off, as in a server they take them from others."""
    float_type: Literal["fp32", "bf16"] = "fp32"
    """What those layers of an int8 variant compute in that were left in float (openvino:cpu)."""

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise UsageError(
                f"threads must be at least 1 and at most {MOST_THREADS}, or None for one a core, found {self.threads}"
            )


class RunnerReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner really does, read back from it rather than from what it was asked."""

    name: str
    """As on the command line: `onnxruntime:cpu`, `openvino:cpu`, …, `original`."""
    provider: str
    device: str
    threads: int
    versions: dict[str, str]
    layers: dict[str, int] = {}
    """Layers that compute (convolutions, matrix products) by the type they really compute in, as the provider tells
    it; empty where it does not."""


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
