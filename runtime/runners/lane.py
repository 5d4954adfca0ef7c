"""What one batch at a time needs on a GPU: a stream, buffers, scratch memory, contexts and captured graphs.

TensorRT wants one context for each captured graph; all contexts of a lane share its scratch memory, since only one of
them runs at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engine import Profile
from ..errors import ClosedError, MissingError
from ..flavours import Flavour, collecting, sentence
from ..manifest import TensorSpec
from ..runner import Array
from .cuda import Cuda, OutOfMemoryError

CLOSED = "the runner is closed: open it again"


class Timing(NamedTuple):
    """Milliseconds of one batch, by events on the device; `total_ms` is the caller's own time."""

    upload_ms: float
    compute_ms: float
    download_ms: float
    total_ms: float

    @property
    def outside_compute(self) -> float:
        """The share of the caller's time that was not spent computing, 0 to 1."""
        return max(0.0, 1 - self.compute_ms / self.total_ms) if self.total_ms else 0.0


@dataclass(frozen=True, eq=False)
class LoadedEngine:
    """A deserialised engine and what it says about itself."""

    trt: Any
    kind: Flavour
    engine: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    making: threading.Lock = field(default_factory=threading.Lock)
    """Held while a context is made."""

    @property
    def max_rows(self) -> int:
        """Of the largest batch that it takes."""
        return max(profile.max for profile in self.profiles)

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a context needs while it runs."""
        return int(self.engine.device_memory_size_v2)

    @property
    def row_bytes(self) -> int:
        """Device memory that one row's inputs and outputs take."""
        return sum(_bytes(spec) for spec in (*self.inputs, *self.outputs))

    def lane_bytes(self) -> int:
        """Device memory of a lane."""
        return self.scratch_bytes + self.max_rows * self.row_bytes

    def fitting_rows(self, free: int) -> int:
        """About how many rows a batch may have where so many bytes are left: scratch memory grows with the batch."""
        return min(self.max_rows, int(free / (self.scratch_bytes / self.max_rows + self.row_bytes)))

    def context(self, *, graphs: bool) -> Any:
        """A new execution context that brings no memory of its own."""
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with self.making, collecting() as errors:
            if self.kind.own_graphs:
                config = self.engine.create_runtime_config()
                config.set_execution_context_allocation_strategy(strategy)
                kinds = self.trt.CudaGraphStrategy
                config.cuda_graph_strategy = kinds.WHOLE_GRAPH_CAPTURE if graphs else kinds.DISABLED
                context = self.engine.create_execution_context(config)
            else:
                context = self.engine.create_execution_context(strategy)
        if context is None:
            raise MissingError(f"{self.kind.title} can't make a context: {sentence(errors, 'it gives no reason')}")
        return context


