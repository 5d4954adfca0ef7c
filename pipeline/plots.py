"""Figures as inline SVG: text stays text, colours are the page's, same data gives the same bytes.

Here are those of a training and of its confusions, and what all figures share; the others are drawn by
`fidelity_plots` and `latency_plots`.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from trueport.runtime.atomic import write_bytes

from .run_folder import EpochMetrics
from .wording import number

# Stand-ins that the page's own colours replace, so that dark mode and print need no second figure.
INK, SOFT, LINE, ORIGINAL, PORT, WRONG, ACCENT = (f"#0{digit}0{digit}0{digit}" for digit in "1234567")
COLOURS = {
    INK: "currentColor",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    ORIGINAL: "var(--original)",
    PORT: "var(--port)",
    WRONG: "var(--wrong)",
    ACCENT: "var(--accent)",
}
PLAIN = {INK: "#1a1d21", SOFT: "#5c6570", LINE: "#d5dae0", PORT: "#0063b1", WRONG: "#b3261e"}
"""The page's colours where there is no page."""
WIDTH_PT = 340.0
"""About a phone's width, so that type is as large there as was drawn, and larger elsewhere."""
LARGEST_PX = 6000
"""Most pixels along a side of a file."""
COUNTED_CLASSES = 30
"""Up to so many classes every cell of the confusion matrix has its count in it."""
LONGEST_TICK = 14
"""Letters of a class name beside the matrix."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "trueport",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9.5,
    "axes.unicode_minus": True,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def loss_svg(metrics: Sequence[EpochMetrics], best_epoch: int) -> str:
    """Loss of training and validation by epoch."""
    best = next(line for line in metrics if line.epoch == best_epoch)
    losses = [loss for line in metrics for loss in (line.train_loss, line.validation_loss)]

    def draw(axes: Axes) -> None:
        _curve(axes, metrics, "train_loss", "training", SOFT, "--")
        _curve(axes, metrics, "validation_loss", "validation", ACCENT, "-")
        if min(losses) > 0:
            axes.set_yscale("log")
            plain_log(axes.yaxis, max(losses) / min(losses))
        _best(axes, best_epoch, best.validation_loss)
        axes.set_ylabel("loss")

    alt = (
        f"Loss over {len(metrics)} epochs: training from {number(metrics[0].train_loss)} to "
        f"{number(metrics[-1].train_loss)}, validation from {number(metrics[0].validation_loss)} to "
        f"{number(metrics[-1].validation_loss)}; {number(best.validation_loss)} at the best epoch, {best_epoch}."
    )
    return svg("loss", alt, 215, draw)


def score_svg(metrics: Sequence[EpochMetrics], best_epoch: int, metric: str) -> str:
    """The score that chose the best epoch, on the validation pictures by epoch. metric: what it is."""
    best = next(line for line in metrics if line.epoch == best_epoch)

    def draw(axes: Axes) -> None:
        _curve(axes, metrics, "validation_score", "validation", ACCENT, "-")
        _best(axes, best_epoch, best.validation_score)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.set_ylabel(metric)

    alt = (
        f"Validation, {metric}, over {len(metrics)} epochs: from {metrics[0].validation_score:.2%} to "
        f"{metrics[-1].validation_score:.2%}, {best.validation_score:.2%} at the best epoch, {best_epoch}."
    )
    return svg("score", alt, 215, draw)


def _curve(axes: Axes, metrics: Sequence[EpochMetrics], name: str, label: str, colour: str, line: str) -> None:
    marker = "." if len(metrics) <= 12 else ""  # a single epoch makes no line
    epochs, values = [line.epoch for line in metrics], [getattr(line, name) for line in metrics]
    axes.plot(epochs, values, line, color=colour, marker=marker, linewidth=1.8, label=label)


def _best(axes: Axes, epoch: int, value: float) -> None:
    axes.axvline(epoch, color=SOFT, linewidth=1, linestyle=":")
    axes.plot([epoch], [value], "D", color=ACCENT, markersize=6, label=f"best: epoch {epoch}", clip_on=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.grid(axis="y")
    legend(axes, 3)


def confusion_svg(matrix: NDArray[np.int64], labels: Sequence[str]) -> str:
    """A confusion matrix (K, K): true classes are rows, answers columns; a stronger colour is a larger share."""
    classes, right, total = len(labels), int(np.trace(matrix)), int(matrix.sum())
    draw, side = _confusion(matrix, labels, {}, "answer of the port")
    alt = f"Confusion matrix of {classes} classes: {right} of {total} pictures are on the diagonal, answered rightly."
    return svg("confusion", alt, side, draw, width_pt=max(WIDTH_PT if classes <= 10 else 0, side))


def confusion_file(file: Path, matrix: NDArray[np.int64], labels: Sequence[str], title: str) -> None:
    """The same as a file of its own, on white; the suffix says which format: .png, .svg or .pdf."""
    draw, side = _confusion(matrix, labels, PLAIN, "answer")
    style = {key: PLAIN.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()}
    buffer = io.BytesIO()
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph .* missing")
        figure = Figure((max(WIDTH_PT, side) / 72, (side + 20) / 72), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title("\n".join(textwrap.wrap(title, max(40, int(side / 6)))), fontsize=8.5)
        figure.savefig(buffer, format=file.suffix.removeprefix(".").lower(), dpi=min(200, LARGEST_PX * 72 / side))
    write_bytes(file, buffer.getvalue())


def _confusion(
    matrix: NDArray[np.int64], labels: Sequence[str], palette: Mapping[str, str], answers: str
) -> tuple[Callable[[Axes], None], float]:
    """How to draw it, and the side in points that it needs. palette: colours in the place of the stand-ins."""
    right, wrong, line = (palette.get(stand_in, stand_in) for stand_in in (PORT, WRONG, LINE))
    classes = len(labels)
    names = [label if len(label) <= LONGEST_TICK else f"{label[: LONGEST_TICK - 1]}…" for label in labels]
    cell_pt = max(9.5, min(26.0, 260 / classes))
    rotated = max(map(len, names)) > 2
    counted = classes <= COUNTED_CLASSES
    size = min(9.5, cell_pt * 0.68)
    side = cell_pt * classes + 40 + size * 0.62 * max(map(len, names))

    def draw(axes: Axes) -> None:
        for true, answer in np.argwhere(matrix).tolist():
            count = matrix[true, answer]
            strength = 0.2 + 0.4 * float(count) / float(matrix[true].sum())
            colour = right if true == answer else wrong
            axes.add_patch(Rectangle((answer - 0.5, true - 0.5), 1, 1, facecolor=colour, alpha=strength, linewidth=0))
            if counted:
                weight = "normal" if true == answer else "bold"
                axes.text(answer, true, str(count), ha="center", va="center_baseline", fontsize=size, fontweight=weight)
        axes.set_xlim(-0.5, classes - 0.5)
        axes.set_ylim(classes - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xticks(range(classes), names, rotation=90 if rotated else 0, fontsize=size)
        axes.set_yticks(range(classes), names, fontsize=size)
        axes.tick_params(length=0)
        edges = np.arange(1, classes) - 0.5
        axes.hlines(edges, -0.5, classes - 0.5, color=line, linewidth=0.5)
        axes.vlines(edges, -0.5, classes - 0.5, color=line, linewidth=0.5)
        axes.spines[:].set_visible(True)
        axes.set_xlabel(answers)
        axes.set_ylabel("true class")

    return draw, side


def legend(axes: Axes, columns: int) -> None:
    """What the marks mean, above the figure."""
    figure = axes.get_figure()
    if isinstance(figure, Figure):
        figure.legend(loc="outside upper left", ncols=columns, handlelength=1.6, columnspacing=1.2, borderaxespad=0)


def plain_log(axis: Any, spread: float) -> None:
    """Ticks of a logarithmic axis as plain numbers: at every 1, 2 and 5 where few decades are shown."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if spread < 50 else (1.0,), numticks=7))
    axis.set_major_formatter(
        FuncFormatter(
            lambda value, _: number(float(f"{value:.6g}")).removeprefix("1.00\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}")
        )
    )
    axis.set_minor_locator(NullLocator())


def svg(name: str, alt: str, height_pt: float, draw: Callable[[Axes], None], width_pt: float = WIDTH_PT) -> str:
    """Draw into a figure of its own and cut out the element; ids get the name, as all figures share one page."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # The browser has fonts that matplotlib does not know; only its guess of their width is off.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph .* missing")
        figure = Figure((width_pt / 72, height_pt / 72), layout="constrained")
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text[text.index("<svg") :], flags=re.DOTALL)
    body = text[text.index(">") + 1 :]
    for stand_in, colour in COLOURS.items():
        body = body.replace(f": {stand_in}", f": {colour}")
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r'(\bid="|\burl\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r" font-family: [^;]*;|\s*transform=\"rotate\(-0 [^)]*\)\"", "", body)  # the page sets the family
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'aria-label="{escape(alt)}" viewBox="0 0 {width_pt:g} {height_pt:g}" width="{width_pt:g}pt" '
        f'height="{height_pt:g}pt">{body}'
    )
