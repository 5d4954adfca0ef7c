"""Graphs of two computing layers in every precision, without torch and in milliseconds; a server in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.fake_manifest import fake_manifest
from trueport.runtime import Session
from trueport.runtime.bundle import Bundle
from trueport.runtime.manifest import Bounds, Precision, Task, Variant
from trueport.runtime.runner import Array, RunnerReport
from trueport.runtime.server import Access, ServerLimits
from trueport.runtime.server.listening import Connections
from trueport.runtime.server.models import Models
from trueport.runtime.server.routes import Router
from trueport.runtime.server.watched import Watch

Graphs = Callable[[Precision], bytes]
SHAPE = (8, 8, 1)
CLASSES = 3
_FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def small_graph(kind: str) -> onnx.ModelProto:
    """uint8 (N, 8, 8, 1) -> Cast, Transpose, Conv, Relu, Flatten, Gemm -> float32 (N, 3)."""
    chance, float_type = np.random.default_rng(0), _FLOATS[kind]

    def constant(name: str, *shape: int) -> TensorProto:
        values = chance.normal(0, 0.1, shape).astype(np.float32)
        dtype = helper.tensor_dtype_to_np_dtype(float_type)
        return numpy_helper.from_array(values.astype(dtype), name)

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=float_type),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w1", "b1"], ["maps"], name="conv"),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["sums"], name="gemm"),
        helper.make_node("Cast", ["sums"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [constant("w1", 4, 1, 3, 3), constant("b1", 4), constant("w2", 144, CLASSES), constant("b2", CLASSES)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """The serialised graph in a precision; int8 by onnxruntime's quantizer."""
    folder = tmp_path_factory.mktemp("graphs")
    made: dict[str, bytes] = {}

    def graph(precision: Precision) -> bytes:
        if precision not in made:
            made[precision] = _quantized(folder) if precision == "int8" else small_graph(precision).SerializeToString()
        return made[precision]

    return graph


@pytest.fixture
def variant_of() -> Callable[..., Variant]:
    """A variant whose manifest says what the graph above is."""

    def variant(precision: Precision, **changes: Any) -> Variant:
        bounds = Bounds(max_abs=1e-3, rms=1e-4, noise_max_abs=1e-4, noise_rms=1e-5, noise_from=())
        said: dict[str, Any] = {"reached": {precision: 2}, "file": f"model.{precision}.onnx", "bounds": bounds}
        return Variant(name=precision, format="onnx", precision=precision, **{**said, **changes})

    return variant


def routed(sessions: Sequence[Session], limits: ServerLimits, access: Access | None = None, passed: str = "") -> Router:
    models = Models(limits)
    for session in sessions:
        models.add(session, passed)
    return Router(models, access or Access())


@pytest.fixture(scope="session")
def running() -> Any:
    """Serves sessions in a thread: `with running(sessions) as address`, which is host:port. seen: gets the router."""
    return _running


@contextmanager
def _running(
    sessions: Sequence[Session],
    limits: ServerLimits = ServerLimits(),  # noqa: B008 (frozen)
    access: Access | None = None,
    loop: str = "asyncio",
    passed: str = "",
    port: int = 0,
    seen: Callable[[Router], object] = lambda _: None,
    watch: Watch | None = None,
) -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", port))
    router, stop, begun = routed(sessions, limits, access, passed), asyncio.Event(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    seen(router)

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        connections = Connections(router, limits, watch)
        server = await loops[0].create_server(connections, sock=listener)
        begun.set()
        await stop.wait()
        server.close()
        await connections.drain(5)
        assert not len(connections)

    def run() -> None:
        factory = None
        if loop == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30)
    host, port = listener.getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()
        router.close()


def _quantized(folder: Path) -> bytes:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            images = np.random.default_rng(1).integers(0, 255, (8, 4, *SHAPE), np.uint8)
            self._batches = iter([{"image": batch} for batch in images])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(small_graph("fp32"), source)
    quantize_static(
        source, target, Pictures(), per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8
    )
    return target.read_bytes()


class FirstPixels:
    """A runner whose logits are a row's first pixels, between 0 and 8."""

    inputs = outputs = ()

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = feeds["image"]
        return {"logits": rows.reshape(len(rows), -1)[:, : self._classes].astype(np.float32) / 32}

    def report(self) -> RunnerReport:
        return RunnerReport(name="onnxruntime:cpu", provider="Fake", device="cpu", threads=2, versions={})

    def close(self) -> None: ...


@pytest.fixture(scope="session")
def session_of() -> Callable[..., Session]:
    """A session around a runner whose logits are a row's first pixels: of a model of such a name, version and task."""

    def made(
        name: str = "digits", version: str = "1", task: str = "classification", labels: Sequence[str] = "abcdefg"
    ) -> Session:
        manifest = fake_manifest(
            name, version, labels=labels, row=SHAPE, height=SHAPE[0], width=SHAPE[1], task=cast("Task", task)
        )
        bundle = cast("Bundle", SimpleNamespace(manifest=manifest, path=Path(name)))
        variant = cast("Variant", SimpleNamespace(name="fp32", precision="fp32"))
        return Session(bundle, variant, FirstPixels(len(labels)), chosen="default: fp32 on onnxruntime:cpu")

    return made
