"""Which batch sizes get a compiled model of their own.

A model of fixed shape is faster than one whose batch may be anything, but each holds its own weights: a few sizes have
one, all others share a model of dynamic shape.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Generic, TypeVar

Model = TypeVar("Model")

MOST = 8
"""Models of fixed shape at once."""
MEMORY_BYTES = 1 << 30
"""That the weights of all of them may take; one is held in any case."""
CLEARLY = 16
"""Uses that a size must be ahead before it takes another's place: compiling costs as much as many batches."""


def places(weights_bytes: int) -> int:
    """How many models of such a size are held at once."""
    return max(1, min(MOST, MEMORY_BYTES // max(1, weights_bytes)))


def gives_way(rows: int, uses: Mapping[int, int], held: Collection[int], most: int) -> int | None:
    """The size whose place `rows` takes; 0: there is room; None: none does.

    It takes more than twice the uses of the rarest, so that sizes that take turns don't compile in turns.
    """
    if len(held) < most:
        return 0
    rarest = min(held, key=lambda size: uses.get(size, 0))
    return rarest if uses.get(rows, 0) > 2 * uses.get(rarest, 0) + CLEARLY else None


class BatchModels(Generic[Model]):
    """Models by batch size, compiled when they are first needed. Safe to use from several threads.

    compiled: makes a model for so many rows, None: for any number.
    """

    def __init__(self, compiled: Callable[[int | None], Model], most: int) -> None:
        self._compiled = compiled
        self._most = most
        self._fixed: dict[int, Model] = {}
        self._dynamic: Model | None = None
        self._uses: Counter[int] = Counter()
        self._compiling = threading.Lock()

    def __call__(self, rows: int) -> Model:
        """The model for a batch of so many rows; the first batch of a size may wait for it to be compiled."""
        self._uses[rows] += 1  # two threads may count as one: it is a rough measure
        model = self._fixed.get(rows)
        if model is not None:
            return model
        with self._compiling:
            return self._fixed.get(rows) or self._place(rows)

    def _place(self, rows: int) -> Model:
        leaving = gives_way(rows, self._uses, self._fixed, self._most)
        if leaving is not None:
            self._fixed.pop(leaving, None)
            return self._fixed.setdefault(rows, self._compiled(rows))
        if self._dynamic is None:
            self._dynamic = self._compiled(None)
        return self._dynamic
