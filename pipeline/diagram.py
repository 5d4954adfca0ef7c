"""A network drawn as SVG by hand, without any library: feature maps as slabs, what is between them as captions.

A slab is as high as its picture and as wide as its channels, both on a logarithmic scale. Modules with branches are
drawn inside a frame; equal ones in a row are drawn once, with their number.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from trueport.runtime.atomic import write_text

from .describe import Described, caption, count_words, times

if TYPE_CHECKING:
    from trueport.models.description import Row

COLOURS = {
    "conv": "#5b8fd6", "pool": "#63b08a", "linear": "#e0a04a", "attention": "#a983cf", "join": "#9aa3ad",
    "input": "#c9ced6",
}  # fmt: skip
INK, SOFT, LINE, FRAME = "#1f2933", "#66717d", "#8a949e", "#f3f5f8"
WIDEST = 1560.0
"""Units of one line of the drawing; the next part begins a new one."""
MOST_ROWS, MOST_LANES = 16, 6
"""Of a module that is drawn with its branches; a larger one is told in words."""
MOST_MIXED = 10
"""Rows of a module in which layers and branches alternate, and that is one block to a reader."""
BOX_WIDTH, BOX_HEIGHT, BOX_GAP, LANE = 74.0, 27.0, 16.0, 35.0
ARROW = 18.0
SYMBOLS = {"add": "+", "multiply": "×", "concat": "concat"}


@dataclass(frozen=True)
class Part:
    """One layer, or a module whose layers are not a plain chain."""

    rows: tuple[int, ...]
    name: str
    count: int = 1
    """How many equal ones follow each other."""


@dataclass(frozen=True)
class Drawn:
    """A piece of SVG around the point (0, 0) at the middle of its left side, and its extent."""

    svg: str
    width: float
    above: float
    below: float


def write_diagram(path: Path, described: Described) -> None:
    """Put the diagram at `path` in one step."""
    write_text(path, diagram(described))


def diagram(described: Described) -> str:
    """The diagram as one SVG document; the same description gives the same text."""
    description = described.description
    rows: Sequence[Row] = description.rows
    drawn = [_part(part, rows) for part in parts(rows)]
    body, width, height = _lines(drawn)
    words = (
        f"{described.classes:,} classes, pictures of {times(description.picture)}",
        f"{count_words(description.parameters)} parameters ({description.weights_mb:,.4g} MB)",
        f"{count_words(description.macs)} MACs",
    )
    width = max(width, 24 + _width(" · ".join(words), 13), 640.0)
    top = 62.0
    total = top + height + 40
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {total:g}" width="{width:g}" '
            f'height="{total:g}" role="img" font-family="Helvetica, Arial, DejaVu Sans, sans-serif">',
            f"<title>{_safe(described.arch)}</title>",
            f"<desc>{_safe(', '.join(words))}</desc>",
            '<defs><marker id="head" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="5" markerHeight="5" '
            f'orient="auto"><path d="M0 0L6 3L0 6z" fill="{LINE}"/></marker></defs>',
            f'<rect width="{width:g}" height="{total:g}" fill="#ffffff"/>',
            _words(20, 28, described.arch, 18, weight="bold", anchor="start"),
            _words(20, 48, " · ".join(words), 13, SOFT, anchor="start"),
            f'<g transform="translate(0 {top:g})">{body}</g>',
            _legend(top + height + 18),
            "</svg>\n",
        )
    )


def parts(rows: Sequence[Row]) -> list[Part]:
    """The network as a chain of layers and of modules with branches, equal neighbours folded into one."""
    found = _chain(rows, tuple(range(1, len(rows))), "")
    folded = [Part((0,), "input")]
    for part in found:
        last = folded[-1]
        if len(part.rows) > 1 and _signature(rows, part) == _signature(rows, last):
            folded[-1] = Part(last.rows, last.name, last.count + 1)
        else:
            folded.append(part)
    return folded


def _chain(rows: Sequence[Row], places: tuple[int, ...], prefix: str) -> list[Part]:
    if len(places) == 1:
        return [Part(places, rows[places[0]].name)]
    groups = _groups(rows, places, prefix)
    if prefix and not _is_chain(rows, groups.values()):
        return [Part(places, prefix)]
    if len(groups) == 1 and next(iter(groups)) == prefix:
        return [Part(places, prefix)]
    found = [part for name, group in groups.items() for part in _chain(rows, group, name.partition("\0")[0])]
    kinds = {len(part.rows) > 1 for part in found}
    if prefix and len(kinds) > 1 and len(places) <= MOST_MIXED:
        return [Part(places, prefix)]
    return found


def _groups(rows: Sequence[Row], places: tuple[int, ...], prefix: str) -> dict[str, tuple[int, ...]]:
    """Rows that follow each other in one child of a module; each row of the module itself is alone."""
    found: dict[str, tuple[int, ...]] = {}
    last = ""
    for place in places:
        path = rows[place].path
        rest = path[len(prefix) :].lstrip(".") if path != prefix else ""
        child = f"{prefix}.{rest.partition('.')[0]}".strip(".") if rest else prefix
        name = last if rest and last.partition("\0")[0] == child else f"{child}\0{place}"
        found[name] = (*found.get(name, ()), place)
        last = name if rest else ""
    return found


def _is_chain(rows: Sequence[Row], groups: Iterable[tuple[int, ...]]) -> bool:
    """Whether each group takes its input from the end of the one before, and from nowhere else."""
    before: set[int] | None = None
    for group in groups:
        outside = {source for place in group for source in rows[place].inputs if source not in group}
        if len(outside) > 1 or (before is not None and outside != before):
            return False
        before = {group[-1]}
    return True


def _signature(rows: Sequence[Row], part: Part) -> tuple[object, ...]:
    return tuple(
        (caption(rows[place]), rows[place].output, rows[place].follows,
         tuple(place - source if source >= part.rows[0] else "before" for source in rows[place].inputs))
        for place in part.rows
    )  # fmt: skip


def _lines(drawn: Sequence[Drawn]) -> tuple[str, float, float]:
    """Parts from left to right, in as many lines as are needed; what was drawn, its width and height."""
    limits = range(400, int(WIDEST) + 1, 40)
    fewest = len(_broken_at(drawn, limits[-1]))
    lines = next(lines for limit in limits if len(lines := _broken_at(drawn, limit)) == fewest)
    svg, y, width = [], 0.0, 0.0
    for number, line in enumerate(lines):
        y += max(part.above for part in line) + 14
        x = 20.0
        for part in line:
            svg.append(f'<g transform="translate({x:.1f} {y:.1f})">{part.svg}</g>')
            x += part.width
        if number < len(lines) - 1:
            svg.append(_arrow(x + 2, y, x + 16, y))
        width = max(width, x + 20)
        y += max(part.below for part in line) + 10
    return "".join(svg), width, y


def _broken_at(drawn: Sequence[Drawn], limit: float) -> list[list[Drawn]]:
    """Lines of at most so many units."""
    lines: list[list[Drawn]] = [[]]
    for part in drawn:
        if lines[-1] and 40 + sum(one.width for one in lines[-1]) + part.width > limit:
            lines.append([])
        lines[-1].append(part)
    return lines


def _part(part: Part, rows: Sequence[Row]) -> Drawn:
    last = rows[part.rows[-1]]
    slab = _slab(last)
    if part.rows == (0,):
        return slab
    drawn = _layer(last) if len(part.rows) == 1 else _module(part, rows)
    return Drawn(
        f'{drawn.svg}<g transform="translate({drawn.width:.1f} 0)">{slab.svg}</g>',
        drawn.width + slab.width, max(drawn.above, slab.above), max(drawn.below, slab.below),
    )  # fmt: skip


def _layer(row: Row) -> Drawn:
    """An arrow with what it does above it, and the layer's name below."""
    words = _broken(row)
    name = row.name if len(row.name) <= 18 else f"…{row.name[-17:]}"
    width = max(ARROW + 12, *(_width(line, 10) for line in words), _width(name, 8.5)) + 8
    svg = [_arrow(2, 0, width - 3, 0), _words(width / 2, 13, name, 8.5, SOFT)]
    svg += [
        _words(width / 2, -6 - 12 * back, line, 10, weight="bold" if back == len(words) - 1 else "")
        for back, line in enumerate(reversed(words))
    ]
    return Drawn("".join(svg), width, 8 + 12.0 * len(words), 18)


