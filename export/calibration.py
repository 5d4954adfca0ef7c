"""From histograms of activations to the ranges that 8 bits are spread over.

minmax takes all that was seen. percentile lets the rarest values go. entropy cuts where the 8-bit distribution tells
least apart from the float one: Migacz, 8-bit Inference with TensorRT (GTC 2017).
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import UsageError
from trueport.runtime.manifest import Method

from .activations import BINS, Activations, Histogram
from .written import Rows

METHODS: tuple[Method, ...] = get_args(Method)
FEWEST = 8
"""Pictures to calibrate with, at the least."""
KEPT = 0.9999
"""Share of the values that percentile keeps, half of the others cut off at each end."""
LEVELS = 128
"""Of magnitude in 8 bits with a sign."""
STEP = 16
"""Bins between two thresholds that entropy tries."""
Range = tuple[float, float]


def refuse_poor(images: Rows) -> None:
    """Raise UsageError for pictures that no range can be read from: too few, or all the same."""
    if len(images) < FEWEST:
        raise UsageError(
            f"int8 is calibrated on pictures of the training part, expected at least {FEWEST}, found {len(images)}: "
            "add pictures, raise export.int8.samples, or leave int8 out"
        )
    if (images == images[0]).all():
        raise UsageError(
            f"the {len(images)} training pictures that int8 is to be calibrated on are all the same: "
            "check the data, or leave int8 out"
        )


def ranges(activations: Activations, method: Method) -> dict[str, Range]:
    """The range of each tensor that was seen."""
    choose = {"minmax": _whole, "percentile": _percentile, "entropy": _entropy}[method]
    return {name: choose(histogram) for name, histogram in activations.items() if np.isfinite(histogram.largest)}


def _whole(histogram: Histogram) -> Range:
    return histogram.lowest, histogram.highest


def _percentile(histogram: Histogram) -> Range:
    tail = (1 - KEPT) / 2
    low, high = histogram.quantile(tail) - histogram.reach / BINS, histogram.quantile(1 - tail)
    return max(histogram.lowest, low), min(histogram.highest, high)


def _entropy(histogram: Histogram) -> Range:
    counts = histogram.magnitudes()
    counts[0] = counts[1]  # zeros, half of all behind a ReLU, are exact at every scale
    threshold = _threshold(counts) * histogram.reach / BINS
    return max(histogram.lowest, -threshold), min(histogram.highest, threshold)


def _threshold(counts: NDArray[np.int64]) -> int:
    """The number of bins whose quantized form diverges least from the whole, what is cut off counted at the end."""
    occupied = np.flatnonzero(counts)
    last = int(occupied[-1]) + 1 if len(occupied) else 0
    if last <= LEVELS:
        return last or len(counts)
    tries: list[int] = [*range(LEVELS, last, STEP), last]
    divergences = [_divergence(counts, end) for end in tries]
    return tries[int(np.argmin(divergences))]


def _divergence(counts: NDArray[np.int64], end: int) -> float:
    """Kullback and Leibler's, of the first `end` bins with all beyond in the last, from their form in LEVELS."""
    inside = counts[:end].astype(np.float64)
    clipped = inside.copy()
    clipped[-1] += counts[end:].sum()
    starts = np.arange(LEVELS) * end // LEVELS
    filled = inside > 0
    members = np.add.reduceat(filled.astype(np.float64), starts)
    means = np.add.reduceat(inside, starts) / np.maximum(members, 1)
    level = np.repeat(means, np.diff([*starts, end])) * filled
    there = clipped > 0
    p = clipped[there] / clipped.sum()
    q = np.maximum(level[there] / max(level.sum(), 1), 1e-12)  # a bin that is only in the clipped tail
    return float(np.sum(p * np.log(p / q)))
