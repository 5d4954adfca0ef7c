"""What torch's operators do to the pixels an element depends on: one rule each, by the names of their schemas.

https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/native_functions.yaml
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .reach import (
    Dimension,
    Factor,
    Reach,
    Span,
    Window,
    along_picture,
    axes_of,
    cut,
    mixed,
    mixed_in_place,
    moved,
    plain,
    reshaped,
    slid,
    unpadded,
    wider,
    with_unknown,
)


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
    if call.name == CONVOLUTION:
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


def _full(values: int | Sequence[int], count: int) -> tuple[int, ...]:
    values = (values,) if isinstance(values, int) else tuple(values)
    return values * count if len(values) == 1 else values


def _lost(call: Call) -> Reach:
    """After an operator that nothing is known about."""
    first = call.reached[0][1]
    spans = with_unknown(_all_spans(call), (0, 1))
    return Reach(first.picture, plain(call.shape), spans, unpadded(len(call.shape)))


def _all_spans(call: Call) -> tuple[Span, Span]:
    """What sees as much as all that went in. An offset from where an element stands can't be compared with a place."""
    reaches = [reach for _, reach in call.reached]
    spans: list[Span] = []
    for axis in (0, 1):
        span = reaches[0].spans[axis]
        for reach in reaches[1:]:
            span = wider(span, reach.spans[axis])
        stays = {axis in axes_of(factor for dim in reach.dims for factor in dim) for reach in reaches}
        spans.append("unknown" if len(stays) > 1 and span != "all" else span)
    return spans[0], spans[1]


def _merged(call: Call) -> Reach:
    """Element by element, with broadcasting."""
    first = call.reached[0][1]
    dims: list[Dimension] = []
    for back in range(len(call.shape), 0, -1):
        size = call.shape[-back]
        here = [reach.dims[-back] for _, reach in call.reached if len(reach.dims) >= back]
        along = {dim for dim in here if axes_of(dim) and math.prod(factor.size for factor in dim) == size}
        if len(along) > 1:
            dims.append((Factor(size, axes_of(factor for dim in along for factor in dim)),))
        else:
            dims.append(along.pop() if along else (Factor(size),))
    same = len({reach.padded for _, reach in call.reached}) == 1 and len(first.padded) == len(dims)
    return Reach(first.picture, tuple(dims), _all_spans(call), first.padded if same else unpadded(len(dims)))


def _view(call: Call) -> Reach:
    return reshaped(call.reached[0][1], call.shape)


def _permute(call: Call) -> Reach:
    reach, order = call.reached[0][1], list(range(len(call.shape)))
    if call.name == "permute":
        order = [place % len(order) for place in call.arguments["dims"]]
    elif len(order) > 1:
        one, other = (call.arguments.get(name, default) for name, default in (("dim0", 0), ("dim1", 1)))
        order[one], order[other] = order[other], order[one]
    return replace(reach, dims=tuple(reach.dims[place] for place in order), padded=unpadded(len(order)))


def _expand(call: Call) -> Reach:
    reach = call.reached[0][1]
    new = len(call.shape) - len(reach.dims)
    dims = tuple(
        reach.dims[place - new]
        if place >= new and math.prod(factor.size for factor in reach.dims[place - new]) == size
        else (Factor(size),)
        for place, size in enumerate(call.shape)
    )
    return replace(reach, dims=dims, padded=unpadded(len(dims)))


def _slice(call: Call) -> Reach:
    reach, place = call.reached[0][1], call.arguments.get("dim", 0)
    start, step = call.arguments.get("start") or 0, call.arguments.get("step", 1)
    size = math.prod(factor.size for factor in reach.dims[place])
    start = min(max(start + size if start < 0 else start, 0), size)
    return cut(reach, place, start, step, call.shape[place])


def _select(call: Call) -> Reach:
    reach, place = call.reached[0][1], call.arguments.get("dim", 0) % len(call.reached[0][1].dims)
    dim = reach.dims[place]
    if along_picture(dim):
        if len(dim) != 1 or dim[0].step is None:
            reach = replace(reach, spans=with_unknown(reach.spans, axes_of(dim)))
        size = math.prod(factor.size for factor in dim)
        reach = cut(reach, place, call.arguments["index"] % size, 1, 1)
    dims = (*reach.dims[:place], *reach.dims[place + 1 :])
    return replace(reach, dims=dims, padded=unpadded(len(dims)))


def _split(call: Call) -> Reach:
    reach, place = call.reached[0][1], call.arguments.get("dim", 0) % len(call.reached[0][1].dims)
    if call.name == "unbind":
        dims = (*reach.dims[:place], *reach.dims[place + 1 :])
        return replace(reach, dims=dims, padded=unpadded(len(dims)), spans=_spans_without(reach, place))
    dims = (*reach.dims[:place], (Factor(call.shape[place]),), *reach.dims[place + 1 :])
    return replace(reach, dims=dims, padded=unpadded(len(dims)), spans=_spans_without(reach, place))


def _spans_without(reach: Reach, place: int) -> tuple[Span, Span]:
    return with_unknown(reach.spans, axes_of(reach.dims[place]) if along_picture(reach.dims[place]) else ())


def _join(call: Call) -> Reach:
    """Side by side along a dimension."""
    place = call.arguments.get("dim", 0) % len(call.shape)
    reaches = [reach for _, reach in call.reached]
    if call.name == "stack":
        reaches = [replace(reach, dims=(*reach.dims[:place], (), *reach.dims[place:])) for reach in reaches]
    axes = axes_of(factor for reach in reaches for factor in reach.dims[place])
    dims: list[Dimension] = []
    for at, size in enumerate(call.shape):
        here = {reach.dims[at] for reach in reaches if axes_of(reach.dims[at])}
        if at == place:
            dims.append((Factor(size, axes),))
        elif len(here) > 1:
            dims.append((Factor(size, axes_of(factor for dim in here for factor in dim)),))
        else:
            dims.append(here.pop() if here else (Factor(size),))
    return Reach(reaches[0].picture, tuple(dims), _all_spans(call), unpadded(len(dims)))


