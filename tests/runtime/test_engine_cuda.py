"""The thin layer over cuda-python: what its functions are given, and what becomes of their errors. No GPU in here."""

# ruff: noqa: N815 -- the names are those of CUDA

from __future__ import annotations

import ctypes
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trueport.runtime.errors import MissingError
from trueport.runtime.runners.cuda import Cuda, NoGpuError, OutOfMemoryError


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureUnsupported = 900


class FakeRuntime(ModuleType):
    """cuda.bindings.runtime with host memory in place of a device's; every function answers (error, result…)."""

    cudaError_t = Error
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.failing: dict[str, Error] = {}
        self.called: list[tuple[str, tuple[Any, ...]]] = []
        self.blocks: dict[int, Any] = {}
        self.answers: dict[str, tuple[Any, ...]] = {
            "cudaGetDeviceCount": (1,),
            "cudaGetDevice": (0,),
            "cudaGetDeviceProperties": (SimpleNamespace(name=b"Stand-in\0", major=8, minor=6),),
            "cudaDriverGetVersion": (13040,),
            "cudaMemGetInfo": (10, 20),
            "cudaStreamCreateWithFlags": (7,),
            "cudaStreamEndCapture": ("graph",),
            "cudaGraphInstantiate": ("executable",),
            "cudaEventElapsedTime": (1.5,),
        }

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.called.append((name, arguments))
            if name in self.failing:
                return self.failing[name], None
            if name in ("cudaMalloc", "cudaMallocHost"):
                block = ctypes.create_string_buffer(arguments[0])
                self.blocks[ctypes.addressof(block)] = block
                return Error.cudaSuccess, ctypes.addressof(block)
            if name == "cudaMemcpyAsync":
                ctypes.memmove(arguments[0], arguments[1], arguments[2])
            if name == "cudaGetErrorString":
                return Error.cudaSuccess, b"words for " + Error(arguments[0]).name.encode()
            return Error.cudaSuccess, *self.answers.get(name, ())

        return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    module = FakeRuntime()
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)
    return module


def test_the_device_is_told_as_engines_name_it(fake: FakeRuntime) -> None:
    cuda = Cuda()
    assert cuda.device == ("Stand-in", "sm86", "13.4")
    assert cuda.free_bytes() == 10
    cuda.use()
    assert fake.called[-1] == ("cudaSetDevice", (0,))


def test_what_is_uploaded_comes_back(fake: FakeRuntime) -> None:
    cuda = Cuda()
    there, back = cuda.host_array((3, 4), np.float32), cuda.host_array((3, 4), np.float32)
    there[:] = np.arange(12).reshape(3, 4)
    address = cuda.malloc(there.nbytes)
    cuda.upload(address, there[:2], 7)
    cuda.download(back[:2], address, 7)
    assert (back[:2] == there[:2]).all()
    assert not back[2].any()
    kinds = [arguments[3] for name, arguments in fake.called if name == "cudaMemcpyAsync"]
    assert kinds == [1, 2]
    cuda.free_host(back)
    assert fake.called[-1] == ("cudaFreeHost", (back.ctypes.data,))


def test_captured_work_is_launched_and_its_source_given_back(fake: FakeRuntime) -> None:
    cuda = Cuda()
    stream = cuda.stream()
    cuda.begin_capture(stream)
    graph = cuda.end_capture(stream)
    cuda.launch(graph, stream)
    names = [name for name, _ in fake.called[-5:]]
    assert names == [
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
        "cudaGraphLaunch",
    ]
    assert fake.called[-1][1] == ("executable", 7)


def test_a_full_device_is_an_error_of_its_own(fake: FakeRuntime) -> None:
    cuda = Cuda()
    fake.failing["cudaMalloc"] = fake.failing["cudaMallocHost"] = Error.cudaErrorMemoryAllocation
    with pytest.raises(OutOfMemoryError, match="the GPU has no 3 MiB left"):
        cuda.malloc(3 * 2**20)
    with pytest.raises(MissingError, match="cudaMallocHost: words for") as host:
        cuda.host_array((2,), np.uint8)
    assert not isinstance(host.value, OutOfMemoryError), "that is the computer's memory"


def test_any_other_error_is_in_cudas_words(fake: FakeRuntime) -> None:
    cuda = Cuda()
    fake.failing["cudaStreamEndCapture"] = Error.cudaErrorStreamCaptureUnsupported
    with pytest.raises(MissingError, match="CUDA refuses cudaStreamEndCapture: words for cudaErrorStreamCapture"):
        cuda.end_capture(7)


def test_no_driver_and_no_gpu_are_told_apart(fake: FakeRuntime) -> None:
    fake.answers["cudaGetDeviceCount"] = (0,)
    with pytest.raises(NoGpuError, match="no usable NVIDIA GPU here: CUDA lists none"):
        Cuda()
    fake.failing["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    with pytest.raises(NoGpuError, match=r"no usable NVIDIA GPU here: .*words for cudaErrorInsufficientDriver"):
        Cuda()


def test_without_cuda_python_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingError, match=r"needs cuda-python, which is not installed: pip install 'trueport\[rtx\]'"):
        Cuda("rtx")
