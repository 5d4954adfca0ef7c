"""What was done to weights that are not those of the original: one bit, a lost bias, another head, another checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layers import COMPUTING
from ..original import Original
from .graph_diff import TensorChange

BOUNDED = 1e-3
"""Relative: what is left where one factor a channel explains a change."""
EPSILONS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 0.0)


@dataclass(frozen=True)
class WeightCause:
    """What the changed weights are."""

    cause: str
    remedy: str
    layer: str


AGAIN = "export the bundle again from the weights that were trained, and change no graph by hand"


def weight_cause(changes: tuple[TensorChange, ...], layers: list[str], original: Original | None) -> WeightCause:
    """What was done. changes: one at least; layers: that compute, in the order of execution, by name."""
    first = changes[0]
    if len(changes) == 1 and (told := _one_element(first)):
        return WeightCause(told, "copy the file again and check the memory and disk it went through; " + AGAIN, first.layer)
    computing = [change for change in changes if change.op_type in COMPUTING]
    if len(computing) == len(changes):
        touched = {change.layer for change in changes}
        if told := _permuted(changes, layers):
            return WeightCause(told, "put the classes back in the order of the bundle's labels; " + AGAIN, layers[-1])
        if all(change.place == 2 and not change.found.any() for change in changes):
            biases = f"the bias of {', '.join(sorted(touched))} is lost: it is zero throughout"
            return WeightCause(biases, AGAIN, first.layer)
        if told := _batch_norm(changes, original):
            return WeightCause(told, "put the model in eval mode and keep its batch norms as trained; " + AGAIN, first.layer)
        if touched == {layers[-1]} and len(layers) > 1:
            told = f"the last layer, {layers[-1]}, has other weights: a head of another training"
            return WeightCause(told, "load the whole checkpoint, the head too (strict=True); " + AGAIN, layers[-1])
        if len(touched) > 1 and len(touched) >= 0.8 * len(layers):
            change = float(np.median([_relative(one) for one in changes]))
            told = f"{len(touched)} of {len(layers)} layers have other weights, by {change:.2g} of their size in the median"
            kind = "an older or later checkpoint of the same training" if change < 1 else "another training"
            return WeightCause(f"{told}: {kind}", "export the weights that were trained; " + AGAIN, first.layer)
    named = ", ".join(f"{change.name} by {_relative(change):.2g} of its size" for change in changes[:3])
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return WeightCause(f"other values in {named}{more}", AGAIN, first.layer)


def _relative(change: TensorChange) -> float:
    expected = change.expected.astype(np.float64)
    size = float(np.sqrt(np.mean(expected**2))) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.mean((change.found.astype(np.float64) - expected) ** 2))) / size


def _one_element(change: TensorChange) -> str:
    """One element, and the bit of it where it is one."""
    places = np.argwhere(change.found != change.expected)
    if len(places) != 1:
        return ""
    where = tuple(int(index) for index in places[0])
    found, expected = change.found[where], change.expected[where]
    bits = int.from_bytes(found.tobytes(), "little") ^ int.from_bytes(expected.tobytes(), "little")
    at = f"{change.name}{list(where)}" if where else change.name
    values = f"{float(found):.6g} where {float(expected):.6g} belongs"
    if bits.bit_count() == 1 and change.found.size > 1:
        return f"one bit is flipped: bit {bits.bit_length() - 1} of {at}, {values}"
    return f"one value is another: {at} is {values}"


def _permuted(changes: tuple[TensorChange, ...], layers: list[str]) -> str:
    """The last layer's rows (or columns), in another order."""
    if {change.layer for change in changes} != {layers[-1]}:
        return ""
    orders = set()
    for change in changes:
        found = [
            order
            for axis in range(change.found.ndim)
            if (order := _order(np.moveaxis(change.found, axis, 0), np.moveaxis(change.expected, axis, 0)))
        ]
        orders.add(found[0] if found else None)
    if len(orders) != 1 or None in orders:
        return ""
    order = next(iter(orders)) or ()
    moved = [f"{place} holds class {index}" for place, index in enumerate(order) if place != index]
    told = ", ".join(moved[:4]) + (", …" if len(moved) > 4 else "")
    return f"classes are permuted in the last layer, {layers[-1]}: place {told}"


def _order(found: NDArray[np.float32], expected: NDArray[np.float32]) -> tuple[int, ...] | None:
    places: dict[bytes, int] = {row.tobytes(): index for index, row in enumerate(np.ascontiguousarray(expected))}
    order = tuple(places.get(row.tobytes(), -1) for row in np.ascontiguousarray(found))
    return order if len(places) == len(order) and sorted(order) == list(range(len(order))) else None


def _batch_norm(changes: tuple[TensorChange, ...], original: Original | None) -> str:
    """Weights that differ by one factor a channel: what another folding of the batch norm behind makes."""
    factors = {}
    for change in changes:
        if change.place != 1:
            continue
        rows, wanted = (values.astype(np.float64).reshape(len(values), -1) for values in (change.found, change.expected))
        size = (wanted**2).sum(axis=1)
        factor = (rows * wanted).sum(axis=1) / np.where(size > 0, size, 1)
        if np.abs(rows - factor[:, None] * wanted).max() > BOUNDED * np.abs(rows).max(initial=1e-30):
            return ""
        factors[change.layer] = factor
    if not factors or original is None:
        return ""
    norms = norms_behind(original)
    if not factors.keys() <= norms.keys():
        return ""
    for epsilon in EPSILONS:
        if all(norms[layer].eps != epsilon and _explains(factors[layer], norms[layer], epsilon) for layer in factors):
            stated = norms[next(iter(factors))].eps
            return f"batch norms were folded with epsilon {epsilon:g}, the original has {stated:g}"
    if all(_explains(factors[layer], norms[layer], None) for layer in factors):
        return "batch norms were folded without their running statistics, with mean 0 and variance 1"
    named = ", ".join(sorted(factors)[:3])
    return f"batch norms were folded with other statistics: the weights of {named} differ by one factor a channel"


def norms_behind(original: Original) -> dict[str, Any]:
    """By the convolution or product, the batch norm that is defined right behind it and has as many channels."""
    from torch import nn

    found: dict[str, Any] = {}
    before: tuple[str, int] | None = None
    for name, module in original.module.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            before = (name, module.weight.shape[0])
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and before and module.num_features == before[1]:
            found[before[0]] = module
            before = None
    return found


def _explains(factor: NDArray[np.float64], norm: Any, epsilon: float | None) -> bool:
    """Whether another epsilon explains the factors; None: whether no statistics do."""
    variance, stated = norm.running_var.double().numpy(), norm.eps
    other = np.ones_like(variance) + stated if epsilon is None else variance + epsilon
    return bool(np.allclose(factor, np.sqrt((variance + stated) / other), rtol=BOUNDED))
