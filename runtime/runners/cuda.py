"""The few calls to CUDA that running an engine takes, by cuda-python: memory, a stream, events, captured graphs.

Thin on purpose: everything that decides something is elsewhere, and is tested with a stand-in for this class.
"""

from __future__ import annotations

import ctypes
import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engine import target_from_capability
from ..errors import MissingError, missing_extra

DEFAULT_EXTRA = "tensorrt"


class OutOfMemoryError(MissingError):
    """The device has no room for an allocation."""


class NoGpuError(MissingError):
    """CUDA finds no device or no driver; the message begins in lower case, to go on with "there is"."""


class Device(NamedTuple):
    """The GPU that this process computes on."""

    name: str
    target: str
    """Its compute capability, such as `sm86`."""
    driver: str
    """The newest CUDA that its driver knows, such as 13.0."""


class Cuda:
    """CUDA's runtime on the current device.

    extra: what messages tell to install. Raises NoGpuError, or MissingError where cuda-python is not installed.
    """

    def __init__(self, extra: str = DEFAULT_EXTRA) -> None:
        try:
            runtime = importlib.import_module("cuda.bindings.runtime")  # since 12.6; before it was cuda.cudart
        except ImportError as error:
            raise missing_extra("cuda-python", extra, "running an engine") from error
        self._rt: Any = runtime
        self.device = self._device()

    def _device(self) -> Device:
        try:
            count = int(self._call("cudaGetDeviceCount"))
        except MissingError as error:
            raise NoGpuError(f"no usable NVIDIA GPU here: {error}") from error
        if not count:
            raise NoGpuError("no usable NVIDIA GPU here: CUDA lists none")
        self._index = int(self._call("cudaGetDevice"))
        properties = self._call("cudaGetDeviceProperties", self._index)
        driver = int(self._call("cudaDriverGetVersion"))
        name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        return Device(
            name.strip("\0"),
            target_from_capability(f"{properties.major}.{properties.minor}"),
            f"{driver // 1000}.{driver % 1000 // 10}",
        )

    def use(self) -> None:
        """Make the device current in this thread, as it was in the one that opened it."""
        self._call("cudaSetDevice", self._index)

    # Memory

    def free_bytes(self) -> int:
        """Of the device's memory, what nobody has."""
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def malloc(self, size: int) -> int:
        """The address of so many bytes on the device. Raises OutOfMemoryError."""
        return int(self._call("cudaMalloc", size, wanted=size))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call("cudaFree", address)

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """An array in pinned memory, which the device copies from and to without a detour."""
        kind = np.dtype(dtype)
        size = max(1, int(np.prod(shape, dtype=np.int64)) * kind.itemsize)
        address = int(self._call("cudaMallocHost", size))
        memory = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(memory, dtype=kind, count=size // kind.itemsize).reshape(shape)

    def free_host(self, array: NDArray[Any]) -> None:
        """Give pinned memory back; the array must not be used again."""
        self._call("cudaFreeHost", array.ctypes.data)

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        """Copy a pinned, contiguous array to the device, in the stream's order."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        """Copy from the device into a pinned, contiguous array, in the stream's order."""
        kind = self._rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    # Streams and events

    def stream(self) -> int:
        """A new stream, independent of the default one."""
        return int(self._call("cudaStreamCreateWithFlags", self._rt.cudaStreamNonBlocking))

    def synchronize(self, stream: int) -> None:
        """Wait until everything in the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        """Give the stream back."""
        self._call("cudaStreamDestroy", stream)

    def event(self) -> Any:
        """A new event that takes the time."""
        return self._call("cudaEventCreate")

    def record(self, event: Any, stream: int) -> None:
        """Take the time when the stream gets here."""
        self._call("cudaEventRecord", event, stream)

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """Between two recorded events that have passed."""
        return float(self._call("cudaEventElapsedTime", begin, end))

    def destroy_event(self, event: Any) -> None:
        """Give the event back."""
        self._call("cudaEventDestroy", event)

    # Graphs

    def begin_capture(self, stream: int) -> None:
        """From here on the stream's work is recorded, not done; other threads may go on as they like."""
        self._call("cudaStreamBeginCapture", stream, self._rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)

    def end_capture(self, stream: int) -> Any:
        """The recorded work, ready to be launched. Raises MissingError where something in it can't be recorded."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        """Do the recorded work."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Give the recorded work back."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, name: str, *arguments: Any, wanted: int = 0) -> Any:
        error, *result = getattr(self._rt, name)(*arguments)
        if error != self._rt.cudaError_t.cudaSuccess:
            if wanted and error == self._rt.cudaError_t.cudaErrorMemoryAllocation:
                raise OutOfMemoryError(f"the GPU has no {wanted / 2**20:,.0f} MiB left")
            raise MissingError(f"CUDA refuses {name}: {self._words(error)}")
        return result[0] if len(result) == 1 else tuple(result)

    def _words(self, error: Any) -> str:
        _, text = self._rt.cudaGetErrorString(error)
        return text.decode() if isinstance(text, bytes) else str(text)
