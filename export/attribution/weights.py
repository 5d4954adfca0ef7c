"""What was done to weights that are not the original's: one bit, a lost bias, another head, another checkpoint."""

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
MOST_LAYERS = 0.8
"""Of all layers: where so many have other weights, it is another checkpoint."""


@dataclass(frozen=True)
class WeightCause:
    """What the changed weights are."""

    cause: str
    remedy: str
    layer: str


AGAIN = "export the bundle again from the weights that were trained, and change no graph by hand"


@dataclass(frozen=True, eq=False)
class _Changed:
    changes: tuple[TensorChange, ...]
    layers: list[str]
    original: Original | None

    @property
    def touched(self) -> list[str]:
        """Layers, in the order of execution."""
        return list(dict.fromkeys(change.layer for change in self.changes))

    @property
    def computing(self) -> bool:
        """Whether nothing but weights and biases of products has changed."""
        return all(change.op_type in COMPUTING for change in self.changes)


def weight_cause(changes: tuple[TensorChange, ...], layers: list[str], original: Original | None) -> WeightCause:
    """What was done. changes: one at least; layers: that compute, in the order of execution, by name."""
    changed = _Changed(changes, layers, original)
    for known in (_one_element, _permuted, _reordered, _lost_bias, _batch_norm, _other_head, _other_checkpoint):
        if told := known(changed):
            return told
    named = ", ".join(f"{change.name} by {_relative(change):.2g} of its size" for change in changes[:3])
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return WeightCause(f"other values in {named}{more}", AGAIN, changes[0].layer)


def _lost_bias(changed: _Changed) -> WeightCause | None:
    if not changed.computing or any(change.place != 2 or change.found.any() for change in changed.changes):
        return None
    named = ", ".join(changed.touched)
    return WeightCause(f"the bias of {named} is lost: it is zero throughout", AGAIN, changed.touched[0])


def _other_head(changed: _Changed) -> WeightCause | None:
    last = changed.layers[-1]
    if changed.touched != [last] or len(changed.layers) == 1 or not changed.computing:
        return None
    told = f"the last layer, {last}, has other weights: a head of another training"
    return WeightCause(told, "load the whole checkpoint, the head too (strict=True); " + AGAIN, last)


def _other_checkpoint(changed: _Changed) -> WeightCause | None:
    touched, count = changed.touched, len(changed.layers)
    if not changed.computing or len(touched) < 2 or len(touched) < MOST_LAYERS * count:
        return None
    size = float(np.median([_relative(change) for change in changed.changes]))
    kind = "an older or later checkpoint of the same training" if size < 1 else "another training"
    told = f"{len(touched)} of {count} layers have other weights, by {size:.2g} of their size: {kind}"
    return WeightCause(told, "export the weights that were trained; " + AGAIN, touched[0])


def _relative(change: TensorChange) -> float:
    expected = change.expected.astype(np.float64)
    size = float(np.sqrt(np.mean(expected**2))) or 1.0
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.mean((change.found.astype(np.float64) - expected) ** 2))) / size


def _one_element(changed: _Changed) -> WeightCause | None:
    """One element, and the bit of it where it is one."""
    change = changed.changes[0]
    places = np.argwhere(change.found != change.expected)
    if len(changed.changes) > 1 or len(places) != 1:
        return None
    where = tuple(int(index) for index in places[0])
    found, expected = change.found[where], change.expected[where]
    bits = int.from_bytes(found.tobytes(), "little") ^ int.from_bytes(expected.tobytes(), "little")
    at = f"{change.name}{list(where)}" if where else change.name
    values = f"{float(found):.6g} where {float(expected):.6g} belongs"
    told = f"one value is another: {at} is {values}"
    if bits.bit_count() == 1 and change.found.size > 1:
        told = f"one bit is flipped: bit {bits.bit_length() - 1} of {at}, {values}"
    return WeightCause(
        told, "copy the file again and check the memory and disk it went through; " + AGAIN, change.layer
    )


