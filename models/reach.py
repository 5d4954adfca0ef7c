"""Which pixels one element of a tensor depends on, followed through torch's operators by their shapes alone.

A dimension of a tensor is a product of factors, outermost first. A factor that runs along the picture says how many
pixels its neighbours are apart; so views, permutations and windows keep what is known. Offsets of the first and last
pixel seen are relative to where an element stands, so that padding and branches are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Span: TypeAlias = "tuple[int, int] | Literal['all', 'unknown']"
"""Offsets in pixels of the first and the last pixel seen; the whole picture; or what can't be told."""


@dataclass(frozen=True)
class Factor:
    """Part of a dimension."""

    size: int
    axes: tuple[int, ...] = ()
    """Of the picture: 0 is its height, 1 its width; none for channels and the batch."""
    step: int | None = None
    """Pixels from one to the next; None where they are not evenly spaced, or along no axis."""


Dimension: TypeAlias = tuple[Factor, ...]


@dataclass(frozen=True)
class Reach:
    """What the elements of a tensor see of the picture."""

    picture: tuple[int, int]
    dims: tuple[Dimension, ...]
    spans: tuple[Span, Span]
    """Along height and width."""
    padded: tuple[tuple[int, int], ...]
    """Elements just put before and after each dimension, which the next layer counts as its own padding."""

    @property
    def field(self) -> tuple[int | str, int | str]:
        """Receptive field along height and width in pixels: a number, `all` or `?`."""
        height, width = (
            {"all": "all", "unknown": "?"}[span] if isinstance(span, str) else span[1] - span[0] + 1
            for span in self.spans
        )
        return height, width


@dataclass(frozen=True)
class Window:
    """What slides over the last dimensions of a tensor."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool = False
    groups: int = 1
    transposed: bool = False


def of_picture(shape: Sequence[int]) -> Reach:
    """The picture itself (1, C, H, W): each pixel sees itself."""
    batch, channels, height, width = shape
    dims = ((Factor(batch),), (Factor(channels),), (Factor(height, (0,), 1),), (Factor(width, (1,), 1),))
    return Reach((height, width), dims, ((0, 0), (0, 0)), ((0, 0),) * 4)


def along_picture(dim: Dimension) -> bool:
    """Whether a dimension has more than one position of the picture in it."""
    return any(factor.axes and factor.size > 1 for factor in dim)


def plain(shape: Iterable[int]) -> tuple[Dimension, ...]:
    """Dimensions that run along nothing of the picture."""
    return tuple((Factor(size),) for size in shape)


def unpadded(count: int) -> tuple[tuple[int, int], ...]:
    """No padding that a layer could count as its own."""
    return ((0, 0),) * count


def axes_of(factors: Iterable[Factor]) -> tuple[int, ...]:
    """The picture's axes that factors run along, in order."""
    return tuple(sorted({axis for factor in factors for axis in factor.axes}))


def moved(span: Span, first: int, last: int) -> Span:
    """A span with other ends, where it has any."""
    return span if isinstance(span, str) else (span[0] + first, span[1] + last)


def wider(one: Span, other: Span) -> Span:
    """What sees as much as both together."""
    if isinstance(one, str) or isinstance(other, str):
        return "all" if "all" in (one, other) else "unknown"
    return min(one[0], other[0]), max(one[1], other[1])


def with_unknown(spans: tuple[Span, Span], axes: Iterable[int]) -> tuple[Span, Span]:
    """Spans of which some can't be told any more; what sees the whole picture goes on doing so."""
    lost = set(axes)
    height, width = ("unknown" if axis in lost and span != "all" else span for axis, span in enumerate(spans))
    return height, width


def slid(reach: Reach, window: Window, shape: tuple[int, ...]) -> Reach:
    """After a window has slid over the last dimensions; every one before them but the batch is mixed."""
    count = len(window.kernel)
    dims, spans = list(reach.dims[:-count]), list(reach.spans)
    for place in range(count):
        dim, size = reach.dims[place - count], shape[place - count]
        kernel, stride, padding = window.kernel[place], window.stride[place], window.padding[place]
        if not axes_of(dim):
            dims.append((Factor(size),))
        elif kernel == stride == 1 and padding == 0:
            dims.append(dim)
        elif len(dim) == 1 and (step := dim[0].step) is not None and not window.transposed:
            (axis,) = dim[0].axes
            last = (kernel - 1) * window.dilation[place] - padding
            spans[axis] = moved(spans[axis], -padding * step, last * step)
            dims.append((Factor(size, (axis,), step * stride),))
        else:
            spans = list(with_unknown((spans[0], spans[1]), axes_of(dim)))
            dims.append((Factor(size, axes_of(dim)),))
    return Reach(reach.picture, tuple(dims), (spans[0], spans[1]), unpadded(len(dims)))


