"""Which pixels one element of a tensor depends on, followed through torch's operators by their shapes alone.

A dimension of a tensor is a product of factors, outermost first. A factor that runs along the picture says how many
pixels its neighbours are apart; so views, permutations and windows keep what is known. Offsets of the first and last
pixel seen are relative to where an element stands, so that padding and branches are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

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
class Call:
    """One call of an operator: its arguments by the names of its schema, and what it answered."""

    name: str
    """Without namespace and overload, in-place or not: `relu` for aten.relu_.default."""
    arguments: dict[str, Any]
    reached: tuple[tuple[Tensor, Reach], ...]
    """Those of its tensors that depend on the picture, in order."""
    shape: tuple[int, ...]
    """Of the answer, the first where there are several."""
    pointwise: bool

    def reach_of(self, name: str) -> Reach | None:
        """Of one of its arguments."""
        tensor = self.arguments.get(name)
        return next((reach for found, reach in self.reached if found is tensor), None)


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


def after(call: Call) -> Reach:
    """What the answer of a call sees; of several answers, each that has the shape of the first."""
    if call.name in RULES:
        return RULES[call.name](call)
    if call.pointwise or call.name in SAME:
        return _merged(call)
    return _lost(call)


def window_of(call: Call) -> Window | None:
    """The window of a convolution or of a pooling layer with a kernel; None for other operators."""
    given = call.arguments
    if call.name in CONVOLUTIONS:
        kernel = tuple(given["weight"].shape[2:])
        stride, padding, dilation = (_full(given[name], len(kernel)) for name in ("stride", "padding", "dilation"))
        return Window(kernel, stride, padding, dilation, False, given["groups"], given["transposed"])
    if call.name in POOLS:
        count = POOLS[call.name]
        kernel = _full(given["kernel_size"], count)
        stride = _full(given["stride"], count) if given.get("stride") else kernel
        padding, dilation = (
            _full(given.get(name) or default, count) for name, default in (("padding", 0), ("dilation", 1))
        )
        return Window(kernel, stride, padding, dilation, bool(given.get("ceil_mode")))
    return None


def along_picture(dim: Dimension) -> bool:
    """Whether a dimension has more than one position of the picture in it."""
    return any(factor.axes and factor.size > 1 for factor in dim)


def _full(values: int | Sequence[int], count: int) -> tuple[int, ...]:
    values = (values,) if isinstance(values, int) else tuple(values)
    return values * count if len(values) == 1 else values


def _plain(shape: Iterable[int]) -> tuple[Dimension, ...]:
    return tuple((Factor(size),) for size in shape)


def _unpadded(count: int) -> tuple[tuple[int, int], ...]:
    return ((0, 0),) * count


def _axes(factors: Iterable[Factor]) -> tuple[int, ...]:
    return tuple(sorted({axis for factor in factors for axis in factor.axes}))


def _moved(span: Span, first: int, last: int) -> Span:
    return span if isinstance(span, str) else (span[0] + first, span[1] + last)


def _wider(one: Span, other: Span) -> Span:
    """What sees as much as both together."""
    if isinstance(one, str) or isinstance(other, str):
        return "all" if "all" in (one, other) else "unknown"
    return min(one[0], other[0]), max(one[1], other[1])


def _with_unknown(spans: tuple[Span, Span], axes: Iterable[int]) -> tuple[Span, Span]:
    lost = set(axes)
    height, width = ("unknown" if axis in lost and span != "all" else span for axis, span in enumerate(spans))
    return height, width


def _lost(call: Call) -> Reach:
    """After an operator that nothing is known about."""
    first = call.reached[0][1]
    spans = _with_unknown(_all_spans(call), (0, 1))
    return Reach(first.picture, _plain(call.shape), spans, _unpadded(len(call.shape)))


def _all_spans(call: Call) -> tuple[Span, Span]:
    """What sees as much as all that went in. An offset from where an element stands can't be compared with a place."""
    reaches = [reach for _, reach in call.reached]
    spans: list[Span] = []
    for axis in (0, 1):
        span = reaches[0].spans[axis]
        for reach in reaches[1:]:
            span = _wider(span, reach.spans[axis])
        stays = {axis in _axes(factor for dim in reach.dims for factor in dim) for reach in reaches}
        spans.append("unknown" if len(stays) > 1 and span != "all" else span)
    return spans[0], spans[1]