def _module(part: Part, rows: Sequence[Row]) -> Drawn:
    """A frame with the module's own layers in it."""
    inside = _branches(part, rows) or _summary(part, rows)
    longest = max(24, int(inside.width / 6))
    name = part.name if len(part.name) <= longest else f"…{part.name[1 - longest :]}"
    title = f"{name} ×{part.count}" if part.count > 1 else name
    width = max(inside.width, _width(title, 10)) + 12
    above, below = inside.above + 22, inside.below + 8
    frame = (
        f'<rect x="{ARROW:g}" y="{-above:.1f}" width="{width:.1f}" height="{above + below:.1f}" rx="7" fill="{FRAME}" '
        f'stroke="#d5dae0"/>'
    )
    if part.count > 1:
        shadow = frame.replace(f'x="{ARROW:g}" y="{-above:.1f}"', f'x="{ARROW + 4:g}" y="{-above - 4:.1f}"')
        frame = shadow + frame
    svg = (
        frame, _arrow(2, 0, ARROW - 1, 0), _words(ARROW + width / 2, -above + 14, title, 10, weight="bold"),
        f'<g transform="translate({ARROW + (width - inside.width) / 2:.1f} 0)">{inside.svg}</g>',
        _arrow(ARROW + width, 0, 2 * ARROW + width - 3, 0),
    )  # fmt: skip
    return Drawn("".join(svg), 2 * ARROW + width, above + 4, below)