def mixed(reach: Reach, places: Iterable[int]) -> Reach:
    """After every element along some dimensions went into one; those dimensions are of size 1 then."""
    places = [place % len(reach.dims) for place in places]
    gone = [factor for place in places for factor in reach.dims[place] if factor.size > 1]
    left = [factor for place, dim in enumerate(reach.dims) if place not in places for factor in dim]
    spans = list(reach.spans)
    for axis in axes_of(gone):
        steps = [(factor.size - 1, factor.step) for factor in gone if axis in factor.axes]
        if all(step is not None for _, step in steps) and spans[axis] != "unknown":
            seen = moved(spans[axis], 0, sum(count * (step or 0) for count, step in steps))
            whole = not isinstance(seen, str) and seen[0] <= 0 and seen[1] >= reach.picture[axis] - 1
            spans[axis] = "all" if whole and axis not in axes_of(left) else seen
        elif any(axis in factor.axes and factor.size > 1 for factor in left):
            spans = list(with_unknown((spans[0], spans[1]), (axis,)))
        else:
            spans[axis] = "all"
    dims = tuple(() if place in places else dim for place, dim in enumerate(reach.dims))
    return Reach(reach.picture, dims, (spans[0], spans[1]), unpadded(len(dims)))


def mixed_in_place(reach: Reach, places: Iterable[int]) -> Reach:
    """As `mixed`, but every element stays where it is: softmax, and norms that average over positions."""
    places = [place % len(reach.dims) for place in places]
    touched = axes_of(factor for place in places for factor in reach.dims[place] if factor.size > 1)
    after_it = mixed(reach, places)
    spans = tuple(
        "all"
        if axis in touched and not any(axis in factor.axes for dim in after_it.dims for factor in dim)
        else ("unknown" if axis in touched and span != "all" else span)
        for axis, span in enumerate(after_it.spans)
    )
    return replace(reach, spans=(spans[0], spans[1]), padded=unpadded(len(reach.dims)))


def reshaped(reach: Reach, shape: Sequence[int]) -> Reach:
    """After a view in row-major order."""
    rest = [factor for dim in reach.dims for factor in (dim or ()) if factor.size > 1]
    dims: list[Dimension] = []
    for size in shape:
        dim: list[Factor] = []
        wanted = size
        while wanted > 1 and rest:
            factor = rest.pop(0)
            if wanted % factor.size == 0:
                dim.append(factor)
                wanted //= factor.size
            elif factor.size % wanted == 0:
                inner = factor.size // wanted
                dim.append(replace(factor, size=wanted, step=factor.step and factor.step * inner))
                rest.insert(0, replace(factor, size=inner))
                wanted = 1
            else:  # neither divides the other: what is where from here on is not followed
                axes = axes_of([*dim, factor, *rest])
                dims += [(Factor(left, axes),) for left in shape[len(dims) :]]
                return Reach(reach.picture, tuple(dims), reach.spans, unpadded(len(dims)))
        dims.append(tuple(dim))
    return Reach(reach.picture, tuple(dims), reach.spans, unpadded(len(dims)))


def cut(reach: Reach, place: int, start: int, step: int, size: int) -> Reach:
    """Every step-th of a dimension, from `start` on."""
    place %= len(reach.dims)
    dim, spans = reach.dims[place], reach.spans
    if not axes_of(dim) or (start == 0 and math.prod(factor.size for factor in dim) == size):
        new: Dimension = dim if axes_of(dim) else (Factor(size),)
    elif len(dim) == 1 and dim[0].step is not None:
        shift, (axis,) = start * dim[0].step, dim[0].axes
        height, width = (moved(span, shift, shift) if axis == at else span for at, span in enumerate(spans))
        spans, new = (height, width), (replace(dim[0], size=size, step=dim[0].step * step),)
    else:
        new = (Factor(size, axes_of(dim)),)
    return replace(
        reach, dims=(*reach.dims[:place], new, *reach.dims[place + 1 :]), spans=spans, padded=unpadded(len(reach.dims))
    )