def _permuted(changed: _Changed) -> WeightCause | None:
    """The last layer's rows (or columns), in another order."""
    last = changed.layers[-1]
    if changed.touched != [last]:
        return None
    orders = set()
    for change in changed.changes:
        found = [
            order
            for axis in range(change.found.ndim)
            if (order := _order(np.moveaxis(change.found, axis, 0), np.moveaxis(change.expected, axis, 0)))
        ]
        orders.add(found[0] if found else None)
    if len(orders) != 1 or None in orders:
        return None
    order = next(iter(orders)) or ()
    moved = [f"{place} holds class {index}" for place, index in enumerate(order) if place != index]
    told = f"classes are permuted in the last layer, {last}: place {', '.join(moved[:4])}"
    told += ", …" if len(moved) > 4 else ""
    return WeightCause(told, "put the classes back in the order of the bundle's labels; " + AGAIN, last)


def _reordered(changed: _Changed) -> WeightCause | None:
    """One layer's weights along one axis, in another order."""
    change = changed.changes[0]
    if len(changed.changes) > 1 or not changed.computing:
        return None
    for axis in range(change.found.ndim):
        order = _order(np.moveaxis(change.found, axis, 0), np.moveaxis(change.expected, axis, 0))
        if order:
            kind = "channels that it takes" if axis == 1 else "channels that it makes"
            shown = ", ".join(map(str, order[:8]))
            told = f"the weights of {change.layer} are in another order along the {kind}: {shown}"
            remedy = "keep RGB, and the order of all channels, from training on; " + AGAIN
            return WeightCause(told, remedy, change.layer)
    return None


def _order(found: NDArray[np.float32], expected: NDArray[np.float32]) -> tuple[int, ...] | None:
    places: dict[bytes, int] = {row.tobytes(): index for index, row in enumerate(np.ascontiguousarray(expected))}
    order = tuple(places.get(row.tobytes(), -1) for row in np.ascontiguousarray(found))
    return order if len(places) == len(order) and sorted(order) == list(range(len(order))) else None


def _batch_norm(changed: _Changed) -> WeightCause | None:
    """Weights that differ by one factor a channel: what another folding of the batch norm behind makes."""
    factors = _factors(changed.changes) if changed.computing else {}
    norms = norms_behind(changed.original) if changed.original is not None else {}
    if not factors or not factors.keys() <= norms.keys():
        return None
    named = ", ".join(sorted(factors)[:3])
    told = f"batch norms were folded with other statistics: the weights of {named} differ by one factor a channel"
    if all(_explains(factors[layer], norms[layer], None) for layer in factors):
        told = "batch norms were folded without their running statistics, with mean 0 and variance 1"
    epsilon = _epsilon(factors, norms)
    if all(norms[layer].eps != epsilon and _explains(factors[layer], norms[layer], epsilon) for layer in factors):
        stated = norms[next(iter(factors))].eps
        told = f"batch norms were folded with epsilon {epsilon:g}, the original has {stated:g}"
    remedy = "put the model in eval mode and keep its batch norms as trained; " + AGAIN
    return WeightCause(told, remedy, changed.touched[0])


def _factors(changes: tuple[TensorChange, ...]) -> dict[str, NDArray[np.float64]]:
    """By layer, the factor of each channel; empty where any weight differs by more than that."""
    factors = {}
    for change in changes:
        if change.place != 1:
            continue
        rows, wanted = (
            values.astype(np.float64).reshape(len(values), -1) for values in (change.found, change.expected)
        )
        size = (wanted**2).sum(axis=1)
        factor = (rows * wanted).sum(axis=1) / np.where(size > 0, size, 1)
        if not np.abs(rows - factor[:, None] * wanted).max() <= BOUNDED * np.abs(rows).max(initial=1e-30):
            return {}
        factors[change.layer] = factor
    return factors


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


def _epsilon(factors: dict[str, NDArray[np.float64]], norms: dict[str, Any]) -> float:
    """That would explain the factor of the channel with the smallest variance, to three digits."""
    layer = next(iter(factors))
    variance = norms[layer].running_var.double().numpy()
    channel = int(variance.argmin())
    other = (variance[channel] + norms[layer].eps) / max(factors[layer][channel] ** 2, 1e-30) - variance[channel]
    return float(f"{max(other, 0.0):.3g}")


def _explains(factor: NDArray[np.float64], norm: Any, epsilon: float | None) -> bool:
    """Whether another epsilon explains the factors; None: whether no statistics do."""
    variance, stated = norm.running_var.double().numpy(), norm.eps
    other = np.ones_like(variance) + stated if epsilon is None else variance + epsilon
    return bool(np.allclose(factor, np.sqrt((variance + stated) / other), rtol=BOUNDED))
