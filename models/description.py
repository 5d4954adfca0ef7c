"""What a network is made of, layer by layer: windows, sizes, receptive fields, parameters and multiplications.

The network runs once on torch's meta device, which holds shapes and no numbers, while every operator is watched. Sizes
are those of that run, and must be those of N = (W - F + 2P)/S + 1 too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .operators import ADAPTIVE, CONVOLUTION, OPERANDS, Call, after, call_of, window_of
from .reach import Reach, Window, along_picture, of_picture

Padding = tuple[tuple[int, int], ...]
"""Before and after, for each dimension a window slides over."""

JOINS = {"add": "add", "mul": "multiply", "cat": "concat", "stack": "concat"}
"""Operators that get a row of their own where they bring two branches together."""
FOLLOWERS = {
    "relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh", "gelu": "gelu", "silu": "silu", "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid", "leaky_relu": "leaky relu", "elu": "elu", "mish": "mish", "_prelu_kernel": "prelu",
    "hardtanh": "relu6", "native_batch_norm": "batch norm", "native_layer_norm": "layer norm",
    "native_group_norm": "group norm", "cat": "concat", "roll": "roll", "_softmax": "softmax",
}  # fmt: skip
"""Operators that are told beside the layer they follow."""
POOLED = {"mean": "average pool", "amax": "max pool", "sum": "sum"}
_NOTES = ("_trueport_reach", "_trueport_source", "_trueport_weights")


class DescriptionError(ValueError):
    """The network can't take such a picture, or nothing in it depends on the picture; the message says why."""


@dataclass(frozen=True)
class Row:
    """One layer; sizes are height, then width."""

    name: str
    """The module's name, with the operator's where the module holds others."""
    kind: str
    """`conv`, `max pool`, `linear`, `attention`, `add`, …"""
    output: tuple[int, ...]
    """Shape of what it answers for one picture, without the batch."""
    kernel: tuple[int, ...] = ()
    """Empty, as are the following, for a layer without a window."""
    stride: tuple[int, ...] = ()
    padding: Padding = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    ceil: bool = False
    """Whether sizes are rounded up, so that a last window may lean over the edge."""
    formula: tuple[str, ...] = ()
    """The arithmetic of its sizes, in numbers."""
    how: str = ""
    """How the size comes about where the formula can't tell."""
    field: tuple[int | str, int | str] = ("?", "?")
    """Receptive field in pixels: a number; `all`: the whole picture; `?`: can't be told."""
    parameters: int = 0
    """Its own and those of what follows it."""
    macs: int = 0
    """Multiplications with their additions, for one picture."""
    follows: tuple[str, ...] = ()
    """What is done to its answer, element by element or channel by channel, before the next row."""
    inputs: tuple[int, ...] = ()
    """Rows that it takes its input from."""
    path: str = ""
    """The module that computes it."""


@dataclass(frozen=True)
class Description:
    """A network and its totals, for one picture."""

    picture: tuple[int, int, int]
    """Channels, height, width."""
    rows: tuple[Row, ...]
    """In the order of computation; the first is the picture."""
    parameters: int
    unused: int
    """Parameters among them that only training uses, such as those of auxiliary classifiers."""
    macs: int
    largest: int
    """Row with the largest output."""
    device: str
    """`meta`, or `cpu` where the network does something that needs numbers."""
    reason: str = ""
    """Why it was not the meta device, as torch said it."""

    @property
    def weights_mb(self) -> float:
        """Megabytes (10^6 bytes) of the parameters in float32."""
        return self.parameters * 4 / 1e6