def _pad(call: Call) -> Reach:
    reach, amounts = call.reached[0][1], list(call.arguments.get("pad") or call.arguments["padding"])
    dims, spans, padded = list(reach.dims), list(reach.spans), list(reach.padded)
    for place, (before, behind) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), start=1):
        dim, size = dims[-place], call.shape[-place]
        if not axes_of(dim):
            dims[-place] = (Factor(size),)
        elif before or behind:
            padded[-place] = (padded[-place][0] + before, padded[-place][1] + behind)
            if len(dim) == 1 and (step := dim[0].step) is not None:
                (axis,) = dim[0].axes
                spans[axis] = moved(spans[axis], -before * step, -before * step)
                dims[-place] = (replace(dim[0], size=size),)
            else:
                dims[-place] = (Factor(size, axes_of(dim)),)
    return Reach(reach.picture, tuple(dims), (spans[0], spans[1]), tuple(padded))


def _slide(call: Call) -> Reach:
    window, reach = window_of(call), call.reached[0][1]
    if window is None:
        return _lost(call)
    if call.name == CONVOLUTION:
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
            dims[place] = (Factor(size, axes_of(dim)),)
            reach = replace(reach, dims=tuple(dims), spans=with_unknown(reach.spans, axes_of(dim)))
    return replace(reach, padded=unpadded(len(reach.dims)))


def _reduce(call: Call) -> Reach:
    reach = call.reached[0][1]
    given = call.arguments.get("dim")
    places = list(range(len(reach.dims))) if given in (None, []) else [given] if isinstance(given, int) else list(given)
    result = mixed(reach, places)
    if not call.arguments.get("keepdim"):
        gone = {place % len(reach.dims) for place in places}
        dims = tuple(dim for place, dim in enumerate(result.dims) if place not in gone)
        result = replace(result, dims=dims, padded=unpadded(len(dims)))
    return result


def _softmax(call: Call) -> Reach:
    return mixed_in_place(call.reached[0][1], [call.arguments["dim"]])


def _layer_norm(call: Call) -> Reach:
    return mixed_in_place(call.reached[0][1], range(-len(call.arguments["normalized_shape"]), 0))


def _group_norm(call: Call) -> Reach:
    return mixed_in_place(call.reached[0][1], range(1, len(call.shape)))


def _matmul(call: Call) -> Reach:
    """(…, M, K) by (…, K, N)."""
    one, other = (call.reach_of(name) for name in (("mat1", "mat2") if call.name == "addmm" else OPERANDS[call.name]))
    if one is None and other is None:
        return _merged(call)
    reach = replace(call.reached[0][1], dims=plain(call.shape), padded=unpadded(len(call.shape)))
    rows = mixed(one, [-1]) if one else None
    columns = mixed(other, [-2]) if other else None
    spans = rows.spans if rows else columns.spans if columns else reach.spans
    dims = list(plain(call.shape))
    if rows:
        dims[:-1] = rows.dims[:-1]
    if columns and not rows:
        dims = [*columns.dims[:-2], (Factor(call.shape[-2]),), columns.dims[-1]]
    if rows and columns:
        spans = wider(rows.spans[0], columns.spans[0]), wider(rows.spans[1], columns.spans[1])
        seen = set(axes_of(columns.dims[-1]))
        both = seen & set(axes_of(rows.dims[-2]))
        elsewhere = set(axes_of(factor for dim in rows.dims[:-2] for factor in dim if factor.size > 1))
        # Each of the rows meets each of the columns: all positions where the batch holds no others.
        spans = tuple(  # type: ignore[assignment]
            ("unknown" if axis in elsewhere and span != "all" else "all") if axis in both else span
            for axis, span in enumerate(spans)
        )
        if not both:
            dims[-1] = columns.dims[-1]
    return replace(reach, dims=tuple(dims), spans=spans)


def _same(call: Call) -> Reach:
    return replace(call.reached[0][1], padded=unpadded(len(call.shape)))


CONVOLUTION = "convolution"
POOLS = {"max_pool2d_with_indices": 2, "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3}
"""Operators that pool with a kernel, and the number of dimensions they pool over."""
ADAPTIVE = frozenset({"_adaptive_avg_pool2d", "adaptive_max_pool2d"})
REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "linalg_vector_norm", "var", "std", "var_mean"})
OPERANDS = {"mm": ("self", "mat2"), "bmm": ("self", "mat2"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}
"""Of each matrix product, the names of its two operands."""
FRESH = frozenset(
    {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like", "fill",
     "rand_like", "randn_like", "zero"}
)  # fmt: skip
"""Operators that take no more than a shape or a type from a tensor, or overwrite it."""
SAME = frozenset(
    {"native_batch_norm", "detach", "alias", "_to_copy", "hardswish", "_prelu_kernel", "masked_fill"}
)  # fmt: skip
"""Element by element, though torch does not tag them so."""
RULES: dict[str, Callable[[Call], Reach]] = {
    **dict.fromkeys((CONVOLUTION, *POOLS), _slide),
    **dict.fromkeys(ADAPTIVE, _adaptive),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(OPERANDS, _matmul),
    **dict.fromkeys(("view", "_unsafe_view", "unsqueeze", "squeeze"), _view),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("split", "split_with_sizes", "unbind"), _split),
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