def _merged(call: Call) -> Reach:
    """Element by element, with broadcasting."""
    first = call.reached[0][1]
    dims: list[Dimension] = []
    for back in range(len(call.shape), 0, -1):
        size = call.shape[-back]
        here = [reach.dims[-back] for _, reach in call.reached if len(reach.dims) >= back]
        along = {dim for dim in here if _axes(dim) and math.prod(factor.size for factor in dim) == size}
        if len(along) > 1:
            dims.append((Factor(size, _axes(factor for dim in along for factor in dim)),))
        else:
            dims.append(along.pop() if along else (Factor(size),))
    same = len({reach.padded for _, reach in call.reached}) == 1 and len(first.padded) == len(dims)
    return Reach(first.picture, tuple(dims), _all_spans(call), first.padded if same else _unpadded(len(dims)))


def slid(reach: Reach, window: Window, shape: tuple[int, ...]) -> Reach:
    """After a window has slid over the last dimensions; every one before them but the batch is mixed."""
    count = len(window.kernel)
    dims, spans = list(reach.dims[:-count]), list(reach.spans)
    for place in range(count):
        dim, size = reach.dims[place - count], shape[place - count]
        kernel, stride, padding = window.kernel[place], window.stride[place], window.padding[place]
        if not _axes(dim):
            dims.append((Factor(size),))
        elif kernel == stride == 1 and padding == 0:
            dims.append(dim)
        elif len(dim) == 1 and (step := dim[0].step) is not None and not window.transposed:
            (axis,) = dim[0].axes
            last = (kernel - 1) * window.dilation[place] - padding
            spans[axis] = _moved(spans[axis], -padding * step, last * step)
            dims.append((Factor(size, (axis,), step * stride),))
        else:
            spans = list(_with_unknown((spans[0], spans[1]), _axes(dim)))
            dims.append((Factor(size, _axes(dim)),))
    return Reach(reach.picture, tuple(dims), (spans[0], spans[1]), _unpadded(len(dims)))


def mixed(reach: Reach, places: Iterable[int]) -> Reach:
    """After every element along some dimensions went into one; those dimensions are of size 1 then."""
    places = [place % len(reach.dims) for place in places]
    gone = [factor for place in places for factor in reach.dims[place] if factor.size > 1]
    left = [factor for place, dim in enumerate(reach.dims) if place not in places for factor in dim]
    spans = list(reach.spans)
    for axis in _axes(gone):
        steps = [(factor.size - 1, factor.step) for factor in gone if axis in factor.axes]
        if all(step is not None for _, step in steps) and spans[axis] != "unknown":
            seen = _moved(spans[axis], 0, sum(count * (step or 0) for count, step in steps))
            whole = not isinstance(seen, str) and seen[0] <= 0 and seen[1] >= reach.picture[axis] - 1
            spans[axis] = "all" if whole and axis not in _axes(left) else seen
        elif any(axis in factor.axes and factor.size > 1 for factor in left):
            spans = list(_with_unknown((spans[0], spans[1]), (axis,)))
        else:
            spans[axis] = "all"
    dims = tuple(() if place in places else dim for place, dim in enumerate(reach.dims))
    return Reach(reach.picture, dims, (spans[0], spans[1]), _unpadded(len(dims)))


def _mixed_in_place(reach: Reach, places: Iterable[int]) -> Reach:
    """As `mixed`, but every element stays where it is: softmax, and norms that average over positions."""
    places = [place % len(reach.dims) for place in places]
    touched = _axes(factor for place in places for factor in reach.dims[place] if factor.size > 1)
    after_it = mixed(reach, places)
    spans = tuple(
        "all"
        if axis in touched and not any(axis in factor.axes for dim in after_it.dims for factor in dim)
        else ("unknown" if axis in touched and span != "all" else span)
        for axis, span in enumerate(after_it.spans)
    )
    return replace(reach, spans=(spans[0], spans[1]), padded=_unpadded(len(reach.dims)))


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
                axes = _axes([*dim, factor, *rest])
                dims += [(Factor(left, axes),) for left in shape[len(dims) :]]
                return Reach(reach.picture, tuple(dims), reach.spans, _unpadded(len(dims)))
        dims.append(tuple(dim))
    return Reach(reach.picture, tuple(dims), reach.spans, _unpadded(len(dims)))


def _view(call: Call) -> Reach:
    return reshaped(call.reached[0][1], call.shape)