class _Prepared:
    """A context, and the profile and rows that it is set to."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.state: tuple[int, int] | None = None


class Lane:
    """Runs one batch at a time. Raises OutOfMemoryError where the device has no room for it."""

    def __init__(self, loaded: LoadedEngine, cuda: Cuda, *, graphs: bool = True) -> None:
        self._loaded, self._cuda, self._graphs = loaded, cuda, graphs
        self._contexts: dict[int | None, _Prepared] = {}
        self._captured: dict[int, Any] = {}
        self.not_captured: dict[int, str] = {}
        """Profiles whose optimum can't be captured, and why: they run without."""
        self._opened = contextlib.ExitStack()
        try:
            self._allocate(loaded, cuda)
        except BaseException:
            self._opened.close()
            raise

    def run(self, feeds: Mapping[str, Array], rows: int, profile: int) -> dict[str, Array]:
        """Answer one batch that the profile holds."""
        self._upload(feeds, rows)
        self._compute(rows, profile)
        outputs = self._download(rows)
        self._capture_if_due(rows, profile)
        return outputs

    def timed_run(self, feeds: Mapping[str, Array], rows: int, profile: int) -> tuple[dict[str, Array], Timing]:
        """The same, with the time that each part of it took."""
        begun = time.perf_counter()
        self._cuda.record(self._events[0], self._stream)
        self._upload(feeds, rows)
        self._cuda.record(self._events[1], self._stream)
        self._compute(rows, profile)
        self._cuda.record(self._events[2], self._stream)
        outputs = self._download(rows, self._events[3])
        total_ms = (time.perf_counter() - begun) * 1000
        upload, compute, download = (self._cuda.elapsed_ms(begin, end) for begin, end in pairwise(self._events))
        self._capture_if_due(rows, profile)
        return outputs, Timing(upload, compute, download, total_ms)

    @property
    def captured(self) -> tuple[int, ...]:
        """Batch sizes that are run as captured graphs."""
        return tuple(self._loaded.profiles[profile].opt for profile in self._captured)

    def close(self) -> None:
        """Free everything. The lane must be idle."""
        for graph in self._captured.values():
            self._cuda.destroy_graph(graph)
        self._captured.clear()
        self._contexts.clear()
        self._opened.close()

    def _allocate(self, loaded: LoadedEngine, cuda: Cuda) -> None:
        self._stream: int = self._owned(cuda.stream(), cuda.destroy_stream)
        self._scratch: int = self._owned(cuda.malloc(max(1, loaded.scratch_bytes)), cuda.free)
        self._device: dict[str, int] = {}
        self._host: dict[str, NDArray[Any]] = {}
        for spec in (*loaded.inputs, *loaded.outputs):
            self._device[spec.name] = self._owned(cuda.malloc(loaded.max_rows * _bytes(spec)), cuda.free)
            host = cuda.host_array((loaded.max_rows, *spec.shape[1:]), spec.dtype)
            self._host[spec.name] = self._owned(host, cuda.free_host)
        self._events = [self._owned(cuda.event(), cuda.destroy_event) for _ in range(4)]

    def _owned(self, made: Any, free: Callable[[Any], None]) -> Any:
        self._opened.callback(free, made)
        return made

    def _upload(self, feeds: Mapping[str, Array], rows: int) -> None:
        for spec in self._loaded.inputs:
            pinned = self._host[spec.name][:rows]
            np.copyto(pinned, feeds[spec.name])
            self._cuda.upload(self._device[spec.name], pinned, self._stream)

    def _compute(self, rows: int, profile: int) -> None:
        graph = self._captured.get(profile) if self._due(rows, profile) else None
        if graph is not None:
            self._cuda.launch(graph, self._stream)
        else:
            self._execute(self._prepared(rows, profile))

    def _download(self, rows: int, done: Any = None) -> dict[str, Array]:
        """done: an event to record behind it."""
        pinned = {spec.name: self._host[spec.name][:rows] for spec in self._loaded.outputs}
        for name, array in pinned.items():
            self._cuda.download(array, self._device[name], self._stream)
        if done is not None:
            self._cuda.record(done, self._stream)
        self._cuda.synchronize(self._stream)
        return {name: array.copy() for name, array in pinned.items()}

    def _due(self, rows: int, profile: int) -> bool:
        """Whether a batch is one that is run as a captured graph: a profile's optimum or its only size."""
        wanted = self._graphs and not self._loaded.kind.own_graphs
        return wanted and rows == self._loaded.profiles[profile].opt and profile not in self.not_captured

    def _prepared(self, rows: int, profile: int) -> Any:
        """A context that is set to this profile and batch: the graph's own, or the one for all other sizes."""
        key = profile if self._due(rows, profile) else None
        if key not in self._contexts:
            self._contexts[key] = _Prepared(self._new_context())
        prepared = self._contexts[key]
        if prepared.state != (profile, rows):
            self._set(prepared, rows, profile)
        return prepared.context

    def _new_context(self) -> Any:
        context = self._loaded.context(graphs=self._graphs)
        context.set_device_memory(self._scratch, max(1, self._loaded.scratch_bytes))
        return context

    def _set(self, prepared: _Prepared, rows: int, profile: int) -> None:
        context, before = prepared.context, prepared.state
        prepared.state = None
        with collecting() as errors:
            fine = True
            if before is None or before[0] != profile:
                try:
                    fine = context.set_optimization_profile_async(profile, self._stream)
                except RuntimeError:  # the binding raises where its documentation says that it answers False
                    fine = False
            for spec in self._loaded.inputs:
                fine = fine and context.set_input_shape(spec.name, (rows, *spec.shape[1:]))
            for name, address in self._device.items():
                fine = fine and context.set_tensor_address(name, address)
        self._must(fine, "take the batch", errors)
        prepared.state = (profile, rows)

    def _execute(self, context: Any) -> None:
        with collecting() as errors:
            fine = context.execute_async_v3(self._stream)
        self._must(fine, "run the batch", errors)

    def _capture_if_due(self, rows: int, profile: int) -> None:
        """After a first run, which does what can't be captured, such as loading kernels."""
        if not self._due(rows, profile) or profile in self._captured:
            return
        context = self._prepared(rows, profile)
        try:
            self._cuda.begin_capture(self._stream)
        except MissingError as error:  # the batch has been answered already
            self.not_captured[profile] = str(error)
            return
        failed: MissingError | None = None
        try:
            self._execute(context)
        except MissingError as error:
            failed = error
        try:
            graph = self._cuda.end_capture(self._stream)  # even after a failure, or the stream stays unusable
        except MissingError as error:
            self.not_captured[profile] = str(failed or error)
            return
        if failed is None:
            self._captured[profile] = graph
        else:
            self._cuda.destroy_graph(graph)
            self.not_captured[profile] = str(failed)

    def _must(self, fine: bool, what: str, errors: list[str]) -> None:
        if not fine:
            title = self._loaded.kind.title
            raise MissingError(f"{title} can't {what} here: {sentence(errors, 'it gives no reason')}")


class Lanes:
    """A bounded number of lanes, made as concurrent batches need them, each used by one thread at a time."""

    def __init__(self, new: Callable[[], Lane], most: int) -> None:
        self._new, self._most = new, most
        self._changed = threading.Condition()
        self._made = 0
        self._free: list[Lane] = []
        self._closed = False
        with self.taken():  # the first one now: what it lacks is known when the runner is opened
            pass

    @contextmanager
    def taken(self) -> Iterator[Lane]:
        """A lane for the block; waits for one where all are busy. Raises ClosedError after `close`."""
        lane = self._take()
        try:
            yield lane
        finally:
            with self._changed:
                self._free.append(lane)
                self._changed.notify_all()

    @property
    def idle(self) -> tuple[Lane, ...]:
        """Lanes that nobody uses at the moment."""
        with self._changed:
            return tuple(self._free)

    def close(self) -> None:
        """Wait for the batches in flight, then free every lane. Closing twice is fine."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._free) == self._made)
            while self._free:
                self._free.pop().close()
                self._made -= 1

    def _take(self) -> Lane:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._free or self._made < self._most)
                if self._closed:
                    raise ClosedError(CLOSED)
                if self._free:
                    return self._free.pop()  # the last one used: it is the one that is set to such batches
                self._made += 1
            try:
                return self._new()
            except BaseException as error:
                with self._changed:
                    self._made -= 1
                    self._changed.notify_all()
                    if not isinstance(error, OutOfMemoryError) or not self._made:
                        raise
                    self._most = self._made  # there is no room for more: wait for one of those that are there


def _bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape[1:], dtype=np.int64)) * np.dtype(spec.dtype).itemsize
