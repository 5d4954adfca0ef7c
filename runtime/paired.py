"""Two sides judged on the same samples, right or wrong or by a score, and what that shows about their difference.

Where they are right or wrong, only samples on which the two differ say anything: `lost` of them the first side alone
gets right, `won` the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Z = 1.959964
"""Of two-sided intervals of 95 %."""
MOST_SAMPLES = 10_000_000
"""Where more would be needed, no number of samples is told."""


def mcnemar_p(lost: int, won: int) -> float:
    """Two-sided exact probability of so uneven flips if both were equally likely (McNemar 1947, binomial form)."""
    return math.exp(log_mcnemar_p(lost, won))


def log_mcnemar_p(lost: int, won: int) -> float:
    """Its natural logarithm, which does not underflow."""
    flips = lost + won
    if flips == 0:
        return 0.0
    tail = sum(math.comb(flips, i) for i in range(min(lost, won) + 1))
    return min(0.0, math.log(2 * tail) - flips * math.log(2))


class Differences(NamedTuple):
    """What the differences of paired samples come to, each from 1, all that a score can lose, to -1, all it can win."""

    total: float
    squares: float
    """The sum of their squares."""
    samples: int

    def interval(self) -> tuple[float, float]:
        """95 % interval of their mean: Wald's, with one sample that loses all and one that wins all added.

        Of samples that are right or wrong it is Bonett and Price's adjusted Wald (2012). Without the two added, samples
        that are all alike, however few, would have an interval of no width.
        """
        count = self.samples + 2
        mean, square = self.total / count, (self.squares + 2) / count
        half = Z * math.sqrt((square - mean**2) / count)
        return max(-1.0, mean - half), min(1.0, mean + half)

    def needed(self, margin: float) -> int | None:
        """How many samples of the same kind would put the whole interval on one side of `margin` (a share)."""
        return self.needed_for(lambda low, high: high <= margin or low > margin)

    def needed_for(self, decided: Callable[[float, float], bool]) -> int | None:
        """The smallest number of samples at which the interval decides, were they like those that were seen.

        decided: of an interval's ends, and true of any that is narrower. None where no number would do, as the drop
        that was seen lies where the decision changes.
        """

        def decisive(samples: int) -> bool:
            scale = samples / self.samples if self.samples else 0.0
            return decided(*Differences(self.total * scale, self.squares * scale, samples).interval())

        enough = max(self.samples, 1)
        while not decisive(enough):
            enough *= 2
            if enough > MOST_SAMPLES:
                return None
        too_few = max(enough // 2, 1)
        while enough - too_few > 1:
            middle = (enough + too_few) // 2
            enough, too_few = (middle, too_few) if decisive(middle) else (enough, middle)
        return enough


def flips(lost: float, won: float, count: int) -> Differences:
    """The differences of samples that are right or wrong."""
    return Differences(lost - won, lost + won, count)


def score_differences(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Differences:
    """Of two sides' scores of the same samples (N,), each from 0 to 1: what `ours` loses against `theirs`."""
    difference = theirs - ours
    return Differences(float(difference.sum()), float((difference**2).sum()), len(difference))