def output_size(
    size: int, kernel: int, stride: int = 1, padding: tuple[int, int] = (0, 0), dilation: int = 1, ceil: bool = False
) -> int:
    """N = (W - F + 2P)/S + 1 with F = D (K - 1) + 1 and a padding before and after; rounded down, or up with `ceil`.

    Rounded up, the last window must still begin on the picture or on the padding before it.
    """
    free = size + sum(padding) - dilation * (kernel - 1) - 1
    if not ceil:
        return free // stride + 1
    count = -(-free // stride) + 1
    return count - 1 if (count - 1) * stride >= size + padding[0] else count


def receptive_field(kernels: Sequence[int], strides: Sequence[int], dilations: Sequence[int] | None = None) -> int:
    """What one output of a chain of layers sees, from the last layer to the first: RF(i) = S(i)(RF(i+1) - 1) + K(i).

    A dilated kernel counts as D (K - 1) + 1. Raises ValueError where the lists differ in length.
    """
    seen = 1
    layers = zip(kernels, strides, dilations or [1] * len(kernels), strict=True)
    for kernel, stride, dilation in reversed(list(layers)):
        seen = stride * (seen - 1) + dilation * (kernel - 1) + 1
    return seen


def describe(module: nn.Module, picture: tuple[int, int, int]) -> Description:
    """The layers of a module in eval mode for pictures of (channels, height, width); it is left as it was.

    Raises DescriptionError where it can't take such a picture.
    """
    try:
        return _described(module, picture, "meta", "")
    except DescriptionError as error:
        # What needs numbers, or mixes devices, says so in as many ways as there are operators: the CPU decides.
        return _described(module, picture, "cpu", str(error))


def _described(module: nn.Module, picture: tuple[int, int, int], device: str, reason: str) -> Description:
    tensors = {name: _on(tensor, device) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    parameters = {name: tensors[name] for name, _ in module.named_parameters()}
    image = torch.zeros(1, *picture, device=device)
    with _evaluating(module), _names_of_modules(module) as stack, torch.no_grad():
        recorder = Recorder(image, parameters, stack)
        try:
            with recorder:
                torch.func.functional_call(module, tensors, (image,))
        except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, AssertionError) as error:
            if isinstance(error, SizeError):
                raise
            sentence = str(error).strip().partition("\n")[0] or type(error).__name__
            raise DescriptionError(sentence) from error
    rows = tuple(recorder.rows())
    if len(rows) == 1:
        raise DescriptionError("nothing that it computes depends on the picture")
    sizes = [tensor.numel() for tensor in parameters.values()]
    return Description(
        picture=picture,
        rows=rows,
        parameters=sum(sizes),
        unused=sum(sizes) - sum(row.parameters for row in rows),
        macs=sum(row.macs for row in rows),
        largest=max(range(len(rows)), key=lambda row: math.prod(rows[row].output)),
        device=device,
        reason=reason,
    )


def _on(tensor: Tensor, device: str) -> Tensor:
    return torch.empty_like(tensor, device="meta") if device == "meta" else tensor.detach()


class SizeError(RuntimeError):
    """Formula and run disagree: a defect of this module."""


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = {part: part.training for part in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    module.eval()
    try:
        with sdpa_kernel(SDPBackend.MATH):  # one fused operator would hide what attention computes
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, was in training.items():
            part.training = was


@contextmanager
def _names_of_modules(module: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """The modules at work, outermost first, while the module runs."""
    stack: list[tuple[str, nn.Module]] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda part, _: stack.append((name, part))

    def leave(*_: object) -> None:
        stack.pop()

    handles = []
    for name, part in module.named_modules():
        handles += [part.register_forward_pre_hook(enter(name)), part.register_forward_hook(leave, always_call=True)]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Draft:
    """A row in the making."""

    values: dict[str, Any]
    follows: list[str] = field(default_factory=list)
    parameters: int = 0
    macs: int = 0


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches operators; a tensor that depends on the picture carries what it sees and the row it comes from."""

    def __init__(self, image: Tensor, parameters: dict[str, Tensor], stack: list[tuple[str, nn.Module]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stack = stack
        self._sizes = {name: tensor.numel() for name, tensor in parameters.items()}
        self._names: dict[str, int] = {}
        self._drafts: list[_Draft] = []
        for name, tensor in parameters.items():
            tensor._trueport_weights = frozenset({name})  # type: ignore[attr-defined]
        reach = of_picture(tuple(image.shape))
        self._drafts.append(
            _Draft({"name": "input", "kind": "input", "output": tuple(image.shape[1:]), "field": reach.field})
        )
        _note(image, reach, 0, frozenset())

    def rows(self) -> Iterator[Row]:
        """What was seen."""
        for draft in self._drafts:
            follows = tuple(draft.follows)
            yield Row(**draft.values, follows=follows, parameters=draft.parameters, macs=draft.macs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.native_batch_norm.default and args[0].is_meta:
            # Its shapes are had by its whole decomposition, which would take longer than all the rest together.
            answer = (torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0))
        else:
            answer = func(*args, **(kwargs or {}))
        self._watch(func, args, kwargs or {}, answer)
        return answer

    def _watch(self, func: Any, args: Any, kwargs: dict[str, Any], answer: Any) -> None:
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        answers = [leaf for leaf in torch.utils._pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]
        weights = frozenset[str]().union(*(getattr(tensor, "_trueport_weights", frozenset()) for tensor in tensors))
        call = call_of(func, args, kwargs, answer, lambda tensor: getattr(tensor, "_trueport_reach", None))
        if not call.reached or not answers:
            for tensor in answers:
                tensor._trueport_weights = weights  # type: ignore[attr-defined]
            return
        reach = after(call)
        sources = sorted({tensor._trueport_source for tensor, _ in call.reached})  # type: ignore[attr-defined]
        source = self._row(call, reach, sources, weights)
        draft = self._drafts[source]
        draft.parameters += sum(self._sizes.pop(name, 0) for name in weights)
        if count := flop_registry.get(func.overloadpacket):
            draft.macs += count(*args, **kwargs, out_val=answer) // 2
        for tensor in answers:
            if tensor.shape == answers[0].shape or call.name in ("split", "split_with_sizes"):
                _note(tensor, reach, source, frozenset())

    def _row(self, call: Call, reach: Reach, sources: list[int], weights: frozenset[str]) -> int:
        """Number of the row that a call belongs to: a new one, or that of the layer it follows."""
        before = call.reached[0][1]
        if (window := window_of(call)) is not None:
            return self._slid(call, reach, sources, window)
        if call.name in ADAPTIVE:
            return self._new(call, reach, sources, _pooled(call), **_adaptive_values(call))
        if call.name in POOLED and len(reach.dims) <= len(before.dims):
            given = call.arguments.get("dim") or range(len(before.dims))
            places = [given] if isinstance(given, int) else list(given)
            if any(along_picture(before.dims[place]) for place in places) and not weights:
                return self._new(call, reach, sources, POOLED[call.name], **_reduced_values(call, reach, places))
        if call.name in OPERANDS:
            return self._product(call, reach, sources, weights)
        if call.name in JOINS and len(sources) > 1:
            return self._new(call, reach, sources, JOINS[call.name])
        return self._follow(FOLLOWERS.get(call.name, ""), sources[-1])

    def _slid(self, call: Call, reach: Reach, sources: list[int], window: Window) -> int:
        dims = call.reached[0][1].dims[-len(window.kernel) :]
        across = any(
            kernel > 1 and not any(part.axes for part in dim) for dim, kernel in zip(dims, window.kernel, strict=True)
        )
        along = any(kernel > 1 and along_picture(dim) for dim, kernel in zip(dims, window.kernel, strict=True))
        if across and not along and call.name != CONVOLUTION:  # a mean over neighbouring channels
            return self._follow("lrn", sources[-1])
        return self._new(call, reach, sources, _kind_of_window(call, window), **_window_values(call, window))

    def _product(self, call: Call, reach: Reach, sources: list[int], weights: frozenset[str]) -> int:
        learned = weights or len(call.reached) == 1
        kind = "linear" if learned else "attention"
        last = self._drafts[-1].values
        if kind == "attention" and last["kind"] == kind and last["path"] == self._path():
            last.update(output=_output(call, reach), field=reach.field)
            return len(self._drafts) - 1
        return self._new(call, reach, sources, kind)

    def _new(self, call: Call, reach: Reach, sources: list[int], kind: str, **values: Any) -> int:
        values = {
            "name": self._name(kind), "kind": kind, "output": _output(call, reach), "field": reach.field,
            "inputs": tuple(sources), "path": self._path(), **values,
        }  # fmt: skip
        self._drafts.append(_Draft(values))
        return len(self._drafts) - 1

    def _follow(self, word: str, row: int) -> int:
        follows = self._drafts[row].follows
        if word and (not follows or follows[-1] != word):
            follows.append(word)
        return row

    def _path(self) -> str:
        return self._stack[-1][0] if self._stack else ""

    def _name(self, kind: str) -> str:
        path, module = self._stack[-1] if self._stack else ("", None)
        inner = module is None or any(True for _ in module.children())
        name = ".".join(filter(None, (path, kind.replace(" ", "_") if inner or not path else "")))
        count = self._names[name] = self._names.get(name, -1) + 1
        return f"{name}_{count}" if count else name


def _note(tensor: Tensor, reach: Reach, source: int, weights: frozenset[str]) -> None:
    for name, value in zip(_NOTES, (reach, source, weights), strict=True):
        setattr(tensor, name, value)


def _output(call: Call, reach: Reach) -> tuple[int, ...]:
    """Shape for one picture; a leading dimension of one is the batch."""
    shape = call.shape
    return shape[1:] if len(shape) > 1 and shape[0] == 1 and len(reach.dims) == len(shape) else shape


def _pooled(call: Call) -> str:
    return "max pool" if "max" in call.name else "average pool"


def _kind_of_window(call: Call, window: Window) -> str:
    if call.name != CONVOLUTION:
        return _pooled(call)
    return "transposed conv" if window.transposed else "conv"


def _window_values(call: Call, window: Window) -> dict[str, Any]:
    tensor, before = call.reached[0]
    count = len(window.kernel)
    around = before.padded[-count:]
    if window.ceil:  # where the last window may begin is counted on the padded picture
        around = ((0, 0),) * count
    sizes = [size - sum(padded) for size, padded in zip(tensor.shape[-count:], around, strict=True)]
    padding = tuple((first + own, own + last) for (first, last), own in zip(around, window.padding, strict=True))
    values = {
        "kernel": window.kernel, "stride": window.stride, "padding": padding, "dilation": window.dilation,
        "groups": window.groups, "ceil": window.ceil,
    }  # fmt: skip
    if window.transposed:
        return values | {"how": "transposed: the formula turned around"}
    layers = zip(sizes, window.kernel, window.stride, padding, window.dilation, strict=True)
    found = tuple(output_size(*layer, window.ceil) for layer in layers)
    if found != call.shape[-count:]:
        raise SizeError(f"the formula gives {found} where {call.name} answers {call.shape[-count:]}")
    return values | {
        "formula": tuple(map(_arithmetic, sizes, window.kernel, window.stride, padding, window.dilation, found))
    }


def _arithmetic(size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, found: int) -> str:
    """Of one axis: (224 - 11 + 1 + 2)/4 + 1 = 55."""
    reach = dilation * (kernel - 1) + 1
    added = f" + {2 * padding[0]}" if padding[0] == padding[1] else f" + {padding[0]} + {padding[1]}"
    free = size - reach + sum(padding)
    rounding = {True: "", False: "↓" if free // stride + 1 == found else "↑"}[free % stride == 0]
    return f"({size} - {reach}{added if any(padding) else ''})/{stride} + 1 = {found}{rounding}"


def _adaptive_values(call: Call) -> dict[str, Any]:
    before = call.reached[0][0].shape
    count = int(call.name[-2])
    sizes = list(zip(before[-count:], call.shape[-count:], strict=True))
    how = f"adaptive: {_times(before[-count:])} to {_times(call.shape[-count:])}"
    if any(size % found for size, found in sizes):
        return {"how": f"{how} by windows from floor(i W/N) to ceil((i + 1) W/N)"}
    kernel = tuple(size // found for size, found in sizes)
    return {"kernel": kernel, "stride": kernel, "padding": ((0, 0),) * count, "dilation": (1,) * count, "how": how}


def _reduced_values(call: Call, reach: Reach, places: list[int]) -> dict[str, Any]:
    tensor, before = call.reached[0]
    places = [
        place for place in sorted(place % len(before.dims) for place in places) if along_picture(before.dims[place])
    ]
    sizes = tuple(tensor.shape[place] for place in places)
    if any(map(along_picture, reach.dims)):  # of a picture cut into windows
        return {
            "kernel": sizes,
            "stride": sizes,
            "padding": ((0, 0),) * len(sizes),
            "dilation": (1,) * len(sizes),
            "how": "windows side by side",
        }
    return {"how": f"over all {_times(sizes)} positions"}


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
