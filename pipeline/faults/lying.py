"""Runners that answer otherwise than the graph says, for faults to open in place of honest ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from trueport.runtime.bundle import Bundle
from trueport.runtime.manifest import TensorSpec
from trueport.runtime.runner import Array, Runner, RunnerOptions, RunnerReport

from ..deployment import Deployment
from .catalogue import Healthy

Lie = Callable[[Runner, Mapping[str, Array]], dict[str, Array]]
"""An honest runner and its feeds -> answers."""


def _honest(runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
    return runner.run(feeds)


@dataclass(frozen=True, eq=False)
class LyingRunner:
    """An honest runner, but for its answers or its report."""

    honest: Runner
    lie: Lie = _honest
    told: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the report in place of the honest ones."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """As of the honest one."""
        return self.honest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """As of the honest one."""
        return self.honest.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Answer one batch, wrongly."""
        return self.lie(self.honest, feeds)

    def report(self) -> RunnerReport:
        """What it says of itself."""
        return msgspec.structs.replace(self.honest.report(), **self.told)

    def close(self) -> None:
        """Close the honest one."""
        self.honest.close()


def served_by(healthy: Healthy, wrap: Callable[[Runner], Runner]) -> Deployment:
    """The healthy bundle, every runner of it wrapped as it is opened."""
    honest = healthy.deployment.open

    def open_wrapped(bundle: Bundle, runner: str, variant: str, options: RunnerOptions) -> Runner:
        return wrap(honest(bundle, runner, variant, options))

    return replace(healthy.deployment, open=open_wrapped)


def served_from(healthy: Healthy, other: Bundle) -> Deployment:
    """The healthy bundle, answered for by another one's graph of the same name."""
    honest = healthy.deployment.open

    def open_other(_: Bundle, runner: str, variant: str, options: RunnerOptions) -> Runner:
        return honest(other, runner, variant, options)

    return replace(healthy.deployment, open=open_other)