def _summary(part: Part, rows: Sequence[Row]) -> Drawn:
    """What a module is made of, in words."""
    counts = Counter(rows[place].kind for place in part.rows)
    lines = [f"{count} {kind}" for kind, count in counts.most_common(5)]
    width = max(_width(line, 10) for line in lines) + 16
    height = 13.0 * len(lines)
    svg = [_words(width / 2, 9 - height / 2 + 13 * number, line, 10) for number, line in enumerate(lines)]
    return Drawn("".join(svg), width, height / 2, height / 2)


@dataclass(frozen=True)
class Box:
    """Where a layer is drawn inside its module's frame."""

    left: float
    right: float
    y: float
    level: int
    lane: int


def _branches(part: Part, rows: Sequence[Row]) -> Drawn | None:
    """The layers of a module as boxes in lanes, joined by lines; None where that would be too much to read."""
    first = part.rows[0]
    inputs = {place: [source if source >= first else -1 for source in rows[place].inputs] for place in part.rows}
    boxes = _boxes(inputs, rows)
    lanes, end = 1 + max(box.lane for box in boxes.values()), boxes[part.rows[-1]]
    if len(part.rows) > MOST_ROWS or lanes > MOST_LANES:
        return None
    half = lanes * LANE / 2
    edges = [(boxes[source], boxes[place]) for place in part.rows for source in inputs[place]]
    arcs = [edge for edge in edges if _leaps(*edge, boxes.values())]
    heights = {arc: 7 * sum(_inside_of(other, arc) for other in arcs) for arc in arcs}
    svg = [_arc(*edge, -half - 4 - heights[edge]) if edge in heights else _edge(*edge) for edge in edges]
    svg += [_box(rows[place], boxes[place]) for place in part.rows]
    svg.append(_path(f"M{end.right:.1f} 0L{end.right + BOX_GAP:.1f} 0", head=False))
    return Drawn(
        "".join(svg), end.right + BOX_GAP, half + max((8 + height for height in heights.values()), default=0), half
    )