def _permute(call: Call) -> Reach:
    reach, order = call.reached[0][1], list(range(len(call.shape)))
    if call.name == "permute":
        order = [place % len(order) for place in call.arguments["dims"]]
    elif len(order) > 1:
        one, other = (call.arguments.get(name, default) for name, default in (("dim0", 0), ("dim1", 1)))
        order[one], order[other] = order[other], order[one]
    return replace(reach, dims=tuple(reach.dims[place] for place in order), padded=_unpadded(len(order)))


def _expand(call: Call) -> Reach:
    reach = call.reached[0][1]
    new = len(call.shape) - len(reach.dims)
    dims = tuple(
        reach.dims[place - new]
        if place >= new and math.prod(factor.size for factor in reach.dims[place - new]) == size
        else (Factor(size),)
        for place, size in enumerate(call.shape)
    )
    return replace(reach, dims=dims, padded=_unpadded(len(dims)))


def _slice(call: Call) -> Reach:
    reach, place = call.reached[0][1], call.arguments.get("dim", 0)
    start, step = call.arguments.get("start") or 0, call.arguments.get("step", 1)
    size = math.prod(factor.size for factor in reach.dims[place])
    start = min(max(start + size if start < 0 else start, 0), size)
    return _cut(reach, place, start, step, call.shape[place])


def _cut(reach: Reach, place: int, start: int, step: int, size: int) -> Reach:
    """Every step-th of a dimension, from `start` on."""
    place %= len(reach.dims)
    dim, spans = reach.dims[place], reach.spans
    if not _axes(dim) or (start == 0 and math.prod(factor.size for factor in dim) == size):
        new: Dimension = dim if _axes(dim) else (Factor(size),)
    elif len(dim) == 1 and dim[0].step is not None:
        shift, (axis,) = start * dim[0].step, dim[0].axes
        height, width = (_moved(span, shift, shift) if axis == at else span for at, span in enumerate(spans))
        spans, new = (height, width), (replace(dim[0], size=size, step=dim[0].step * step),)
    else:
        new = (Factor(size, _axes(dim)),)
    return replace(
        reach, dims=(*reach.dims[:place], new, *reach.dims[place + 1 :]), spans=spans, padded=_unpadded(len(reach.dims))
    )


def _select(call: Call) -> Reach:
    reach, place = call.reached[0][1], call.arguments.get("dim", 0) % len(call.reached[0][1].dims)
    dim = reach.dims[place]
    if along_picture(dim):
        if len(dim) != 1 or dim[0].step is None:
            reach = replace(reach, spans=_with_unknown(reach.spans, _axes(dim)))
        size = math.prod(factor.size for factor in dim)
        reach = _cut(reach, place, call.arguments["index"] % size, 1, 1)
    dims = (*reach.dims[:place], *reach.dims[place + 1 :])
    return replace(reach, dims=dims, padded=_unpadded(len(dims)))


def _split(call: Call) -> Reach:
    reach, place = call.reached[0][1], call.arguments.get("dim", 0) % len(call.reached[0][1].dims)
    if call.name == "unbind":
        dims = (*reach.dims[:place], *reach.dims[place + 1 :])
        return replace(reach, dims=dims, padded=_unpadded(len(dims)), spans=_spans_without(reach, place))
    dims = (*reach.dims[:place], (Factor(call.shape[place]),), *reach.dims[place + 1 :])
    return replace(reach, dims=dims, padded=_unpadded(len(dims)), spans=_spans_without(reach, place))


def _spans_without(reach: Reach, place: int) -> tuple[Span, Span]:
    return _with_unknown(reach.spans, _axes(reach.dims[place]) if along_picture(reach.dims[place]) else ())


def _join(call: Call) -> Reach:
    """Side by side along a dimension."""
    place = call.arguments.get("dim", 0) % len(call.shape)
    reaches = [reach for _, reach in call.reached]
    if call.name == "stack":
        reaches = [replace(reach, dims=(*reach.dims[:place], (), *reach.dims[place:])) for reach in reaches]
    axes = _axes(factor for reach in reaches for factor in reach.dims[place])
    dims: list[Dimension] = []
    for at, size in enumerate(call.shape):
        here = {reach.dims[at] for reach in reaches if _axes(reach.dims[at])}
        if at == place:
            dims.append((Factor(size, axes),))
        elif len(here) > 1:
            dims.append((Factor(size, _axes(factor for dim in here for factor in dim)),))
        else:
            dims.append(here.pop() if here else (Factor(size),))
    return Reach(reaches[0].picture, tuple(dims), _all_spans(call), _unpadded(len(dims)))


