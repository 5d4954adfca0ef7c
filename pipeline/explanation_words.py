"""Explanations in words: the stages as a row of steps, the first that departs, its first tensors, cause and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trueport.runtime.explanation import STAGES, Departure, Explanation, StageResult

from .wording import Limit, limit_words, number


@dataclass(frozen=True)
class Step:
    """One stage."""

    name: str
    compares: str
    status: str
    """`agrees`, `departs` or `not run`."""
    first: bool
    """Whether it is the first that departs."""
    limits: tuple[Limit, ...]
    detail: str


@dataclass(frozen=True)
class Tensor:
    """One tensor that departs."""

    layer: str
    name: str
    largest: str
    allowed: str
    times: str
    """Measured over allowed; empty where that is no number."""
    detail: str


@dataclass(frozen=True)
class Told:
    """One explanation, ready to be shown."""

    subject: str
    gates: str
    stage: str
    compares: str
    steps: tuple[Step, ...]
    tensors: tuple[Tensor, ...]
    cause: str
    confirmed: bool
    remedy: str
    float_layers: tuple[str, ...]

    @property
    def departs(self) -> bool:
        """Whether a stage was shown to depart: what samples can't tell departs nowhere."""
        return any(step.first for step in self.steps)


def told(explanations: Sequence[Explanation]) -> list[Told]:
    """All of them, in the order of the report."""
    return [_told(explanation) for explanation in explanations]


def _told(explanation: Explanation) -> Told:
    about = "" if explanation.runner == "-" else f" on {explanation.runner}"
    return Told(
        subject="the bundle" if explanation.variant == "-" else f"{explanation.variant}{about}",
        gates=" and ".join(explanation.gates),
        stage=explanation.stage,
        compares=STAGES[explanation.stage],
        steps=tuple(_step(result, explanation.stage) for result in explanation.stages),
        tensors=tuple(_tensor(departure) for departure in explanation.first),
        cause=explanation.cause,
        confirmed=explanation.confirmed,
        remedy=explanation.remedy,
        float_layers=explanation.float_layers,
    )


def _step(result: StageResult, first: str) -> Step:
    limits = tuple(limit_words(name, result.measured.get(name), allowed) for name, allowed in result.allowed.items())
    return Step(
        name=result.stage,
        compares=STAGES[result.stage],
        status=result.status,
        first=result.stage == first and result.status == "departs",
        limits=limits,
        detail=result.detail,
    )


def _tensor(departure: Departure) -> Tensor:
    times = departure.max_abs / departure.allowed if departure.max_abs is not None and departure.allowed > 0 else None
    return Tensor(
        layer=departure.layer,
        name=departure.tensor,
        largest=number(departure.max_abs),
        allowed=number(departure.allowed),
        times="" if times is None else number(times),
        detail=departure.detail,
    )
