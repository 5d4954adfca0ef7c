"""Correctness first: the gates of every candidate's numerics, judged on this machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from trueport.runtime.errors import TrueportError
from trueport.runtime.verdict import Verdict

from ..bench import ABSENT
from ..check import proven
from .space import Candidate
from .workshop import Workshop

TIME_SHARE = 0.5
"""Of the time limit, after which no more candidates are judged."""


class Judged(msgspec.Struct, kw_only=True):
    """What the gates said, by numerics."""

    verdicts: dict[Candidate, tuple[Verdict, ...]] = {}
    problems: dict[Candidate, str] = {}
    """Why a candidate can't be opened."""

    def passed(self, candidate: Candidate) -> bool:
        """Whether every gate of its numerics passed."""
        return proven(self.verdicts.get(candidate.numerics, ()))

    def drop(self, candidate: Candidate) -> float:
        """Points of accuracy lost, measured here."""
        measured = (it.measured.get("drop_points") for it in self.verdicts[candidate.numerics])
        return next((points for points in measured if points is not None), 0.0)


def judge(
    workshop: Workshop, space: Sequence[Candidate], max_drop: float | None, named: Collection[str], limit_s: float
) -> Judged:
    """Judge all numerics. named: runners and variants that the user asked for.

    Raises what opening raised where one of those can't be opened in any way.
    """
    judged = Judged()
    errors: dict[Candidate, TrueportError] = {}
    for candidate in space:
        key = candidate.numerics
        if key in judged.verdicts or key in judged.problems:
            continue
        if judged.verdicts and workshop.time_left_s() < limit_s * (1 - TIME_SHARE):
            break
        try:
            judged.verdicts[key] = workshop.gates(candidate, max_drop)
        except TrueportError as error:
            judged.problems[key], errors[key] = str(error), error
    for name in named:
        keys = {one.numerics: None for one in space if name in (one.runner, one.variant)}
        if keys and all(key in errors for key in keys):
            raise errors[next(iter(keys))]
    return judged


def failed_gates(verdicts: Sequence[Verdict]) -> str:
    """Which gates failed, and by how much."""
    told = []
    for verdict in verdicts:
        limits = (
            f"{name.replace('_', ' ')} {ABSENT if value is None else format(value, '.3g')}, "
            f"allowed {verdict.allowed[name]:.3g}"
            for name, value in verdict.would_pass.items()
        )
        if not verdict:
            told.append(f"{verdict.gate} ({'; '.join(limits) or verdict.detail})")
    return ", ".join(told)
