"""The report's figures of fidelity: how far logits are off, how far each layer drifts, which answers have changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from trueport.runtime.manifest import Bounds

from .drift import Drift
from .plots import ACCENT, INK, LINE, LONGEST_TICK, ORIGINAL, PORT, SOFT, WIDTH_PT, WRONG, legend, plain_log, svg
from .wording import number

MARKS = ((PORT, "s", "-"), (ACCENT, "o", "--"), (ORIGINAL, "^", "-."), (INK, "D", ":"), (SOFT, "v", "-"))
"""Colour, mark and line of one variant after the other: none is told apart by colour alone."""
NAMED_LAYERS = 40
"""Most layers whose names stand below the drift's figure."""


def differences_svg(differences: NDArray[np.float64], bounds: Bounds, name: str = "differences") -> str:
    """How far the port's logits are from the original's: a histogram of the absolute differences above zero, any shape.

    name: of the figure, unique on its page. Raises ValueError where none is finite and above zero.
    """
    finite = differences[np.isfinite(differences)]
    shown = finite[finite > 0]
    if not shown.size:
        raise ValueError("expected a difference above zero, found none")
    largest = float(shown.max())
    # Floats differ by multiples of powers of two: bins of any other width would show gaps that mean nothing.
    last = math.ceil(math.log2(largest)) + (math.log2(largest) == math.ceil(math.log2(largest)))
    first = max(math.floor(math.log2(float(shown.min()))), last - 40)
    edges = 2.0 ** np.arange(first, last + 1)
    counts, _ = np.histogram(np.maximum(shown, edges[0]), edges)
    beyond = largest > bounds.max_abs

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.bar(
            edges[:-1],
            100 * counts / differences.size,
            np.diff(edges),
            align="edge",
            color=PORT,
            alpha=0.6,
            linewidth=0,
        )
        axes.axvline(bounds.noise_max_abs, color=SOFT, linestyle=":", linewidth=1.8, label="original's own noise")
        axes.axvline(largest, color=WRONG if beyond else PORT, linewidth=1.8, label="largest here")
        axes.axvline(bounds.max_abs, color=INK, linestyle="--", linewidth=1.8, label="allowed")
        if beyond:
            axes.axvspan(bounds.max_abs, edges[-1], color=WRONG, alpha=0.15, linewidth=0)
        left, right = min(edges[0], bounds.noise_max_abs or edges[0]) / 2, 3 * max(edges[-1], bounds.max_abs)
        axes.set_xlim(left, right)
        plain_log(axes.xaxis, right / left)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_xlabel("absolute difference of a logit")
        axes.set_ylabel("share of logits")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        legend(axes, 3)

    side = "beyond" if beyond else "within"
    alt = (
        f"Histogram of the absolute differences between the logits of port and original, on a logarithmic scale. The "
        f"largest is {number(largest)}, {side} the allowed {number(bounds.max_abs)}; the original's own noise reaches "
        f"{number(bounds.noise_max_abs)}."
    )
    return svg(name, alt, 225, draw)


def drift_svg(drift: Drift) -> str:
    """How far every layer is from the original's, as a multiple of that layer's own noise, along the network's depth.

    Raises ValueError where there is no layer.
    """
    if not drift.layers:
        raise ValueError("expected a layer to draw, found none")
    depth = np.arange(len(drift.layers))

    def draw(axes: Axes) -> None:
        axes.set_yscale("log")
        axes.axhline(1, color=SOFT, linestyle=":", linewidth=1.8)
        axes.axhline(drift.headroom, color=INK, linestyle="--", linewidth=1.4)
        for index, (variant, multiples) in enumerate(drift.multiples.items()):
            colour, mark, line = MARKS[index % len(MARKS)]
            values = np.array([np.nan if value is None else max(value, 0.1) for value in multiples])
            axes.plot(depth, values, line, color=colour, marker=mark, markersize=4.5, linewidth=1.5, label=variant)
        named = len(drift.layers) <= NAMED_LAYERS
        axes.set_xticks(depth if named else [], [_short(layer) for layer in drift.layers] if named else [])
        axes.tick_params(axis="x", rotation=90, labelsize=min(8.5, 300 / len(drift.layers)))
        axes.set_xlim(-0.5, len(drift.layers) - 0.5)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.4), max(high, 2 * drift.headroom))
        plain_log(axes.yaxis, max(high / low, 50))
        axes.set_xlabel("layer, from the input to the logits")
        axes.set_ylabel("times the layer's noise")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        legend(axes, 3)

    told = (f"{variant}: at most {number(drift.largest(variant))} times" for variant in drift.multiples)
    alt = f"Drift of {len(drift.layers)} layers, as multiples of each layer's noise. {'; '.join(told)}."
    return svg("drift", alt, 270, draw)


def changes_svg(changes: NDArray[np.int64], labels: Sequence[str], name: str = "changes") -> str:
    """The port's confusion matrix minus the original's, (K, K): only classes of which an answer has changed.

    Raises ValueError where nothing has.
    """
    rows, columns = (np.flatnonzero(np.any(changes, axis=axis)) for axis in (1, 0))
    if not rows.size:
        raise ValueError("expected a cell that has changed, found none")
    shown = changes[np.ix_(rows, columns)]
    names = [_short(label) for label in labels]
    side = min(26.0, max(14.0, 230 / max(shown.shape)))
    longest = max(len(names[index]) for index in (*rows, *columns))
    height = side * len(rows) + 52 + 5.6 * longest
    width = max(WIDTH_PT, side * len(columns) + 60 + 5.6 * longest)

    def draw(axes: Axes) -> None:
        for row, column in np.argwhere(shown).tolist():
            count = int(shown[row, column])
            good = (count > 0) == (rows[row] == columns[column])
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=PORT if good else WRONG, alpha=0.3, linewidth=0)
            )
            text: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 9.5, "fontweight": "bold"}
            axes.text(column, row, f"{count:+d}".replace("-", "−"), **text)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xticks(range(len(columns)), [names[index] for index in columns], rotation=90 if longest > 2 else 0)
        axes.set_yticks(range(len(rows)), [names[index] for index in rows])
        axes.tick_params(length=0)
        axes.hlines(np.arange(1, len(rows)) - 0.5, -0.5, len(columns) - 0.5, color=LINE, linewidth=0.5)
        axes.vlines(np.arange(1, len(columns)) - 0.5, -0.5, len(rows) - 0.5, color=LINE, linewidth=0.5)
        axes.spines[:].set_visible(True)
        axes.set_xlabel("answer, more often (+) or less often (−) than the original")
        axes.set_ylabel("true class")

    alt = (
        f"Confusion matrix of the port minus that of the original: {int(np.count_nonzero(shown))} cells have changed, "
        f"in {len(rows)} true classes."
    )
    return svg(name, alt, height, draw, width_pt=width)


def _short(name: str) -> str:
    """Names of layers and classes differ at their ends, if not at their beginnings: the middle goes."""
    half = LONGEST_TICK // 2
    return name if len(name) <= LONGEST_TICK else f"{name[: half - 1]}…{name[-half:]}"
