"""Paired proportions: two sides judged right or wrong on the same samples, and what that shows about their difference.

Only samples on which the two differ say anything: `lost` of them the first side alone gets right, `won` the second.
"""

from __future__ import annotations

import math

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


def paired_interval(lost: float, won: float, count: int, z: float = Z) -> tuple[float, float]:
    """95 % interval of the drop (lost - won) / count: Bonett and Price's adjusted Wald (2012), sound near zero."""
    a, b = (lost + 1) / (count + 2), (won + 1) / (count + 2)
    half = z * math.sqrt((a + b - (a - b) ** 2) / (count + 2))
    return max(-1.0, a - b - half), min(1.0, a - b + half)


def samples_to_tell(lost: int, won: int, count: int, margin: float) -> int | None:
    """How many samples of the same kind would put the whole interval of the drop on one side of `margin` (a share).

    The smallest number at which as many flips in proportion as were seen are decisive; None where no number would be,
    as the drop that was seen is the margin.
    """

    def decisive(samples: int) -> bool:
        scale = samples / count if count else 0.0
        low, high = paired_interval(lost * scale, won * scale, samples)
        return high <= margin or low > margin

    enough = max(count, 1)
    while not decisive(enough):
        enough *= 2
        if enough > MOST_SAMPLES:
            return None
    too_few = max(enough // 2, 1)
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        enough, too_few = (middle, too_few) if decisive(middle) else (enough, middle)
    return enough
