"""Which batch sizes get a compiled model of their own.

A model of fixed shape is faster than one whose batch may be anything, but each holds its own weights: a few sizes have
one, all others share a model of dynamic shape.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Generic, TypeVar

from ..errors import ClosedError

Model = TypeVar("Model")

logger = logging.getLogger(__name__)

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

    Once all places are taken no batch waits for a model of its own: the shared one answers while a thread compiles it.
    compiled: makes a model for so many rows, None: for any number.
    """

    def __init__(self, compiled: Callable[[int | None], Model], most: int) -> None:
        self._compiled = compiled
        self._most = most
        self._fixed: dict[int, Model] = {}
        self._dynamic: Model | None = None
        self._uses: Counter[int] = Counter()
        self._compiling = threading.Lock()
        self._replacing: threading.Thread | None = None
        self._failed: set[int] = set()
        """Sizes whose model could not be compiled in place of another; they go on with the shared one."""
        self._closed = False

    def __call__(self, rows: int) -> Model:
        """The model for a batch of so many rows; while there are places, the first of a size waits for its own.

        Raises ClosedError after `close`.
        """
        self._uses[rows] += 1  # two threads may count as one: it is a rough measure
        model = self._fixed.get(rows)
        if model is not None:
            return model
        with self._compiling:
            return self._fixed.get(rows) or self._place(rows)

    def close(self) -> None:
        """Hold no model any more; one that is being compiled is dropped when it is there."""
        self._closed = True
        self._fixed = {}  # another one: a thread may be looking through the old one
        self._dynamic = None

    def _place(self, rows: int) -> Model:
        if self._closed:
            raise ClosedError("the runner is closed: open it again")
        leaving = gives_way(rows, self._uses, self._fixed, self._most)
        if leaving == 0:
            return self._fixed.setdefault(rows, self._compiled(rows))
        shared = self._dynamic
        if shared is None:
            shared = self._dynamic = self._compiled(None)
        if leaving is not None and self._replacing is None and rows not in self._failed:
            self._begin_replacing(leaving, rows)
        return shared

    def _begin_replacing(self, leaving: int, rows: int) -> None:
        # No daemon: the interpreter must not end beneath a compiler.
        thread = threading.Thread(target=self._replace, args=(leaving, rows), name="trueport-compile")
        with suppress(RuntimeError):  # no thread to be had: the next batch of this size tries again
            thread.start()
            self._replacing = thread

    def _replace(self, leaving: int, rows: int) -> None:
        """Until the new model is there the old one keeps its place, so that for a moment there is one more."""
        model: Model | None = None
        try:
            model = self._compiled(rows)
        except Exception:
            if not self._closed:
                logger.exception("batches of %d rows get no model of their own: it can't be compiled", rows)
        with self._compiling:
            self._replacing = None
            if model is None:
                self._failed.add(rows)
            elif not self._closed:
                self._fixed[rows] = model
                self._fixed.pop(leaving, None)