def _boxes(inputs: dict[int, list[int]], rows: Sequence[Row]) -> dict[int, Box]:
    """Each layer one level behind what it waits for; the first to take an answer stays in its lane. -1: the entry."""
    levels, lanes, taken = {-1: 0}, {-1: 0}, set[int]()
    for place, sources in inputs.items():
        levels[place] = 1 + max(levels[source] for source in sources)
        lanes[place] = min(lanes[source] for source in sources)
        if len(sources) == 1 and sources[0] in taken:
            lanes[place] = max(lanes.values()) + 1
        taken.update(sources if len(sources) == 1 else ())
    middle, last = max(lanes.values()) / 2, next(reversed(inputs))
    boxes, left = {-1: Box(0.0, 0.0, 0.0, 0, 0)}, BOX_GAP
    for level in range(1, 1 + max(levels.values())):
        here = [place for place in inputs if levels[place] == level]
        width = max(_box_width(rows[place]) for place in here)
        for place in here:
            inset = (width - _box_width(rows[place])) / 2
            y = 0.0 if place == last else (lanes[place] - middle) * LANE
            boxes[place] = Box(left + inset, left + width - inset, y, level, lanes[place])
        left += width + BOX_GAP
    return boxes


def _leaps(start: Box, stop: Box, boxes: Iterable[Box]) -> bool:
    """Whether a line in the uppermost lane would go through a box."""
    return start.lane == stop.lane == 0 and any(box.lane == 0 and start.level < box.level < stop.level for box in boxes)


def _inside_of(one: tuple[Box, Box], other: tuple[Box, Box]) -> bool:
    return one != other and one[0].level >= other[0].level and one[1].level <= other[1].level


def _arc(start: Box, stop: Box, top: float) -> str:
    middle = (stop.left + stop.right) / 2
    return _path(
        f"M{start.right:.1f} {start.y:.1f}C{start.right + 8:.1f} {top:.1f} {start.right + 8:.1f} {top:.1f} "
        f"{start.right + 22:.1f} {top:.1f}L{middle - 14:.1f} {top:.1f}"
        f"Q{middle:.1f} {top:.1f} {middle:.1f} {stop.y - BOX_HEIGHT / 2 + 2:.1f}"
    )


def _edge(start: Box, stop: Box) -> str:
    """Level as far as the gap before the box, then up or down; from the entry at once."""
    bend = f"{4:g} {start.y:.1f}L{12:g} {stop.y:.1f}" if start.level == 0 else f"{stop.left - 13:.1f} {start.y:.1f}"
    return _path(f"M{start.right:.1f} {start.y:.1f}L{bend}L{stop.left - 1:.1f} {stop.y:.1f}")


def _box_width(row: Row) -> float:
    if row.kind in SYMBOLS:
        return 20.0 if len(SYMBOLS[row.kind]) == 1 else 44.0
    return max(BOX_WIDTH - 24, *(_width(line, 9) for line in _inside(row))) + 10


def _box(row: Row, box: Box) -> str:
    left, right, y = box.left, box.right, box.y
    middle, word = (left + right) / 2, SYMBOLS.get(row.kind, "")
    if len(word) == 1:
        circle = f'<circle cx="{middle:.1f}" cy="{y:.1f}" r="10" fill="#ffffff" stroke="{LINE}"/>'
        return circle + _words(middle, y + 5, word, 15)
    words = [word] if word else _inside(row)
    fill = (
        f'fill="#ffffff" stroke="{LINE}"'
        if word
        else f'fill="{_colour(row)}" fill-opacity="0.35" stroke="{_colour(row)}"'
    )
    frame = (
        f'<rect x="{left:.1f}" y="{y - BOX_HEIGHT / 2:.1f}" width="{right - left:.1f}" height="{BOX_HEIGHT:g}" '
        f'rx="{10 if word else 3}" {fill}/>'
    )
    top = y + 3 - 5 * (len(words) - 1)
    return frame + "".join(_words(middle, top + 10.5 * number, line, 9) for number, line in enumerate(words))


def _inside(row: Row) -> list[str]:
    """A box's lines: what it does, then into how many channels, with stride and padding."""
    head, *rest = _broken(row)
    channels = [f"→ {row.output[0 if len(row.output) == 3 else -1]}"] if row.macs and row.kind != "attention" else []
    return [head, *filter(None, [" ".join([*channels, *rest])])]