def _pad(call: Call) -> Reach:
    reach, amounts = call.reached[0][1], list(call.arguments.get("pad") or call.arguments["padding"])
    dims, spans, padded = list(reach.dims), list(reach.spans), list(reach.padded)
    for place, (before, behind) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), start=1):
        dim, size = dims[-place], call.shape[-place]
        if not _axes(dim):
            dims[-place] = (Factor(size),)
        elif before or behind:
            padded[-place] = (padded[-place][0] + before, padded[-place][1] + behind)
            if len(dim) == 1 and (step := dim[0].step) is not None:
                (axis,) = dim[0].axes
                spans[axis] = _moved(spans[axis], -before * step, -before * step)
                dims[-place] = (replace(dim[0], size=size),)
            else:
                dims[-place] = (Factor(size, _axes(dim)),)
    return Reach(reach.picture, tuple(dims), (spans[0], spans[1]), tuple(padded))


def _slide(call: Call) -> Reach:
    window, reach = window_of(call), call.reached[0][1]
    if window is None:
        return _lost(call)
    if call.name in CONVOLUTIONS:
        first = call.reach_of("input")
        if first is None or call.reach_of("weight") is not None:
            return _lost(call)
        kept = mixed(first, [1])  # of the channels, which are no part of the picture but after a reshape
        reach = slid(kept, window, call.shape)
        return replace(reach, dims=(reach.dims[0], (Factor(call.shape[1]),), *reach.dims[2:]))
    return slid(reach, window, call.shape)


def _adaptive(call: Call) -> Reach:
    """Windows from floor(i W / N) to ceil((i + 1) W / N): those of a plain kernel where N divides W."""
    reach = call.reached[0][1]
    count = int(call.name[-2])  # of dimensions: the 2 of 2d
    for place in range(-count, 0):
        size, dim = call.shape[place], reach.dims[place]
        whole = math.prod(factor.size for factor in dim)
        if whole == size:
            continue
        if size == 1:
            reach = mixed(reach, [place])
        elif whole % size == 0:
            kernel = whole // size
            ones = (1,) * count
            here = tuple(kernel if at == place + count else 1 for at in range(count))
            shape = [math.prod(factor.size for factor in found) for found in reach.dims]
            shape[place] = size
            reach = slid(reach, Window(here, here, (0,) * count, ones), tuple(shape))
        else:
            dims = list(reach.dims)
            dims[place] = (Factor(size, _axes(dim)),)
            reach = replace(reach, dims=tuple(dims), spans=_with_unknown(reach.spans, _axes(dim)))
    return replace(reach, padded=_unpadded(len(reach.dims)))


def _reduce(call: Call) -> Reach:
    reach = call.reached[0][1]
    given = call.arguments.get("dim")
    places = list(range(len(reach.dims))) if given in (None, []) else [given] if isinstance(given, int) else list(given)
    result = mixed(reach, places)
    if not call.arguments.get("keepdim"):
        gone = {place % len(reach.dims) for place in places}
        dims = tuple(dim for place, dim in enumerate(result.dims) if place not in gone)
        result = replace(result, dims=dims, padded=_unpadded(len(dims)))
    return result


def _softmax(call: Call) -> Reach:
    return _mixed_in_place(call.reached[0][1], [call.arguments["dim"]])


def _layer_norm(call: Call) -> Reach:
    return _mixed_in_place(call.reached[0][1], range(-len(call.arguments["normalized_shape"]), 0))


def _group_norm(call: Call) -> Reach:
    return _mixed_in_place(call.reached[0][1], range(1, len(call.shape)))


