"""The search for the fastest: all are timed briefly, the better half for longer, the last ones against each other.

Successive halving (Jamieson and Talwalkar 2016). Pure: it decides by what `measure` and `contest` answer, which hold
the clock. Goals are kept apart, so that what is best at one batch is not lost for being slow at another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from trueport.runtime.percentiles import samples_needed

from .space import Arm, Candidate

FIRST_S = 0.1
"""Given to each arm in the first round; each later one gets twice as much."""
ROUNDS = 3
"""Rounds of halving after the first look."""
FINALISTS = 3
HOPELESS = 2.0
"""So many times the leader's time, beyond the turns of both: it is not timed at other batches."""
P99 = 0.99
P99_TRIES = 6
MARGIN = 1.15
"""More time than so many calls took before, as some are slower."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How long one call takes: the median over its turns among others, each by its own median."""

    rows: int
    calls: int
    ms: float
    low_ms: float
    """Of the fastest turn: no interval, the turns are too few for one."""
    high_ms: float
    """Of the slowest turn."""
    p99_ms: float | None
    """None where too few calls stand behind it."""

    @property
    def images_per_s(self) -> float:
        """Of the median."""
        return self.rows / self.ms * 1e3

    @property
    def images_per_s_range(self) -> tuple[float, float]:
        """Of the slowest turn and of the fastest."""
        return self.rows / self.high_ms * 1e3, self.rows / self.low_ms * 1e3


class Contest(msgspec.Struct, frozen=True, kw_only=True):
    """Two arms measured in turns, block by block."""

    a: Arm
    b: Arm
    ratio: float
    """Images a second of b over those of a."""
    low: float
    high: float
    decided: bool
    """One is faster beyond the noise."""

    def of_loser(self, winner: Arm) -> str:
        """How fast the other one was beside the winner."""
        ratio, low, high = self.ratio, self.low, self.high
        if winner == self.b:
            ratio, low, high = 1 / ratio, 1 / high, 1 / low
        return f"{ratio:.2f}x {winner} in turns ({low:.2f} to {high:.2f})"


Measure = Callable[[Sequence[Arm], float, str], Mapping[Arm, Timing | str]]
"""Times arms in turns, so many seconds each, and is told what for. An arm that no time was left for is absent; for one
that fails the answer is why."""


class Winners(NamedTuple):
    """The best arm for each goal, of those whose threads rest between runs."""

    throughput: Arm
    latency: Arm
    """At batch 1."""
    bounded: Arm | None
    """Highest throughput with a p99 below the bound; None where none was asked for, or nothing was shown to meet it."""
    spun: Mapping[Arm, Arm] = MappingProxyType({})
    """By the arms above: one whose threads spin, where that is faster beyond doubt."""

    def taken(self, arm: Arm) -> Arm:
        """One of the above, or what spins in its place."""
        return self.spun.get(arm, arm)


