"""What a search has measured so far, kept in a file after each step, so that an interrupted one goes on from there.

It holds while the machine, the bundle and the versions of what runs it are the same; damaged or other files are passed
over.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from trueport.runtime import tuned
from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import UsageError
from trueport.runtime.machine import installed_versions
from trueport.runtime.verdict import Verdict

from .search import Contest, Timing
from .space import Arm, Candidate

SCHEMA = 2
T = TypeVar("T")
_NOT_RUN_WITH = {"torch", "onnx", "pillow"}


class Gated(msgspec.Struct, frozen=True, kw_only=True):
    """The gates of one candidate's numerics."""

    candidate: Candidate
    max_drop: float | None
    """What took the place of the variant's own bound."""
    verdicts: tuple[Verdict, ...]


class Timed(msgspec.Struct, frozen=True, kw_only=True):
    """One arm, timed for as long as it was asked to be."""

    arm: Arm
    seconds: float
    timing: Timing


class Trials(msgspec.Struct, kw_only=True):
    """The whole of the file."""

    schema: int = SCHEMA
    context: dict[str, str]
    """What the measurements depend on."""
    gates: list[Gated] = []
    timings: list[Timed] = []
    contests: list[Contest] = []


class Log:
    """The trials of one bundle on this machine. afresh: begin with none."""

    def __init__(self, bundle: Bundle, *, afresh: bool = False) -> None:
        self._bundle = bundle
        self._name = tuned.own_key() + tuned.TRIALS_SUFFIX
        self._trials = Trials(context=_context(bundle))
        if not afresh:
            self._trials = self._read() or self._trials
        self._before = {id(it) for it in (*self._trials.gates, *self._trials.timings, *self._trials.contests)}
        self._used: set[int] = set()

    @property
    def taken_over(self) -> int:
        """How many results of an earlier search were used."""
        return len(self._used & self._before)

    def gated(self, candidate: Candidate, max_drop: float | None) -> tuple[Verdict, ...] | None:
        """What the gates said of it before."""
        found = (it for it in self._trials.gates if it.candidate == candidate and it.max_drop == max_drop)
        gate = self._noted(next(found, None))
        return gate.verdicts if gate else None

    def timing(self, arm: Arm, seconds: float) -> Timing | None:
        """A measurement that was given at least as long."""
        found = [it for it in self._trials.timings if it.arm == arm and it.seconds >= seconds]
        timed = self._noted(min(found, key=lambda it: it.seconds, default=None))
        return timed.timing if timed else None

    def contest(self, a: Arm, b: Arm) -> Contest | None:
        """How it ended before."""
        return self._noted(next((it for it in self._trials.contests if (it.a, it.b) == (a, b)), None))

    def add(self, *trials: Gated | Timed | Contest) -> None:
        """Keep these too, in the file as well, in one step."""
        for trial in trials:
            if isinstance(trial, Gated):
                self._trials.gates.append(trial)
            elif isinstance(trial, Timed):
                self._trials.timings.append(trial)
            else:
                self._trials.contests.append(trial)
        if trials:
            tuned.write(self._bundle, self._name, self._trials)

    def _noted(self, trial: T) -> T:
        self._used.add(id(trial))
        return trial

    def _read(self) -> Trials | None:
        for folder in tuned.folders(self._bundle):
            trials = _trials_from_json(folder / self._name)
            if trials is not None and (trials.schema, trials.context) == (SCHEMA, self._trials.context):
                return trials
        return None


def _trials_from_json(file: Path) -> Trials | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Trials)
    except (OSError, msgspec.DecodeError, UsageError, UnicodeError, RecursionError):
        return None


def _context(bundle: Bundle) -> dict[str, str]:
    versions = {name: version for name, version in installed_versions().items() if name not in _NOT_RUN_WITH}
    return {"machine": tuned.own_key(), "bundle": bundle.manifest.sha256, **versions}
