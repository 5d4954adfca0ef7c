"""The TensorRT runner on a stand-in for TensorRT and CUDA that computes in NumPy and minds their rules."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from trueport.runtime import runners
from trueport.runtime.bundle import Bundle
from trueport.runtime.engine import EngineOptions, Here, Sidecar, identity_of, profiles_from_text
from trueport.runtime.errors import BundleError, ClosedError, InvalidRequestError, MissingError, TrustError
from trueport.runtime.flavours import FLAVOURS
from trueport.runtime.runner import Runner
from trueport.runtime.runners import RunnerKind, open_runner, tensorrt
from trueport.runtime.runners.cuda import Device, NoGpuError, OutOfMemoryError
from trueport.runtime.runners.tensorrt import TRUSTED, TensorRtRunner, open_engine

GIB = 2**30
Mode = Enum("Mode", ["INPUT", "OUTPUT"])


class FakeCuda:
    """Memory is NumPy arrays by address; streams do things at once, or record them while they capture."""

    def __init__(self, free: int = GIB) -> None:
        self.device = Device("Stand-in", "sm86", "13.0")
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.pinned: list[int] = []
        self.streams: dict[int, list[Callable[[], None]] | None] = {}
        self.events: dict[int, float | None] = {}
        self.graphs: list[Any] = []
        self.launched = 0
        self.refuse_capture = False
        self._left, self._next, self._clock = free, 256, 0.0
        self._lock = threading.Lock()

    def use(self) -> None:
        pass

    def free_bytes(self) -> int:
        return self._left

    def malloc(self, size: int) -> int:
        with self._lock:
            if size > self._left:
                raise OutOfMemoryError("the GPU has no room")
            self._left -= size
            self._next += 256
            self.memory[self._next] = np.zeros(size, np.uint8)
            return self._next

    def free(self, address: int) -> None:
        with self._lock:
            self._left += len(self.memory.pop(address))

    def host_array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        array = np.zeros(shape, dtype)
        self.pinned.append(array.ctypes.data)
        return array

    def free_host(self, array: NDArray[Any]) -> None:
        self.pinned.remove(array.ctypes.data)

    def upload(self, address: int, array: NDArray[Any], stream: int) -> None:
        assert array.ctypes.data in self.pinned, "not pinned"
        data = array.view(np.uint8).reshape(-1)
        self.do(stream, lambda: self.memory[address].__setitem__(slice(len(data)), data))

    def download(self, array: NDArray[Any], address: int, stream: int) -> None:
        data = array.view(np.uint8).reshape(-1)
        self.do(stream, lambda: data.__setitem__(slice(None), self.memory[address][: len(data)]))

    def stream(self) -> int:
        with self._lock:
            self._next += 1
            self.streams[self._next] = None
            return self._next

    def synchronize(self, stream: int) -> None:
        assert self.streams[stream] is None, "no waiting while it captures"

    def destroy_stream(self, stream: int) -> None:
        del self.streams[stream]

    def event(self) -> int:
        self._next += 1
        self.events[self._next] = None
        return self._next

    def record(self, event: int, stream: int) -> None:
        self._clock += 1.5
        self.events[event] = self._clock

    def elapsed_ms(self, begin: int, end: int) -> float:
        first, last = self.events[begin], self.events[end]
        assert first is not None
        assert last is not None
        return last - first

    def destroy_event(self, event: int) -> None:
        del self.events[event]

    def begin_capture(self, stream: int) -> None:
        self.streams[stream] = []

    def end_capture(self, stream: int) -> Any:
        recorded, self.streams[stream] = self.streams[stream], None
        if self.refuse_capture:
            raise MissingError("CUDA refuses cudaStreamEndCapture: operation not permitted")
        self.graphs.append(recorded)
        return recorded

    def launch(self, graph: list[Callable[[], None]], stream: int) -> None:
        self.launched += 1
        for step in graph:
            self.do(stream, step)

    def destroy_graph(self, graph: Any) -> None:
        self.graphs.remove(graph)

    def do(self, stream: int, step: Callable[[], None]) -> None:
        recording = self.streams[stream]
        if recording is None:
            step()
        else:
            recording.append(step)

    @property
    def leaks(self) -> list[str]:
        held = {"memory": self.memory, "pinned": self.pinned, "streams": self.streams, "events": self.events}
        return [name for name, what in {**held, "graphs": self.graphs}.items() if what]


class FakeContext:
    """Keeps TensorRT's rules: memory, profile, shapes and addresses come first, and a graph is bound to all of them."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.profile, self.rows = engine, -1, 0
        self.scratch: tuple[int, int] | None = None
        self.addresses: dict[str, int] = {}

    def set_device_memory(self, address: int, size: int) -> None:
        assert len(self.engine.cuda.memory[address]) == size >= self.engine.device_memory_size_v2
        self.scratch = address, size

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        if profile >= len(self.engine.profiles):
            raise RuntimeError("Error in set optimization profile async.")  # as the binding does
        self.profile, self.rows = profile, 0
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profiles[self.profile]
        self.rows = shape[0]
        return bool(low <= self.rows <= high and list(shape[1:]) == self.engine.row)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.trt.broken:
            return False
        assert self.scratch is not None
        assert self.rows
        state = (self.profile, self.rows, dict(self.addresses))

        def compute() -> None:
            assert state == (self.profile, self.rows, self.addresses), "the context changed behind its graph"
            self.engine.compute(self.addresses, state[1])

        self.engine.cuda.do(stream, compute)
        return True


