"""The Pareto front: candidates of which no other is both faster and loses less accuracy; as marks and as a plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trueport.runtime.atomic import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 160


class Point(NamedTuple):
    """One way to run the model."""

    label: str
    group: str
    """Variant and runner; those of one group share a colour."""
    drop: float
    """Points of accuracy lost; negative: won."""
    images_per_s: float
    chosen: bool = False


def front(points: Sequence[Point]) -> list[bool]:
    """Which points are on it: no other is at least as good in both and better in one."""
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(a: Point, b: Point) -> bool:
    better = a.drop < b.drop or a.images_per_s > b.images_per_s
    return better and a.drop <= b.drop and a.images_per_s >= b.images_per_s


def draw_front(file: Path, points: Sequence[Point], title: str) -> None:
    """Put the plot at `file`; its suffix says which format. What it needs is looked for by `evaluation.refuse_plot`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from ..plots import PLAIN, STYLE

    style = {key: PLAIN.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()}
    buffer = io.BytesIO()
    with mpl.rc_context(style):
        figure = Figure((7.2, 4.6), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        _draw(axes, points)
        axes.set_title(title, fontsize=10)
        figure.savefig(buffer, format=file.suffix.removeprefix(".").lower(), dpi=DPI)
    write_bytes(file, buffer.getvalue())


def _draw(axes: Axes, points: Sequence[Point]) -> None:
    on_front = front(points)
    for number, group in enumerate(dict.fromkeys(point.group for point in points)):
        shown = [point for point in points if point.group == group]
        drops, speeds = [point.drop for point in shown], [point.images_per_s for point in shown]
        axes.plot(drops, speeds, "o", color=f"C{number}", markersize=6, alpha=0.75, label=group)
    best = sorted((point for point, on in zip(points, on_front, strict=True) if on), key=lambda point: point.drop)
    drops, speeds = [point.drop for point in best], [point.images_per_s for point in best]
    axes.plot(
        drops, speeds, color="#5c6570", linewidth=1.2, linestyle="--", drawstyle="steps-post", zorder=0, label="front"
    )
    middle = (min(point.drop for point in points) + max(point.drop for point in points)) / 2 if points else 0.0
    for point in (point for point in points if point.chosen):
        side = 0 if point.drop == middle else 1 if point.drop < middle else -1  # towards the middle, or it is cut off
        axes.plot([point.drop], [point.images_per_s], "o", markersize=13, markerfacecolor="none", color="#1a1d21")
        axes.annotate(
            point.label,
            (point.drop, point.images_per_s),
            xytext=(11 * side, 0 if side else 11),
            textcoords="offset points",
            fontsize=8.5,
            ha=("center", "left", "right")[side],
            va="center" if side else "bottom",
        )
    axes.margins(0.18)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("accuracy drop in points, measured on this machine")
    axes.set_ylabel("images/s at the best batch")
    axes.grid()
    axes.legend(fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
