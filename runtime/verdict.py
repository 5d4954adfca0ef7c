"""The result of a gate: truthy or not, what was measured, what was allowed, the bound that would have passed."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

Status = Literal["passed", "failed", "undecided", "not run"]
"""undecided: it was measured, and the samples are too few or too much alike to tell. Never counted as passed."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One gate on one variant and runner.

    Each name in `allowed` is an upper limit on the measurement of the same name; `measured` may hold more.
    """

    gate: str
    """`evidence`, `labels`, `preprocessing`, `recording`, `contract`, `parity`, `batch invariance`, `accuracy`."""
    status: Status
    variant: str
    runner: str
    measured: dict[str, float | None] = {}
    """None where the value is NaN or infinite."""
    allowed: dict[str, float] = {}
    would_pass: dict[str, float | None] = {}
    """For each limit that was crossed, the bound that would have passed; None where no bound would."""
    needed: int | None = None
    """Samples that would decide it, where it is undecided for their number and more of the same would."""
    detail: str
    """One sentence for people: what was compared with what, or why it was not run or can't be told."""

    def __bool__(self) -> bool:
        """True only where the gate was evaluated and passed."""
        return self.status == "passed"


def _crossed(value: float | None, limit: float) -> bool:
    return value is None or value > limit


def judged(
    gate: str, variant: str, runner: str, measured: dict[str, float], allowed: dict[str, float], detail: str
) -> Verdict:
    """The verdict that follows from measurements and limits."""
    finite = {name: value if math.isfinite(value) else None for name, value in measured.items()}
    crossed = {name: finite[name] for name, limit in allowed.items() if _crossed(finite[name], limit)}
    return Verdict(
        gate=gate,
        status="failed" if crossed else "passed",
        variant=variant,
        runner=runner,
        measured=finite,
        allowed=allowed,
        would_pass=crossed,
        detail=detail,
    )


def undecided(
    gate: str,
    variant: str,
    runner: str,
    measured: dict[str, float],
    allowed: dict[str, float],
    detail: str,
    needed: int | None = None,
) -> Verdict:
    """The verdict of a gate whose samples don't tell; never counted as passed. needed: samples that would."""
    verdict = judged(gate, variant, runner, measured, allowed, detail)
    return msgspec.structs.replace(verdict, status="undecided", needed=needed)


def not_run(gate: str, variant: str, runner: str, why: str) -> Verdict:
    """The verdict of a gate that could not be evaluated here; never counted as passed."""
    return Verdict(gate=gate, status="not run", variant=variant, runner=runner, detail=why)
