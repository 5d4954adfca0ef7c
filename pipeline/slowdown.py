"""Whether the port got slower than its baseline: a pure rule over the rounds of then and now.

Passed: the whole interval is within the margin. Failed: the whole interval is clear of 1, and the best estimate is
beyond the margin. Else undecided. The level of the intervals allows one false alarm in twenty runs, all batch sizes and
looks of a run together (Bonferroni); that a failure has to be beyond the margin too makes them rarer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from trueport.runtime.rounds import CLEAR, Difference, difference, student_quantile
from trueport.runtime.verdict import Verdict, judged, undecided

from .console import Table

GATE = "latency"
MARGIN = 0.05
"""A port may take so much longer than its baseline: half of the slowdown that has to be found."""
FALSE_ALARMS = 0.05
"""At most, of all verdicts of one run together, where nothing got slower."""
POWER = 0.95
"""With which the smallest slowdown that is told can be seen."""
LOOKS = (1, 1, 2, 4)
"""So many times the seconds given are measured before each look, until a look decides."""
HOPELESS = 100
"""So many times the measurement are not asked for: then it lies on the margin itself."""

Logs = NDArray[np.float64]


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What a verdict is of."""

    variant: str
    runner: str
    batch: int
    verdicts: int
    """Batch sizes that are judged in the same run."""
    seconds: float
    """Given to this batch size."""
    margin: float = MARGIN


def looked(measure: Callable[[], Logs], then: Logs, setting: Setting) -> Verdict:
    """Measure until it is decided, or as often as `LOOKS` allows. measure: rounds that take the seconds given."""
    now = np.empty(0)
    for times in LOOKS:
        now = np.concatenate([now, *(measure() for _ in range(times))])
        verdict = verdict_of(now, then, setting)
        if verdict.status != "undecided":
            break
    return verdict


def level_of(verdicts: int) -> float:
    """Of each interval, so that all looks of all verdicts together keep to `FALSE_ALARMS` on the side that matters."""
    return 1 - 2 * FALSE_ALARMS / (verdicts * len(LOOKS))


def verdict_of(now: Logs, then: Logs, setting: Setting) -> Verdict:
    """The verdict on the rounds of now against those of the baseline."""
    found = difference(now, then, level_of(setting.verdicts))
    visible = smallest_visible(found, setting.margin)
    measured = {
        "batch": float(setting.batch),
        "slowdown": found.ratio - 1,
        "slowdown_low": found.low - 1,
        "slowdown_high": found.high - 1,
        "visible": visible,
    }
    about = setting.variant, setting.runner
    allowed = {"slowdown": setting.margin}
    times = f"batch {setting.batch}: {found.ratio:.3f} times the baseline's time ({found.low:.3f} to {found.high:.3f})"
    if found.high <= 1 + setting.margin:
        detail = f"{times}; a slowdown of {visible:.1%} would be seen"
        return judged(GATE, *about, measured, allowed, detail)
    if found.low > 1 + CLEAR and found.ratio > 1 + setting.margin:
        detail = f"{times}, slower beyond doubt and by more than the {setting.margin:.0%} allowed"
        return judged(GATE, *about, measured, allowed, detail)
    factor = times_more(found, setting.margin)
    needed = math.ceil(factor * now.size) if factor else None
    detail = (
        f"{times}: too noisy to tell whether that is within {setting.margin:.0%}, only a slowdown of {visible:.1%} "
        f"would be seen; {_remedy(found, setting, factor)}"
    )
    return undecided(GATE, *about, measured, allowed, detail, needed)


def smallest_visible(found: Difference, margin: float) -> float:
    """The smallest slowdown that fails with a probability of `POWER`, by the spread that was seen."""
    threshold = max(found.quantile * found.error + math.log1p(CLEAR), math.log1p(margin))
    # The same degrees of freedom, to which the quantile of the interval is the only witness here.
    return math.expm1(threshold + student_quantile(POWER, math.inf) * found.error)


def times_more(found: Difference, margin: float) -> float | None:
    """How many times the rounds of now would decide it, were the estimate to stay; None: no number would."""
    log, limit = math.log(found.ratio), math.log1p(margin)
    distance = log - math.log1p(CLEAR) if log > limit else limit - log
    room = (distance / found.quantile) ** 2 - (found.error**2 - found.error_now**2)
    factor = found.error_now**2 / room if room > 0 else math.inf
    return max(factor, 1.0) if factor <= HOPELESS else None


def latency_table(verdicts: tuple[Verdict, ...], baseline: str) -> Table:
    """The verdicts as text, in per cent of the baseline's time."""
    columns = ("batch", "verdict", "slower by", "interval", "allowed", "can see")
    rows = tuple(
        (
            f"{verdict.measured['batch']:.0f}",
            verdict.status,
            _percent(verdict.measured["slowdown"]),
            f"{_percent(verdict.measured['slowdown_low'])} to {_percent(verdict.measured['slowdown_high'])}",
            _percent(verdict.allowed["slowdown"]),
            _percent(verdict.measured["visible"]),
        )
        for verdict in verdicts
    )
    notes = tuple(verdict.detail for verdict in verdicts if verdict.status != "passed")
    return Table(title=f"latency against {baseline}", columns=columns, rows=rows, notes=notes)


def _remedy(found: Difference, setting: Setting, factor: float | None) -> str:
    if factor:
        return f"about --seconds {math.ceil(setting.seconds * factor)} would tell, or a quieter machine"
    if found.error_now**2 < found.error**2 / 2:
        return "the baseline itself is too noisy: make it anew with --update-baseline and more --seconds"
    return "it is too close to what is allowed, or the machine too busy, for more seconds to help"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:+.1%}"
