"""The contract that every way of running a model satisfies: narrow, so that parity is a loop over runners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
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
        """Answer one batch; every output by name."""
        ...

    def report(self) -> RunnerReport:
        """What this runner really is."""
        ...

    def close(self) -> None:
        """Free what it holds; it can't run afterwards."""
        ...