@dataclass
class Search:
    """One search, and what is known so far. measure: see `Measure`.

    batches: ascending; 1 is among them. drop: points of accuracy that a candidate loses, which decides between two that
    are equally fast. contest: None where one can't run, or where no time is left and it is not needed (the flag).
    time_left_s: as it passes.
    """

    batches: Sequence[int]
    measure: Measure
    contest: Callable[[Arm, Arm, bool], Contest | None]
    drop: Callable[[Candidate], float]
    time_left_s: Callable[[], float]
    timings: dict[Arm, Timing] = field(default_factory=dict)
    """The longest measurement of each."""
    reached: dict[Candidate, str] = field(default_factory=dict)
    """The last round that a candidate took part in."""
    failed: dict[Arm, str] = field(default_factory=dict)
    """What could not run, such as a batch beyond an engine's profile or the memory, and why."""
    notes: list[str] = field(default_factory=list)
    too_slow: dict[Arm, float] = field(default_factory=dict)
    """Whose p99 could not be had, and how many seconds it would have taken."""
    lost: dict[Candidate, str] = field(default_factory=dict)
    """Who met a better one in turns, and how that went: their timings alone may be of a luckier hour."""
    against_default: Contest | None = None
    """The choice for throughput, as b, against the default; None where they are the same or could not be compared."""

    def run(
        self, candidates: Sequence[Candidate], p99_bound_ms: float | None = None, default: Candidate | None = None
    ) -> Winners | None:
        """The best for each goal; None where nothing could be timed.

        default: what is run without tuning; where it is a candidate, it has to be beaten for throughput.
        """
        middle = self.batches[len(self.batches) // 2]
        self._time([_arm(one, batch) for batch in sorted({1, middle}) for one in candidates], "the first look")
        quick, strong = self._screened(candidates, 1), self._screened(candidates, middle)
        wide = [one for one in candidates if one in strong or (p99_bound_ms is not None and one in quick)]
        self._time([_arm(one, batch) for batch in self.batches for one in wide], "every batch")
        everywhere = self._known(_arm(one, batch) for one in wide for batch in self.batches)
        latency, throughput = self._halved([_arm(one, 1) for one in quick], everywhere)
        if not throughput or not latency:
            return None
        champion, soonest = self._champion(throughput), self._champion(latency)
        fastest = champion if default is None else self._improved(default, champion, eligible=default in candidates)
        within = None if p99_bound_ms is None else self._proven(soonest, p99_bound_ms)
        goals = [arm for arm in (fastest, soonest, within) if arm]
        spun = self._spun(goals, within, p99_bound_ms)
        if fastest in spun and default is not None:
            self._compare_with(default, spun[fastest])
        elif fastest.candidate != champion.candidate:
            self.notes.append("nothing was shown to be faster than the default")
        chosen = dict.fromkeys(arm.candidate for arm in (*goals, *spun.values()))
        self._time([_arm(one, batch) for one in chosen for batch in self.batches], "latency curve")
        return Winners(fastest, soonest, within, spun)

    def best(self, candidate: Candidate) -> Arm | None:
        """The arm of a candidate with the most images a second so far."""
        known = [arm for arm in self.timings if arm.candidate == candidate]
        return min(known, key=self._ms_per_row, default=None)

    def _time(self, arms: Iterable[Arm], what: str, seconds: float | None = None, *, again: bool = False) -> None:
        """Time those that were not yet (again: all) and did not fail at a batch as small. seconds: None: the first."""
        due = [arm for arm in dict.fromkeys(arms) if (again or arm not in self.timings) and not self._hindered(arm)]
        if due:
            self._note(self.measure(due, seconds or FIRST_S, what), what)

    def _note(self, measured: Mapping[Arm, Timing | str], what: str) -> None:
        for arm, timing in measured.items():
            if isinstance(timing, str):
                self.failed[arm] = timing
                self.timings.pop(arm, None)
            else:
                self.timings[arm] = timing
                self.reached[arm.candidate] = what

    def _hindered(self, arm: Arm) -> bool:
        return any(one.candidate == arm.candidate and one.batch <= arm.batch for one in self.failed)

    def _screened(self, candidates: Sequence[Candidate], batch: int) -> list[Candidate]:
        """Those that are worth more time after the first look at one batch."""
        arms = self._known(_arm(one, batch) for one in candidates)
        leaders = self._leaders(arms)
        limit = HOPELESS * min((self.timings[arm].high_ms for arm in arms), default=0.0)
        return [arm.candidate for arm in arms if arm in leaders and self.timings[arm].low_ms <= limit]

    def _halved(self, *goals: list[Arm]) -> list[list[Arm]]:
        """What is left of each goal's arms, best first, after rounds in which all goals' arms took turns."""
        left, seconds = [self._known(goal) for goal in goals], FIRST_S
        for number in range(1, ROUNDS + 1):
            left = [[arm for arm in goal if arm in self._leaders(goal)] for goal in left]
            if all(len(goal) <= 1 for goal in left) or self.time_left_s() <= 0:
                break
            seconds *= 2
            self._time([arm for goal in left for arm in goal], f"round {number}", seconds, again=True)
            left = [self._known(goal) for goal in left]
        return [sorted(goal, key=self._ms_per_row) for goal in left]

    def _leaders(self, arms: Sequence[Arm]) -> set[Arm]:
        """The better half, those that can't be told from the leader, and the finalists if all ended here."""
        ranked = sorted(arms, key=self._ms_per_row)
        limit = self.timings[ranked[0]].high_ms / ranked[0].batch if ranked else 0.0
        close = {arm for arm in ranked if self.timings[arm].low_ms / arm.batch <= limit}
        return close.union(ranked[: math.ceil(len(ranked) / 2)], _finalists(ranked))

    def _champion(self, ranked: Sequence[Arm]) -> Arm:
        """The winner among the finalists: the first against the second, the winner against the third."""
        champion, *rivals = _finalists(ranked)
        for rival in rivals:
            met = self.contest(champion, rival, False)
            if met is None:
                continue
            winner, loser = (rival, champion) if self._beaten(met) else (champion, rival)
            self.lost.setdefault(loser.candidate, met.of_loser(winner))
            champion = winner
        return champion

    def _improved(self, default: Candidate, champion: Arm, *, eligible: bool) -> Arm:
        """The champion, unless the default is faster at the same batch: shown even where the time is over."""
        rival = _arm(default, champion.batch)
        if default == champion.candidate or self._hindered(rival):
            return champion
        met = self.contest(rival, champion, True)
        if met is None or not eligible or self._beaten(met):
            self.against_default = met
            return champion
        self.lost.setdefault(champion.candidate, met.of_loser(rival))
        self._time([rival], "the default")
        return self.best(default) or champion

    def _spun(self, goals: Sequence[Arm], within: Arm | None, bound_ms: float | None) -> dict[Arm, Arm]:
        """What is faster than a goal's arm beyond doubt where threads spin; at the same batch, within the bound."""
        pairs = {arm: spun for arm in goals if (spun := self._spinning(arm))}
        self._time(pairs.values(), "spinning", FIRST_S * 2**ROUNDS)
        faster = {}
        for arm, spun in pairs.items():
            met = self.contest(arm, spun, False) if spun in self.timings else None
            if met is None or not met.decided or met.ratio <= 1:
                continue
            p99_ms = self._p99_ms(spun) if arm == within else None
            if arm != within or (p99_ms is not None and bound_ms is not None and p99_ms <= bound_ms):
                faster[arm] = spun
        return faster

    def _spinning(self, goal: Arm) -> Arm | None:
        """The goal's candidate with threads that spin, or where it has none the fastest that has: on small models
        waking a thread takes longer than its part of the work, so that one that loses at rest may win.
        """
        known = [arm for arm in self.timings if arm.batch == goal.batch and arm.candidate.spun]
        nearest = goal if goal.candidate.spun else min(known, key=self._ms_per_row, default=goal)
        if self.timings[nearest].low_ms > HOPELESS * self.timings[goal].high_ms:
            return None
        return _arm(spun, goal.batch) if (spun := nearest.candidate.spun) else None

    def _compare_with(self, default: Candidate, fastest: Arm) -> None:
        """Tell how much faster the choice is, where the contest with the default was of another."""
        rival = _arm(default, fastest.batch)
        if not self._hindered(rival):
            self.against_default = self.contest(rival, fastest, True)

    def _beaten(self, met: Contest) -> bool:
        """Whether b wins: by speed beyond doubt, else by losing less accuracy."""
        ours, theirs = self.drop(met.a.candidate), self.drop(met.b.candidate)
        if met.decided or ours == theirs:
            return met.ratio > 1
        return theirs < ours

    def _proven(self, soonest: Arm, bound_ms: float) -> Arm | None:
        """The one with the most images a second whose p99 is shown to be below the bound.

        It takes hundreds of calls, so they are timed one after another; where one misses, slower calls would too.
        soonest: tells how near the bound one comes where none meets it.
        """
        limit_ms, tries, found = bound_ms, 0, None
        for arm in sorted(self._known(self.timings), key=self._ms_per_row):
            if self.timings[arm].ms > limit_ms or tries == P99_TRIES:
                continue
            tries += 1
            p99_ms = self._p99_ms(arm)
            if p99_ms is not None and p99_ms <= bound_ms:
                found = arm
                break
            if p99_ms is not None:
                limit_ms = min(limit_ms, self.timings[arm].ms)
        if found is None:
            self._p99_ms(soonest)
        if self.too_slow:
            arm, seconds = min(self.too_slow.items(), key=lambda item: item[1])
            self.notes.append(
                f"no time was left for the p99 of {len(self.too_slow)} ways to run it: {samples_needed(P99)} calls of "
                f"{arm}, take {seconds:,.0f} s; give more --minutes"
            )
        if found:
            return found
        reached = min((timing.p99_ms for timing in self.timings.values() if timing.p99_ms is not None), default=None)
        best = "none could be measured" if reached is None else f"the best that was reached is {reached:.3g} ms"
        self.notes.append(f"nothing was shown to have a p99 below {bound_ms:g} ms: {best}")
        return None

    def _p99_ms(self, arm: Arm) -> float | None:
        """The percentile, timed for as long as it needs; None where there is no time for that."""
        needed_s = MARGIN * samples_needed(P99) * self.timings[arm].ms / 1e3
        while self.timings[arm].p99_ms is None:
            alone = self.measure([arm], needed_s, "p99").get(arm) if needed_s <= self.time_left_s() else None
            if not isinstance(alone, Timing):
                self.too_slow[arm] = needed_s
                break
            # Its median is of another time than the others': only the percentile is kept.
            self.timings[arm] = msgspec.structs.replace(self.timings[arm], p99_ms=alone.p99_ms)
            needed_s *= 2  # where calls were slower than before
        return self.timings[arm].p99_ms

    def _known(self, arms: Iterable[Arm]) -> list[Arm]:
        return [arm for arm in arms if arm in self.timings]

    def _ms_per_row(self, arm: Arm) -> float:
        return self.timings[arm].ms / arm.batch


def _arm(candidate: Candidate, batch: int) -> Arm:
    return Arm(candidate=candidate, batch=batch)


def _finalists(ranked: Sequence[Arm]) -> list[Arm]:
    """The best arm of each of the first candidates."""
    best: dict[Candidate, Arm] = {}
    for arm in ranked:
        best.setdefault(arm.candidate, arm)
    return list(best.values())[:FINALISTS]
