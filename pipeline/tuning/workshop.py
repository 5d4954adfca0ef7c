"""Where candidates are opened, judged and timed: the plumbing around the search.

Arms are timed in turns, forwards and backwards, so that a drift of the machine meets all of them alike.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.runtime.bundle import Bundle
from trueport.runtime.errors import UsageError
from trueport.runtime.machine import GIB, memory_gib
from trueport.runtime.runner import Runner
from trueport.runtime.runners import open_runner
from trueport.runtime.timing import Paired, Samples, compare, no_collector, timed, wait_until_quiet
from trueport.runtime.verdict import Verdict

from ..bench import tiled
from ..check import recorded_gates
from .search import Contest, Timing
from .space import Arm, Candidate
from .trials import Gated, Log, Timed

PASSES = 3
"""Turns of each arm in one measurement; more for the same seconds are shorter."""
CONTESTS_S = (1.5, 6.0)
"""Of a contest, and of the second one where the first does not decide: what one call does to the next shows in few
blocks as noise that hides a fifth."""
CONTEST_BLOCKS = 5
MEMORY_SHARE = 0.25
"""Of the machine's memory, for runners that are held open at once."""
COPIES = 3
"""So many times its file a runner is taken to need: the graph, packed weights, activations."""
MOST_OPEN = 32