class FakeEngine:
    """logits[i] = sum of the row times i."""

    def __init__(self, trt: FakeTrt, told: dict[str, Any]) -> None:
        self.trt, self.cuda, self.told = trt, trt.cuda, told
        self.profiles, self.row, self.classes = told["profiles"], told["row"], told["classes"]
        self.device_memory_size_v2 = told["scratch"]
        self.num_io_tensors, self.num_optimization_profiles = 2, len(self.profiles)
        self.contexts = 0
        self.busy, self.most_busy = 0, 0
        self.gate: threading.Barrier | None = None

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "image" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.told.get("dtype", "UINT8") if name == "image" else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.row) if name == "image" else (-1, self.classes)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        return [(rows, *self.row) for rows in self.profiles[index]]

    def create_execution_context(self, how: Any) -> FakeContext:
        assert how == "USER_MANAGED" or how.allocation == "USER_MANAGED"
        self.contexts += 1
        return FakeContext(self)

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(allocation="", cuda_graph_strategy="")
        config.set_execution_context_allocation_strategy = lambda kind: setattr(config, "allocation", kind)
        self.trt.configs.append(config)
        return config

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda kind: json.dumps({"Layers": self.told["layers"]}))

    def compute(self, addresses: dict[str, int], rows: int) -> None:
        with self.trt.lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        if self.gate is not None:
            self.gate.wait(timeout=10)
        size = rows * int(np.prod(self.row))
        images = self.cuda.memory[addresses["image"]][:size].reshape(rows, -1)
        logits = self.expected(images)
        self.cuda.memory[addresses["logits"]][: logits.nbytes] = logits.view(np.uint8).reshape(-1)
        with self.trt.lock:
            self.busy -= 1

    def expected(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        sums = images.reshape(len(images), -1).sum(1, dtype=np.float32)
        logits: NDArray[np.float32] = sums[:, np.newaxis] * np.arange(self.classes, dtype=np.float32)
        return logits


class FakeTrt:
    """The flavour's module."""

    TensorIOMode = Mode
    LayerInformationFormat = SimpleNamespace(JSON="JSON")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="USER_MANAGED")
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE_GRAPH_CAPTURE", DISABLED="DISABLED")
    __version__ = "10.9.0.34"

    class ILogger:
        Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING"])

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda, self.lock, self.broken = cuda, threading.Lock(), False
        self.__name__ = f"fake {id(self)}"
        self.engines: list[FakeEngine] = []
        self.configs: list[Any] = []
        self.complaint = ""

    def Runtime(self, log: Any) -> Any:
        runtime = SimpleNamespace(engine_host_code_allowed=False)

        def deserialize(data: bytes) -> FakeEngine | None:
            if self.complaint:
                log.log(self.ILogger.Severity.ERROR, self.complaint)
                return None
            self.engines.append(FakeEngine(self, json.loads(data)))
            return self.engines[-1]

        runtime.deserialize_cuda_engine = deserialize
        return runtime


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    found = FakeCuda()
    monkeypatch.setattr(tensorrt, "Cuda", lambda extra: found)
    return found


@pytest.fixture
def trt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTrt:
    module = FakeTrt(cuda)
    monkeypatch.setattr(tensorrt, "import_flavour", lambda kind: module)
    for name in FLAVOURS:
        monkeypatch.setitem(runners.RUNNERS, name, RunnerKind("tensorrt", "gpu", "TensorRT"))
    return module