def _matmul(call: Call) -> Reach:
    """(…, M, K) by (…, K, N)."""
    one, other = (call.reach_of(name) for name in (("mat1", "mat2") if call.name == "addmm" else OPERANDS[call.name]))
    if one is None and other is None:
        return _merged(call)
    reach = replace(call.reached[0][1], dims=_plain(call.shape), padded=_unpadded(len(call.shape)))
    rows = mixed(one, [-1]) if one else None
    columns = mixed(other, [-2]) if other else None
    spans = rows.spans if rows else columns.spans if columns else reach.spans
    dims = list(_plain(call.shape))
    if rows:
        dims[:-1] = rows.dims[:-1]
    if columns and not rows:
        dims = [*columns.dims[:-2], (Factor(call.shape[-2]),), columns.dims[-1]]
    if rows and columns:
        spans = _wider(rows.spans[0], columns.spans[0]), _wider(rows.spans[1], columns.spans[1])
        seen = set(_axes(columns.dims[-1]))
        both = seen & set(_axes(rows.dims[-2]))
        elsewhere = set(_axes(factor for dim in rows.dims[:-2] for factor in dim if factor.size > 1))
        # Each of the rows meets each of the columns: all positions where the batch holds no others.
        spans = tuple(  # type: ignore[assignment]
            ("unknown" if axis in elsewhere and span != "all" else "all") if axis in both else span
            for axis, span in enumerate(spans)
        )
        if not both:
            dims[-1] = columns.dims[-1]
    return replace(reach, dims=tuple(dims), spans=spans)


def _attention(call: Call) -> Reach:
    query, value = call.reach_of("query"), call.reach_of("value")
    if query is None or value is None:
        return _lost(call)
    mixing = mixed(value, [-2])
    spans = _wider(query.spans[0], mixing.spans[0]), _wider(query.spans[1], mixing.spans[1])
    elsewhere = _axes(factor for dim in query.dims[:-2] for factor in dim if factor.size > 1)
    spans = _with_unknown(spans, elsewhere)
    return Reach(query.picture, (*query.dims[:-1], (Factor(call.shape[-1]),)), spans, _unpadded(len(call.shape)))


def _same(call: Call) -> Reach:
    return replace(call.reached[0][1], padded=_unpadded(len(call.shape)))


CONVOLUTIONS = frozenset({"convolution", "_convolution", "cudnn_convolution", "convolution_overrideable"})
POOLS = {
    "max_pool2d": 2, "max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "avg_pool1d": 1, "avg_pool2d": 2,
    "avg_pool3d": 3, "mkldnn_max_pool2d": 2,
}  # fmt: skip
"""Operators that pool with a kernel, and the number of dimensions they pool over."""
ADAPTIVE = frozenset(
    {"_adaptive_avg_pool2d", "adaptive_max_pool2d", "_adaptive_avg_pool3d", "mkldnn_adaptive_avg_pool2d"}
)
REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "linalg_vector_norm", "var", "std", "var_mean", "any", "all"})
OPERANDS = {"mm": ("self", "mat2"), "bmm": ("self", "mat2"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}
"""Of each matrix product, the names of its two operands."""
ATTENTIONS = frozenset(
    {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    }
)
FRESH = frozenset(
    {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like", "fill",
     "rand_like", "randn_like", "zero"}
)  # fmt: skip
"""Operators that take no more than a shape or a type from a tensor, or overwrite it."""
SAME = frozenset(
    {"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "detach", "alias", "clone",
     "native_dropout", "lift_fresh", "_to_copy", "contiguous", "hardswish", "prelu", "_prelu_kernel", "masked_fill"}
)  # fmt: skip
"""Element by element, though torch does not tag them so."""

RULES: dict[str, Callable[[Call], Reach]] = {
    **dict.fromkeys(CONVOLUTIONS | set(POOLS), _slide),
    **dict.fromkeys(ADAPTIVE, _adaptive),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(OPERANDS, _matmul),
    **dict.fromkeys(ATTENTIONS, _attention),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze"), _view),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("split", "split_with_sizes", "unbind", "chunk"), _split),
    **dict.fromkeys(("cat", "stack"), _join),
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax"), _softmax),
    "expand": _expand,
    "slice": _slice,
    "select": _select,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "roll": _same,
}


def call_of(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], answer: Any, reach_of: Callable[[Tensor], Reach | None]
) -> Call:
    """A call as the dispatcher tells it; reach_of tells what is known of a tensor, None where it sees no picture."""
    schema = func._schema
    arguments = {item.name: item.default_value for item in schema.arguments if item.has_default_value()}
    arguments |= {item.name: value for item, value in zip(schema.arguments, args, strict=False)} | kwargs
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    name = func._schema.name.partition("::")[2]
    name = name.removesuffix("_") if not name.startswith("__") else name
    watched = () if name in FRESH else tensors
    reached = tuple((tensor, reach) for tensor in watched if (reach := reach_of(tensor)) is not None)
    answers = [leaf for leaf in torch.utils._pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]
    shape = tuple(answers[0].shape) if answers else ()
    return Call(name, arguments, reached, shape, torch.Tag.pointwise in func.tags)
