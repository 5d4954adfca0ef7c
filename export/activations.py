"""What the activations of a float graph look like on pictures: least, largest and a histogram of each tensor.

The tensors of one picture may take a hundred megabytes, so they are looked at a few pictures at a time and let go.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trueport.runtime.errors import ExportError

from .layers import element_types, layer_name, producers
from .original import INPUT
from .written import Rows, open_written

if TYPE_CHECKING:
    import onnx

BINS = 2048
"""Of a histogram on each side of zero."""
SAMPLED = 65_536
"""Values of a tensor that go into its histogram from one chunk, evenly spaced; least and largest see all of them."""
CHUNK_BYTES = 256 * 2**20
"""Of all activations together, at most so many at a time; one picture's at the least."""


class Histogram:
    """A tensor's values over all pictures seen: exact ends, and counts over a range that doubles when it must."""

    def __init__(self) -> None:
        self.lowest = np.inf
        self.highest = -np.inf
        self.reach = 0.0
        """The bins cover -reach to reach."""
        self.counts: NDArray[np.int64] = np.zeros(2 * BINS, np.int64)

    @property
    def largest(self) -> float:
        """The largest absolute value."""
        return max(abs(self.lowest), abs(self.highest))

    def add(self, values: NDArray[Any]) -> None:
        """Take in all values of a tensor of any shape, which must be finite."""
        flat = values.ravel()
        self.lowest = min(self.lowest, float(flat.min()))
        self.highest = max(self.highest, float(flat.max()))
        self._widen()
        # An odd step: an even one would see the same columns of every row.
        taken = flat[:: len(flat) // SAMPLED | 1] if len(flat) > SAMPLED else flat
        scale = BINS / self.reach if self.reach else 0.0
        bins = np.minimum(np.floor(taken * scale) + BINS, 2 * BINS - 1).astype(np.int64)
        self.counts += np.bincount(bins, minlength=2 * BINS)

    def quantile(self, share: float) -> float:
        """The upper edge of the bin below which so large a share of the values lies, 0 to 1."""
        position = int(np.searchsorted(np.cumsum(self.counts), share * self.counts.sum()))
        return (position + 1 - BINS) * self.reach / BINS

    def magnitudes(self) -> NDArray[np.int64]:
        """(BINS,) counts of absolute values from 0 to `reach`."""
        return self.counts[BINS:] + self.counts[:BINS][::-1]

    def copy(self) -> Histogram:
        """What is known so far, to be kept while more is added."""
        return copy.deepcopy(self)

    def _widen(self) -> None:
        if not self.reach:
            self.reach = self.largest  # all that came before was zero, and is in the bin of zero
        while self.reach < self.largest:
            inner = self.counts.reshape(BINS, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[BINS // 2 : 3 * BINS // 2] = inner
            self.reach *= 2


Activations = dict[str, Histogram]
"""By the tensor's name in the graph."""


def observed(
    model: onnx.ModelProto,
    images: Rows,
    stops: tuple[int, ...] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> list[Activations]:
    """Every float tensor of the graph that a node makes, over the first rows of `images` up to each of `stops`.

    stops: ascending numbers of rows; none: all of them.
    Raises ExportError, naming the layer, where an activation is not a number.
    """
    stops = stops or (len(images),)
    names = _float_tensors(model)
    session = open_written(with_outputs(model, names, element_types(model)))
    activations = {name: Histogram() for name in names}
    seen: list[Activations] = []
    told = 0
    for rows, tensors in _chunks(session, names, images[: stops[-1]], stops):
        for name, values in tensors.items():
            if values.size:
                _add(model, activations[name], name, values)
        if rows in stops:
            seen.append({name: histogram.copy() for name, histogram in activations.items()})
        if 4 * rows // stops[-1] > told:
            told = 4 * rows // stops[-1]
            progress(f"looked at the activations on {rows} of {stops[-1]} training pictures")
    return seen


def _add(model: onnx.ModelProto, histogram: Histogram, name: str, values: NDArray[Any]) -> None:
    # The sum of finite values may overflow; least and largest tell what matters without another copy.
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):
        layer = layer_name(producers(model)[name])
        raise ExportError(f"{layer} answers NaN or infinity for a training picture: train again, or export fp32 alone")
    histogram.add(values)


def _float_tensors(model: onnx.ModelProto) -> list[str]:
    import onnx

    types = element_types(model)
    return [name for name in producers(model) if types.get(name) == onnx.TensorProto.FLOAT]


def with_outputs(model: onnx.ModelProto, names: list[str], types: dict[str, int]) -> onnx.ModelProto:
    """The graph with more of its tensors among the outputs. types: as `element_types` has them."""
    import onnx

    told = onnx.ModelProto()
    told.CopyFrom(model)
    there = {value.name for value in told.graph.output}
    told.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, types[name], None) for name in names if name not in there
    )
    return told


def _chunks(
    session: Any, names: list[str], images: Rows, stops: tuple[int, ...]
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """Rows seen so far, and the tensors of the latest ones; the first chunk is one row, which tells how many fit."""
    start, rows = 0, 1
    while start < len(images):
        end = min([start + rows, *(stop for stop in stops if stop > start)])
        tensors = dict(zip(names, session.run(names, {INPUT: images[start:end]}), strict=True))
        bytes_per_row = sum(values.nbytes for values in tensors.values()) / (end - start)
        yield end, tensors
        start, rows = end, max(1, min(32, int(CHUNK_BYTES / bytes_per_row)))