def put(
    path: Path, batch: str = "1:8:64", flavour: str = "tensorrt", options: dict[str, Any] | None = None, **told: Any
) -> Path:
    """An engine of the bundle's fp32 variant for the stand-in, with its sidecar."""
    bundle = Bundle.open(path)
    profiles = profiles_from_text(batch)
    plan = {
        "profiles": [msgspec.structs.astuple(profile) for profile in profiles],
        "row": bundle.manifest.preprocessing.shape,
        "classes": len(bundle.manifest.labels),
        "scratch": 4096,
        "layers": [{"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Float"}]}],
    }
    data = json.dumps(plan | told).encode()
    here = Here(flavour=flavour, version=FakeTrt.__version__, target="sm86", driver="13.0")
    chosen = EngineOptions(profiles=profiles, **(options or {}))
    identity = identity_of(bundle, bundle.variant("fp32"), here, ("sm86",), chosen)
    sidecar = Sidecar(
        identity=identity,
        precision="fp32",
        layers={"fp32": 1},
        layers_from="inspector",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        created="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    engine = path / "engines" / identity.file
    engine.parent.mkdir(exist_ok=True)
    engine.write_bytes(data)
    engine.with_suffix(".json").write_bytes(msgspec.json.encode(sidecar))
    return engine


def images(runner: Runner, rows: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, *runner.inputs[0].shape[1:]), dtype=np.uint8)


def opened(path: Path, variant: str = "fp32", flavour: str = "tensorrt") -> TensorRtRunner:
    runner = open_runner(Bundle.open(path), flavour, variant)
    assert isinstance(runner, TensorRtRunner)
    return runner


@pytest.fixture
def path(own_bundle: Path, trt: FakeTrt) -> Path:
    put(own_bundle, "1:8:64,64:128:256")
    return own_bundle


@pytest.fixture
def runner(path: Path) -> Iterator[TensorRtRunner]:
    made = opened(path)
    yield made
    made.close()


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 63, 64, 65, 128, 256])
def test_any_batch_that_a_profile_holds_is_answered(runner: TensorRtRunner, trt: FakeTrt, rows: int) -> None:
    for seed in range(3):  # the third time a captured graph, where there is one
        batch = images(runner, rows, seed)
        assert (runner.run({"image": batch})["logits"] == trt.engines[0].expected(batch)).all()


def test_answers_stay_as_they_are_when_the_next_batch_comes(runner: TensorRtRunner) -> None:
    first = runner.run({"image": images(runner, 2, 1)})["logits"]
    kept = first.copy()
    runner.run({"image": images(runner, 2, 2)})
    assert (first == kept).all()


@pytest.mark.parametrize("rows", [0, 257])
def test_a_batch_that_no_profile_holds_names_the_ranges(runner: TensorRtRunner, rows: int) -> None:
    with pytest.raises(InvalidRequestError, match=rf"1 to 64 and 64 to 256 rows, found {rows}; build it again"):
        runner.run({"image": images(runner, rows)})


def test_other_names_types_and_shapes_are_refused(runner: TensorRtRunner) -> None:
    good = images(runner, 2)
    for feeds in (
        {},
        {"picture": good},
        {"image": good, "mask": good},
        {"image": good.astype(np.float32)},
        {"image": good[:, 1:]},
        {"image": good[0]},
        {"image": [1, 2]},
        {"image": np.uint8(3)},
    ):
        with pytest.raises(InvalidRequestError, match="expected image uint8"):
            runner.run(feeds)  # type: ignore[arg-type]


def test_strided_pictures_are_taken(runner: TensorRtRunner, trt: FakeTrt) -> None:
    batch = images(runner, 8)[::2, ::-1]
    assert (runner.run({"image": batch})["logits"] == trt.engines[0].expected(batch)).all()


def test_each_optimum_is_captured_once_and_then_launched(runner: TensorRtRunner, cuda: FakeCuda) -> None:
    for rows in (8, 128, 3, 8, 200, 128, 8):
        runner.run({"image": images(runner, rows)})
    assert runner.captured == (8, 128)
    assert len(cuda.graphs) == 2
    assert cuda.launched == 3, "the first run of an optimum is not yet a graph"