class Workshop:
    """Opens, judges and times. deadline_s: of time.monotonic. progress is told what is being done.

    Raises UsageError for a bundle without evaluation pictures, on which accuracy could be judged.
    """

    def __init__(self, bundle: Bundle, log: Log, deadline_s: float, progress: Callable[[str], None]) -> None:
        self._bundle, self._log, self._progress = bundle, log, progress
        self._deadline_s = deadline_s
        self._golden, self._evaluation = bundle.golden(), bundle.evaluation()
        if not len(self._evaluation.images):
            raise UsageError(f"{bundle.path} has no evaluation pictures, accuracy can't be judged: export it with some")
        self._open: OrderedDict[Candidate, Runner] = OrderedDict()
        self._warm: set[Arm] = set()
        self._most_open = _most_open(bundle)

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def time_left_s(self) -> float:
        """Until the deadline; negative after it."""
        return self._deadline_s - time.monotonic()

    def gates(self, candidate: Candidate, max_drop: float | None) -> tuple[Verdict, ...]:
        """What the gates of `check` say, against the recording. max_drop: in the place of the variant's own bound.

        Raises what opening it raises.
        """
        variant = self._bundle.variant(candidate.variant)
        if variant.bounds.max_drop is None:
            max_drop = None  # its predictions may not change at all
        before = self._log.gated(candidate.numerics, max_drop)
        if before is not None:
            return before
        runner = self._runner(candidate)
        self._progress(f"gates: {candidate.numerics}")
        if max_drop is not None:
            bounds = msgspec.structs.replace(variant.bounds, max_drop=max_drop)
            variant = msgspec.structs.replace(variant, bounds=bounds)
        verdicts = recorded_gates(self._bundle, variant, runner, self._golden, self._evaluation)
        self._log.add(Gated(candidate=candidate.numerics, max_drop=max_drop, verdicts=tuple(verdicts)))
        return tuple(verdicts)

    def measure(self, arms: Sequence[Arm], seconds: float, what: str) -> Mapping[Arm, Timing | str]:
        """See `search.Measure`: what was measured before is not measured again."""
        known = {arm: timing for arm in arms if (timing := self._log.timing(arm, seconds))}
        due = [arm for arm in arms if arm not in known]
        if not due:
            return known
        self._progress(f"{what}: {len(due)} timed in turns, {seconds:.2g} s each")
        segments: dict[Arm, list[NDArray[np.float64]]] = {arm: [] for arm in due}
        failed: dict[Arm, str] = {}
        with no_collector():
            for number in range(PASSES):
                for arm in due if number % 2 == 0 else reversed(due):
                    if arm not in failed and self.time_left_s() > 0:
                        self._take_turn(arm, seconds / PASSES, segments[arm], failed)
        timings = {arm: _timing(found, arm.batch) for arm, found in segments.items() if found and arm not in failed}
        whole = [arm for arm in timings if len(segments[arm]) == PASSES]
        self._log.add(*(Timed(arm=arm, seconds=seconds, timing=timings[arm]) for arm in whole))
        return {**known, **timings, **failed}

    def contest(self, a: Arm, b: Arm, needed: bool) -> Contest | None:
        """Two arms in ABBA blocks; None where one can't run, or the time is over and it is not needed."""
        before = self._log.contest(a, b)
        if before is not None or (self.time_left_s() <= 0 and not needed):
            return before
        self._progress(f"in turns: {a} against {b}")
        try:
            calls = self._call(a), self._call(b)
            met = _contest(a, b, compare(*calls, seconds=CONTESTS_S[0], min_blocks=CONTEST_BLOCKS, rows=1))
            if not met.decided and self.time_left_s() > CONTESTS_S[1]:
                met = _contest(a, b, compare(*calls, seconds=CONTESTS_S[1], min_blocks=CONTEST_BLOCKS, rows=1))
        except Exception as error:  # noqa: BLE001 - as in `_take_turn`
            self._progress(f"not compared: {_reason(error)}")
            return None
        self._log.add(met)
        return met

    def _take_turn(self, arm: Arm, seconds: float, segments: list[NDArray[np.float64]], failed: dict[Arm, str]) -> None:
        try:
            call = self._call(arm)
            wait_until_quiet()
            if arm not in self._warm:
                timed(call, seconds / 2, time.perf_counter_ns)
                self._warm.add(arm)
            elif not segments or np.median(segments[-1]) < seconds:  # one long call is its own warm-up
                timed(call, seconds / 8, time.perf_counter_ns)
            segments.append(timed(call, seconds, time.perf_counter_ns))
        except Exception as error:  # noqa: BLE001 - what libraries raise out of memory shares no base
            failed[arm] = _reason(error)

    def _call(self, arm: Arm) -> Callable[[], object]:
        runner = self._runner(arm.candidate)
        feeds = {self._bundle.manifest.inputs[0].name: tiled(self._evaluation.images, arm.batch)}
        return lambda: runner.run(feeds)

    def _runner(self, candidate: Candidate) -> Runner:
        """Open, or held open from before; the one that was not used for longest makes room."""
        if candidate in self._open:
            self._open.move_to_end(candidate)
            return self._open[candidate]
        while len(self._open) >= self._most_open:
            closed, runner = self._open.popitem(last=False)
            runner.close()
            self._warm = {arm for arm in self._warm if arm.candidate != closed}
        runner = open_runner(self._bundle, candidate.runner, candidate.variant, candidate.options)
        self._open[candidate] = runner
        return runner


def _contest(a: Arm, b: Arm, paired: Paired) -> Contest:
    scale = b.batch / a.batch
    ratio, low, high = (scale * value for value in (paired.ratio, paired.ratio_low, paired.ratio_high))
    decided = low > 1 + paired.noise or high < 1 / (1 + paired.noise)
    return Contest(a=a, b=b, ratio=ratio, low=low, high=high, decided=decided)


def _timing(segments: Sequence[NDArray[np.float64]], rows: int) -> Timing:
    summary = Samples(np.concatenate(segments), rows).summary()
    turns_ms = [float(np.median(segment)) * 1e3 for segment in segments]
    return Timing(
        rows=rows,
        calls=summary.count,
        ms=float(np.median(turns_ms)),
        low_ms=min(turns_ms),
        high_ms=max(turns_ms),
        p99_ms=summary.p99_ms,
    )


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _most_open(bundle: Bundle) -> int:
    """How many runners may be held open at once; a contest takes two."""
    memory = (memory_gib() or 4.0) * GIB * MEMORY_SHARE
    largest = max(bundle.manifest.files[variant.file].size for variant in bundle.manifest.variants)
    return max(2, min(MOST_OPEN, math.floor(memory / (COPIES * largest + 32 * 2**20))))