def _slab(row: Row) -> Drawn:
    """What a layer answers: a slab for maps, a bar for a vector, with its size below."""
    channels, height, depth = _measures(row.output)
    colour = _colour(row)
    line = f'fill="{colour}" stroke="{INK}" stroke-width="0.6"'
    front = f'<rect x="0" y="{-height / 2:.1f}" width="{channels:.1f}" height="{height:.1f}" {line}/>'
    top = f'<path d="M0 {-height / 2:.1f}l{depth:.1f} {-depth:.1f}h{channels:.1f}l{-depth:.1f} {depth:.1f}z"'
    side = (
        f'<path d="M{channels:.1f} {-height / 2:.1f}l{depth:.1f} {-depth:.1f}v{height:.1f}l{-depth:.1f} {depth:.1f}z"'
    )
    solid = f'{top} {line} fill-opacity="0.55"/>{side} {line} fill-opacity="0.75"/>' if depth else ""
    size = times(row.output)
    notes = [*_wrapped(row.follows)]
    width = max(channels + depth, _width(size, 10), *(_width(note, 8.5) for note in notes), 0) + 6
    shift = (width - channels - depth) / 2
    svg = [
        f'<g transform="translate({shift:.1f} {depth / 2:.1f})">{front}{solid}</g>',
        _words(width / 2, height / 2 + depth / 2 + 14, size, 10),
    ]
    svg += [
        _words(width / 2, height / 2 + depth / 2 + 26 + 10 * number, note, 8.5, SOFT)
        for number, note in enumerate(notes)
    ]
    return Drawn("".join(svg), width, height / 2 + depth / 2 + 4, height / 2 + depth / 2 + 20 + 10 * len(notes))


def _measures(shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Width by channels, height by the picture's height, depth by its width; logarithmic."""
    if len(shape) == 3:
        channels, height, width = shape
        return 4 + 4 * math.log2(channels + 1), 10 + 17 * math.log2(height + 1), 4 + 3.5 * math.log2(width + 1)
    if len(shape) == 2:
        return 4 + 4 * math.log2(shape[1] + 1), 10 + 12 * math.log2(shape[0] + 1), 0.0
    return 9.0, 14 + 9 * math.log2(math.prod(shape) + 1), 0.0


def _colour(row: Row) -> str:
    return next((colour for word, colour in COLOURS.items() if word in row.kind), COLOURS["join"])


def _broken(row: Row) -> list[str]:
    """A caption in lines: kind with kernel, then stride and padding."""
    words = caption(row)
    head, _, rest = words.partition(" /") if " /" in words else words.partition(" +")
    if not rest:
        return [words]
    return [head, words[len(head) + 1 :]]


def _wrapped(follows: Sequence[str]) -> list[str]:
    return [", ".join(follows[start : start + 2]) for start in range(0, len(follows), 2)]


def _legend(y: float) -> str:
    svg, x = [], 20.0
    names = {
        "conv": "convolution",
        "pool": "pooling",
        "linear": "linear",
        "attention": "attention",
        "join": "join or other",
    }
    for kind, name in names.items():
        svg.append(f'<rect x="{x:g}" y="{y - 9:g}" width="10" height="10" rx="2" fill="{COLOURS[kind]}"/>')
        svg.append(_words(x + 15, y, name, 10, SOFT, anchor="start"))
        x += 30 + _width(name, 10)
    words = "height: rows of the picture, width: channels, logarithmic; caption: kernel, /stride, +padding"
    return "".join(svg) + _words(20, y + 15, words, 10, SOFT, anchor="start")


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return _path(f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}")


def _path(way: str, head: bool = True) -> str:
    end = ' marker-end="url(#head)"' if head else ""
    return f'<path d="{way}" fill="none" stroke="{LINE}" stroke-width="1.2"{end}/>'


def _words(
    x: float, y: float, text: str, size: float, colour: str = INK, weight: str = "", anchor: str = "middle"
) -> str:
    bold = f' font-weight="{weight}"' if weight else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size:g}" fill="{colour}"{bold}>{_safe(text)}</text>'


def _width(text: str, size: float) -> float:
    """About how wide a text is."""
    return 0.58 * size * len(text)


def _safe(text: str) -> str:
    """Escaped, and without the characters that XML does not know."""
    return escape(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))