def test_captured_graphs_can_be_turned_off_and_agree(path: Path) -> None:
    bundle = Bundle.open(path)
    on, off = (open_engine(bundle, bundle.variant("fp32"), "tensorrt", graphs=graphs) for graphs in (True, False))
    batch = images(on, 8)
    answers = [each.run({"image": batch})["logits"] for each in (on, off) for _ in range(3)]
    assert all((answer == answers[0]).all() for answer in answers)
    assert (on.captured, off.captured) == ((8,), ())
    on.close()
    off.close()


def test_what_can_not_be_captured_runs_without(runner: TensorRtRunner, trt: FakeTrt, cuda: FakeCuda) -> None:
    cuda.refuse_capture = True
    batch = images(runner, 8)
    for _ in range(3):
        assert (runner.run({"image": batch})["logits"] == trt.engines[0].expected(batch)).all()
    assert runner.captured == ()
    assert cuda.launched == 0


def test_rtx_captures_its_own_graphs(own_bundle: Path, trt: FakeTrt, cuda: FakeCuda) -> None:
    put(own_bundle, flavour="rtx")
    runner = opened(own_bundle, flavour="rtx")
    for _ in range(2):
        runner.run({"image": images(runner, 8)})
    assert [config.cuda_graph_strategy for config in trt.configs] == ["WHOLE_GRAPH_CAPTURE"]
    assert cuda.graphs == []
    assert runner.report().name == "rtx"
    runner.close()


def test_two_batches_compute_at_once_and_no_more(runner: TensorRtRunner, trt: FakeTrt) -> None:
    engine = trt.engines[0]
    engine.gate = threading.Barrier(2)  # who computes waits for a second one
    batches = [images(runner, 1 + seed % 5, seed) for seed in range(20)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda batch: runner.run({"image": batch})["logits"], batches))
    assert engine.most_busy == 2
    assert all((answer == engine.expected(batch)).all() for answer, batch in zip(answers, batches, strict=True))


def test_one_after_the_other_needs_one_lane(runner: TensorRtRunner, cuda: FakeCuda) -> None:
    for seed in range(5):
        runner.run({"image": images(runner, 3, seed)})
    assert len(cuda.streams) == 1


