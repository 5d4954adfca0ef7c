"""The result of a gate: truthy or not, what was measured, what was allowed, the bound that would have passed."""

from __future__ import annotations

from typing import Literal

import msgspec


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One gate on one variant and runner.

    Each name in `allowed` is a limit on the measurement of the same name: an upper one, or a lower one where the name
    starts with `min_`, in which case the measurement has the name without it. `measured` may hold more.
    """

    gate: str
    """`parity`, `batch invariance`, `preprocessing`, `accuracy`."""
    status: Literal["passed", "failed", "not run"]
    variant: str
    runner: str
    measured: dict[str, float] = {}
    allowed: dict[str, float] = {}
    detail: str
    """One sentence for people: what was compared with what, or why it was not run."""

    def __bool__(self) -> bool:
        """True only where the gate was evaluated and passed."""
        return self.status == "passed"

    @property
    def would_pass(self) -> dict[str, float]:
        """For each limit that was crossed, the bound that would have passed."""
        return {name: value for name, limit in self.allowed.items() if crossed(name, value := self._of(name), limit)}

    def _of(self, name: str) -> float:
        return self.measured[name.removeprefix("min_")]


def crossed(name: str, value: float, limit: float) -> bool:
    """Whether a measurement is beyond its limit; a NaN always is."""
    return not value >= limit if name.startswith("min_") else not value <= limit


def judged(
    gate: str, variant: str, runner: str, measured: dict[str, float], allowed: dict[str, float], detail: str
) -> Verdict:
    """The verdict that follows from measurements and limits."""
    failed = any(crossed(name, measured[name.removeprefix("min_")], limit) for name, limit in allowed.items())
    return Verdict(
        gate=gate,
        status="failed" if failed else "passed",
        variant=variant,
        runner=runner,
        measured=measured,
        allowed=allowed,
        detail=detail,
    )


def not_run(gate: str, variant: str, runner: str, why: str) -> Verdict:
    """The verdict of a gate that could not be evaluated here; never counted as passed."""
    return Verdict(gate=gate, status="not run", variant=variant, runner=runner, detail=why)
