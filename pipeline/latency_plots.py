"""The report's figures of speed: how long single calls take, and how many times faster the port is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from trueport.runtime.timing import LatencySummary

from .bench import BatchBench
from .plots import INK, ORIGINAL, PORT, SOFT, legend, plain_log, svg
from .wording import number

ROW_PT, FRAME_PT = 62, 92
"""Height of one batch size, and of what stands around all of them."""
STRIP = 0.19
"""Half of a distribution's height at its highest; 1: from one batch size to the next."""
NARROWEST = 1.004
"""Quantiles closer than this are drawn as far apart: clocks tick, and nothing is infinitely dense."""


def latency_svg(batches: Sequence[BatchBench]) -> str:
    """Time of one call by batch size, original beside port: the distribution, the median and its interval."""

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        for row, result in enumerate(batches):
            sides = [(result.paired.a, -0.22, "o", ORIGINAL)] if result.paired else []
            for side, shift, marker, colour in (*sides, (result.port, 0.22 if sides else 0.0, "s", PORT)):
                right = _distribution(axes, side, row + shift, colour)
                name = ("port" if side is result.port else "original") if row == 0 else None
                _median(axes, side, row + shift, marker, colour, name)
                axes.annotate(
                    f"{number(side.median_ms)} ms", (right, row + shift), (7, 0),
                    textcoords="offset points", va="center", fontsize=8.5,
                )  # fmt: skip
        axes.set_xlim(right=axes.get_xlim()[1] * (axes.get_xlim()[1] / axes.get_xlim()[0]) ** 0.35)
        _rows(axes, batches)
        plain_log(axes.xaxis, axes.get_xlim()[1] / axes.get_xlim()[0])
        axes.set_xlabel("milliseconds for one call")
        legend(axes, 2)

    told = (
        f"batch {result.batch}: "
        + (f"original {_told(result.paired.a)}, " if result.paired else "")
        + f"port {_told(result.port)}"
        for result in batches
    )
    alt = f"Distribution and median of the milliseconds for one call. {'; '.join(told)}."
    return svg("latency", alt, FRAME_PT + ROW_PT * len(batches), draw)


def _told(side: LatencySummary) -> str:
    if side.median_low_ms is None or side.median_high_ms is None:
        return number(side.median_ms)
    return f"{number(side.median_ms)} ({number(side.median_low_ms)} to {number(side.median_high_ms)})"


def _distribution(axes: Axes, side: LatencySummary, y: float, colour: str) -> float:
    """Draw how the calls spread, and return how far right that reaches; a line where there are no quantiles."""
    if len(side.quantiles) < 3:
        right = max(side.p90_ms or side.median_ms, side.median_ms)
        axes.plot([side.min_ms, right], [y, y], color=colour, linewidth=2, alpha=0.6)
        return right
    boxes = []
    for (p, left), (next_p, end) in itertools.pairwise(side.quantiles):
        right = max(end, left * NARROWEST)
        boxes.append((left, right - left, (next_p - p) / math.log(right / left)))
    densest = max(density for _, _, density in boxes)
    for left, width, density in boxes:
        half = STRIP * density / densest
        axes.add_patch(Rectangle((left, y - half), width, 2 * half, facecolor=colour, alpha=0.35, linewidth=0))
    reach = side.quantiles[0][1], side.quantiles[-1][1]
    axes.plot(reach, [y, y], color=colour, linewidth=1, alpha=0.8)
    return reach[1]


def _median(axes: Axes, side: LatencySummary, y: float, marker: str, colour: str, name: str | None) -> None:
    axes.plot([side.median_ms], [y], marker, color=colour, markersize=5, label=name)
    if side.median_low_ms is not None and side.median_high_ms is not None:
        ends = [side.median_low_ms, side.median_high_ms]
        axes.plot(ends, [y, y], "|-", color=INK, linewidth=1.4, markersize=9)


def speedup_svg(batches: Sequence[BatchBench]) -> str:
    """How many times faster the port is, with 95 % intervals, over what noise alone could show."""
    shown = [(result.batch, result.paired) for result in batches if result.paired]

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        for row, (_, paired) in enumerate(shown):
            axes.add_patch(
                Rectangle(
                    (1 / (1 + paired.noise), row - 0.3), 1 + paired.noise - 1 / (1 + paired.noise), 0.6,
                    facecolor=SOFT, alpha=0.3, linewidth=0, label=None if row else "noise",
                )
            )  # fmt: skip
            axes.plot([paired.ratio_low, paired.ratio_high], [row] * 2, "|-", color=PORT, linewidth=2, markersize=9)
            axes.plot([paired.ratio], [row], "s", color=PORT, markersize=7, label=None if row else "times faster")
            axes.annotate(
                f"{paired.ratio:.3g}×", (paired.ratio, row), (0, 9),
                textcoords="offset points", ha="center", fontsize=8.5,
            )  # fmt: skip
        axes.axvline(1, color=INK, linestyle="--", linewidth=1.4, label="as fast")
        reach = [value for _, paired in shown for value in (paired.ratio_low, paired.ratio_high, 1 + paired.noise)]
        axes.set_xlim(min(0.7, *(0.8 / value for value in reach[2::3]), *reach), 1.4 * max(1.5, *reach))
        _rows(axes, [result for result in batches if result.paired])
        plain_log(axes.xaxis, axes.get_xlim()[1] / axes.get_xlim()[0])
        axes.set_xlabel("times faster than the original")
        legend(axes, 3)

    told = (
        f"batch {batch}: {paired.ratio:.3g} times, interval {paired.ratio_low:.3g} to {paired.ratio_high:.3g}"
        for batch, paired in shown
    )
    return svg("speedup", f"How many times faster the port is. {'; '.join(told)}.", 90 + 48 * len(shown), draw)


def _rows(axes: Axes, batches: Sequence[BatchBench]) -> None:
    axes.set_yticks(range(len(batches)), [f"batch {result.batch}" for result in batches])
    axes.set_ylim(len(batches) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