def test_where_a_second_lane_has_no_room_the_first_serves_all(own_bundle: Path, trt: FakeTrt, cuda: FakeCuda) -> None:
    put(own_bundle, scratch=GIB // 2 + 1)
    runner = opened(own_bundle)
    batches = [images(runner, 2, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda batch: runner.run({"image": batch})["logits"], batches))
    assert trt.engines[0].most_busy == 1
    assert all((a == trt.engines[0].expected(b)).all() for a, b in zip(answers, batches, strict=True))
    runner.close()


def test_timings_add_up(runner: TensorRtRunner, trt: FakeTrt) -> None:
    batch = images(runner, 8)
    for _ in range(3):
        outputs, timing = runner.timed_run({"image": batch})
    assert (outputs["logits"] == trt.engines[0].expected(batch)).all()
    assert timing[:3] == (1.5, 1.5, 1.5)
    assert timing.total_ms > 0
    assert 0 <= timing.outside_compute <= 1


def test_closing_frees_everything_and_may_happen_twice(path: Path, cuda: FakeCuda) -> None:
    runner = opened(path)
    runner.run({"image": images(runner, 8)})
    assert cuda.leaks == ["memory", "pinned", "streams", "events", "graphs"]
    runner.close()
    runner.close()
    assert cuda.leaks == []
    with pytest.raises(ClosedError, match="open it again"):
        runner.run({"image": np.zeros((1, *runner.inputs[0].shape[1:]), np.uint8)})


def test_closing_waits_for_the_batch_in_flight(path: Path, trt: FakeTrt, cuda: FakeCuda) -> None:
    runner = opened(path)
    trt.engines[0].gate = gate = threading.Barrier(2)
    batch = images(runner, 1)
    with ThreadPoolExecutor(2) as pool:
        answered = pool.submit(runner.run, {"image": batch})
        while not gate.n_waiting:
            pass
        closing = pool.submit(runner.close)
        assert not closing.done()
        gate.wait(timeout=10)
        closing.result(timeout=10)
        assert (answered.result(timeout=10)["logits"] == trt.engines[0].expected(batch)).all()
    assert cuda.leaks == []


def test_out_of_memory_says_which_batch_fits(own_bundle: Path, trt: FakeTrt, cuda: FakeCuda) -> None:
    put(own_bundle, "1:8:64,64:128:256", scratch=2 * GIB)
    with pytest.raises(OutOfMemoryError) as refused:
        opened(own_bundle)
    words = str(refused.value)
    assert "batches of up to 256 rows need 2,0" in words
    assert "1,024 MiB are left: about 127 rows fit" in words
    assert "--batch 1:8:64,64:127:127 --rebuild" in words
    assert cuda.leaks == [], "what was had before is given back"


def test_where_not_one_row_fits_memory_must_be_freed(own_bundle: Path, trt: FakeTrt) -> None:
    put(own_bundle, "1", scratch=2 * GIB)
    with pytest.raises(OutOfMemoryError, match="free some of its memory"):
        opened(own_bundle)


def test_no_room_for_the_weights_is_told_as_such(path: Path, trt: FakeTrt) -> None:
    trt.complaint = "IRuntime::deserializeCudaEngine: Error Code 2: OutOfMemory (Requested size was 9 bytes.)"
    with pytest.raises(MissingError, match="no room for the engine"):
        opened(path)


def test_what_tensorrt_refuses_is_passed_on_with_the_remedy(path: Path, trt: FakeTrt) -> None:
    trt.complaint = (
        "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Version tag does not match In x at /a.cpp:3)"
    )
    with pytest.raises(BundleError, match=r"can't load the engine .*: Version tag does not match; build it again"):
        opened(path)


def test_a_device_that_fails_is_an_error_and_not_an_answer(runner: TensorRtRunner, trt: FakeTrt) -> None:
    trt.broken = True
    with pytest.raises(MissingError, match="TensorRT can't run the batch here"):
        runner.run({"image": images(runner, 3)})
    trt.broken = False
    assert runner.run({"image": images(runner, 3)})["logits"].shape[0] == 3


def test_a_truncated_engine_never_reaches_tensorrt(path: Path, trt: FakeTrt) -> None:
    (engine,) = (path / "engines").glob("*.engine")
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(BundleError, match="truncated or changed"):
        opened(path)
    assert trt.engines == []


def test_without_a_gpu_the_engine_and_what_is_missing_are_named(
    path: Path, trt: FakeTrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu(extra: str) -> Any:
        raise NoGpuError("no usable NVIDIA GPU here: no driver")

    monkeypatch.setattr(tensorrt, "Cuda", no_gpu)
    with pytest.raises(
        MissingError, match=r"built for tensorrt 10\.9\.0\.34 on sm86, there is no usable NVIDIA GPU here: no driver"
    ):
        opened(path)
    assert trt.engines == []


def test_another_gpu_is_refused_before_anything_is_loaded(path: Path, trt: FakeTrt, cuda: FakeCuda) -> None:
    cuda.device = Device("Stand-in", "sm90", "13.0")
    with pytest.raises(MissingError, match="the GPU here is sm90"):
        opened(path)
    assert trt.engines == []


def test_an_engine_in_another_precision_is_refused(own_bundle: Path, trt: FakeTrt) -> None:
    put(own_bundle, layers=[{"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Half"}]}])
    with pytest.raises(BundleError, match="asked for fp32, none of its layers computes in it: 1 layer in fp16"):
        opened(own_bundle)


def test_an_engine_with_other_tensors_contradicts_the_bundle(own_bundle: Path, trt: FakeTrt) -> None:
    put(own_bundle, classes=3)
    with pytest.raises(BundleError, match="contradicts itself"):
        opened(own_bundle)


def test_a_type_that_no_bundle_has_is_refused(own_bundle: Path, trt: FakeTrt) -> None:
    put(own_bundle, dtype="INT4")
    with pytest.raises(BundleError, match="image of INT4"):
        opened(own_bundle)


def test_a_version_compatible_engine_needs_consent(
    own_bundle: Path, trt: FakeTrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(own_bundle, options={"version_compatible": True})
    with pytest.raises(TrustError, match=TRUSTED):
        opened(own_bundle)
    monkeypatch.setenv(TRUSTED, "1")
    opened(own_bundle).close()


def test_the_report_tells_what_really_runs(runner: TensorRtRunner) -> None:
    report = runner.report()
    assert (report.name, report.provider, report.device) == ("tensorrt", "TensorRT", "cuda (Stand-in)")
    assert report.versions == {"tensorrt": "10.9.0.34", "cuda driver": "13.0"}
    assert report.layers == {"fp32": 1}
