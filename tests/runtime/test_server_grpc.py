"""A gRPC server on a loopback port, used by unmodified tritonclients and by clients that mean harm."""

from __future__ import annotations

import asyncio
import io
import queue
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray
from PIL import Image

from tests.runtime.fake_manifest import LABELS, ROW_BYTES, SHAPE, fake_manifest
from trueport.runtime import Session, preprocessing
from trueport.runtime.batcher import Batcher
from trueport.runtime.batching import BatchLimits
from trueport.runtime.errors import GateError, MissingError, UsageError
from trueport.runtime.server import Access, ServerLimits
from trueport.runtime.server.answers import UnknownError
from trueport.runtime.server.endpoint import ModelEndpoint
from trueport.runtime.server.grpc_service import GrpcServer
from trueport.runtime.server.models import Models
from trueport.runtime.server.protocol import InferRequest
from trueport.runtime.server.repository import Repository

grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")
triton_aio = pytest.importorskip("tritonclient.grpc.aio")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
TritonError = triton.InferenceServerException

PREFIX = "/inference.GRPCInferenceService/"
MANIFEST = fake_manifest()


class FakeSession:
    """A real batcher; the first pixels of a row are its logits. A row that begins with 255 or 253 fails, with 254 it
    waits until `go` is set.
    """

    def __init__(self, version: str = "1", max_queue_rows: int = 16) -> None:
        self.manifest = msgspec.structs.replace(MANIFEST, version=version)
        self.go, self.waits = threading.Event(), threading.Event()
        self.runs: list[int] = []
        self.batcher = Batcher(self._run, BatchLimits(max_batch_rows=8, max_queue_rows=max_queue_rows))
        self.closed = False

    def _run(self, rows: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        self.runs.append(len(rows))
        if 254 in rows[:, 0, 0, 0]:
            self.waits.set()
            assert self.go.wait(30)
        if 255 in rows[:, 0, 0, 0]:
            raise RuntimeError("secret internals")
        if 253 in rows[:, 0, 0, 0]:
            raise MissingError("secret: CUDA refuses to run this")
        return {"logits": rows.reshape(len(rows), -1)[:, : len(LABELS)].astype(np.float32)}

    def prepare(self, source: bytes) -> NDArray[np.uint8]:
        return preprocessing.prepare(source, self.manifest.preprocessing)

    def close(self) -> None:
        self.closed = True
        self.go.set()
        self.batcher.close()


class FakeRepository:
    """Models may be loaded; those called `bad` fail their golden set, for those called `rt` something is missing."""

    control = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def load(self, name: str) -> None:
        self.asked.append(("load", name))
        if name == "bad":
            raise GateError("bad does not answer its golden set as the original did")
        if name == "rt":
            raise MissingError("tensorrt:cuda needs an NVIDIA GPU")

    async def unload(self, name: str) -> None:
        self.asked.append(("unload", name))
        if name != "digits":
            raise UnknownError(f"unknown model {name!r}")

    async def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        entries = [
            {"name": "digits", "version": "1", "state": "READY", "reason": ""},
            {"name": "other", "version": "", "state": "UNAVAILABLE", "reason": "not loaded"},
        ]
        return entries[:1] if ready_only else entries


@asynccontextmanager
async def started(
    *sessions: FakeSession,
    limits: ServerLimits = ServerLimits(),  # noqa: B008 (frozen)
    access: Access | None = None,
    repository: Any = None,
) -> AsyncIterator[Any]:
    """A server in this loop: its address and what is below it."""
    models, state = Models(limits, 1), SimpleNamespace(ready=True)
    for session in sessions:
        models.add(cast("Session", session))
    chosen = repository or Repository(models)
    server = GrpcServer(models, chosen, access or Access(), limits, lambda: state.ready)
    port = await server.start("127.0.0.1", 0)
    try:
        yield SimpleNamespace(address=f"127.0.0.1:{port}", server=server, models=models, state=state, port=port)
    finally:
        for session in sessions:
            session.close()
        await server.stop(5)
        models.close()


@contextmanager
def threaded(*sessions: FakeSession, **options: Any) -> Iterator[Any]:
    """The same in a thread, for clients that block."""
    begun: queue.Queue[Any] = queue.Queue()

    async def serve() -> None:
        stop = asyncio.Event()
        try:
            async with started(*sessions, **options) as running:
                running.loop, running.stop = asyncio.get_running_loop(), stop
                begun.put(running)
                await stop.wait()
        except BaseException as error:
            begun.put(error)
            raise

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    running = begun.get(timeout=30)
    assert not isinstance(running, BaseException)
    try:
        yield running
    finally:
        running.loop.call_soon_threadsafe(running.stop.set)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[Any]:
    """One server for what leaves nothing behind."""
    with threaded(FakeSession(max_queue_rows=256), FakeSession("2", 256)) as running:  # a stream reads 32 ahead
        yield running


@pytest.fixture(scope="module")
def client(shared: Any) -> Iterator[Any]:
    with triton.InferenceServerClient(shared.address) as client:
        yield client


@pytest.fixture(scope="module")
def call(shared: Any) -> Iterator[Callable[..., Any]]:
    """Calls a method with any message; the answer's bytes."""
    with grpc.insecure_channel(shared.address) as channel:

        def method(name: str, message: Any, timeout: float = 20, **options: Any) -> bytes:
            data = message if isinstance(message, bytes) else message.SerializeToString()
            path = name if name.startswith("/") else PREFIX + name
            return cast("bytes", channel.unary_unary(path)(data, timeout=timeout, **options))

        yield method


def pixels(*first: int) -> NDArray[np.uint8]:
    """Rows whose logits begin with these numbers."""
    rows = np.zeros((len(first), *SHAPE), np.uint8)
    rows[:, 0, 0, 0] = first
    rows[:, 0, 1, 0] = 7
    return rows


def tensor(values: NDArray[Any], datatype: str = "UINT8", name: str = "image", shape: Any = None) -> Any:
    given = triton.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values)
    return given.set_shape(shape) if shape is not None else given


def picture(gray: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (10, 8), gray).save(file, "PNG")
    return file.getvalue()


def request(**changes: Any) -> Any:
    """A request that is answered, but for what is changed."""
    fields: dict[str, Any] = {
        "model_name": "digits",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, *SHAPE]}],
        "raw_input_contents": [bytes(range(ROW_BYTES))],
    }
    return service_pb2.ModelInferRequest(**fields | changes)


def typed(datatype: str, shape: list[int], **contents: Any) -> Any:
    given = {"name": "image", "datatype": datatype, "shape": shape, "contents": contents}
    return request(inputs=[given], raw_input_contents=[])


def logits(response: bytes) -> list[list[float]]:
    read = service_pb2.ModelInferResponse.FromString(response)
    return cast(
        "list[list[float]]",
        np.frombuffer(read.raw_output_contents[0], np.float32).reshape(list(read.outputs[0].shape)).tolist(),
    )


def refusal(action: Callable[[], object]) -> tuple[str, str]:
    """Code and text that a call ends with."""
    with pytest.raises((grpc.RpcError, TritonError)) as caught:
        action()
    error = caught.value
    if isinstance(error, TritonError):
        return str(error.status()).rpartition(".")[2], str(error.message())
    return error.code().name, error.details()


# What an unmodified client asks.


def test_health(client: Any, shared: Any, call: Callable[..., Any]) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "2")
    assert not client.is_model_ready("digits", "3")
    assert not client.is_model_ready("letters")
    assert call("/grpc.health.v1.Health/Check", b"") == b"\x08\x01"
    shared.state.ready = False
    try:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert call("/grpc.health.v1.Health/Check", b"\x0a\x1einference.GRPCInferenceService") == b"\x08\x02"
    finally:
        shared.state.ready = True
    assert refusal(lambda: call("/grpc.health.v1.Health/Check", b"\x0a\x05other"))[0] == "NOT_FOUND"


def test_metadata_and_config(client: Any) -> None:
    server = client.get_server_metadata()
    assert server.name == "trueport"
    assert "binary_tensor_data" in server.extensions
    model = client.get_model_metadata("digits")
    assert list(model.versions) == ["1", "2"]
    assert [(one.name, one.datatype, list(one.shape)) for one in model.inputs] == [("image", "UINT8", [-1, *SHAPE])]
    assert [(one.name, one.datatype, list(one.shape)) for one in model.outputs] == [("logits", "FP32", [-1, 3])]
    config = client.get_model_config("digits", "1").config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("digits", 8, list(SHAPE))
    assert (config.input[0].data_type, config.output[0].data_type) == (2, 11)  # TYPE_UINT8, TYPE_FP32
    assert config.dynamic_batching.default_priority_level == 100
    assert config.parameters["task"].string_value == "classification"
    assert client.get_model_config("digits", as_json=True)["config"]["input"][0]["data_type"] == "TYPE_UINT8"


def test_infer_raw(client: Any) -> None:
    rows = pixels(3, 5)
    result = client.infer("digits", [tensor(rows)], request_id="mine", priority=1, timeout=10_000_000)
    assert result.as_numpy("logits").tolist() == [[3, 7, 0], [5, 7, 0]]
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("mine", "digits", "2")
    assert client.infer("digits", [tensor(rows)], model_version="1").get_response().model_version == "1"
    wanted = [triton.InferRequestedOutput("logits")]
    assert client.infer("digits", [tensor(rows)], outputs=wanted).as_numpy("logits").dtype == np.float32


def test_the_same_request_again_is_read_anew(client: Any) -> None:
    """The beginning that is known must not bring a tensor with it."""
    for first in (1, 2, 3):
        assert client.infer("digits", [tensor(pixels(first))]).as_numpy("logits")[0, 0] == first
    assert client.infer("digits", [tensor(pixels(4, 5))]).as_numpy("logits").shape == (2, 3)


def test_infer_typed(call: Callable[..., Any]) -> None:
    assert logits(call("ModelInfer", typed("UINT8", [1, *SHAPE], uint_contents=range(20)))) == [[0, 1, 2]]
    encoded = typed("BYTES", [2], bytes_contents=[picture(40), picture(90)])
    assert logits(call("ModelInfer", encoded)) == [[40] * 3, [90] * 3]


@pytest.mark.parametrize("column", [False, True])
def test_infer_pictures(client: Any, column: bool) -> None:
    encoded = np.array([picture(40), picture(90)], np.object_).reshape((2, 1) if column else (2,))
    result = client.infer("digits", [tensor(encoded, "BYTES")])
    assert result.as_numpy("logits").tolist() == [[40] * 3, [90] * 3]


def test_infer_classes(client: Any) -> None:
    wanted = [triton.InferRequestedOutput("logits", class_count=2)]
    result = client.infer("digits", [tensor(pixels(3, 9))], outputs=wanted)
    assert result.as_numpy("logits").tolist() == [[b"7.0:1:one", b"3.0:0:zero"], [b"9.0:0:zero", b"7.0:1:one"]]
    assert result.get_output("logits").datatype == "BYTES"


def test_statistics(client: Any) -> None:
    def counted(version: str) -> tuple[int, int]:
        (model,) = client.get_inference_statistics("digits", version).model_stats
        return model.inference_stats.success.count, model.inference_stats.fail.count

    before = counted("1")
    client.infer("digits", [tensor(pixels(1, 2))], model_version="1")
    refusal(lambda: client.infer("digits", [tensor(pixels(1), name="picture")], model_version="1"))
    assert counted("1") == (before[0] + 1, before[1] + 1)
    assert [(model.name, model.version) for model in client.get_inference_statistics().model_stats] == [
        ("digits", "1"),
        ("digits", "2"),
    ]
    assert len(client.get_inference_statistics("digits").model_stats) == 2
    assert refusal(lambda: client.get_inference_statistics("digits", "3"))[0] == "NOT_FOUND"


def test_loading_is_off_unless_asked_for(client: Any) -> None:
    for action in (client.load_model, client.unload_model):
        assert refusal(lambda action=action: action("digits"))[0] == "UNAVAILABLE"  # type: ignore[misc]


def test_loading_and_unloading() -> None:
    repository = FakeRepository()
    with threaded(FakeSession(), repository=repository) as running:
        client = triton.InferenceServerClient(running.address)
        client.load_model("other")
        client.unload_model("digits")
        assert repository.asked == [("load", "other"), ("unload", "digits")]
        assert refusal(lambda: client.load_model("bad")) == (
            "FAILED_PRECONDITION",
            "bad does not answer its golden set as the original did",
        )
        found = refusal(lambda: client.load_model("rt"))
        assert found == ("FAILED_PRECONDITION", "tensorrt:cuda needs an NVIDIA GPU")
        assert refusal(lambda: client.unload_model("nothing"))[0] == "NOT_FOUND"
        code, text = refusal(lambda: client.load_model("other", config='{"backend": "python"}'))
        assert (code, "config" in text) == ("INVALID_ARGUMENT", True)
        index = client.get_model_repository_index().models
        assert [(one.name, one.version, one.state, one.reason) for one in index] == [
            ("digits", "1", "READY", ""),
            ("other", "", "UNAVAILABLE", "not loaded"),
        ]
        client.close()


# What can't be answered.


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_name": "digit"}, "did you mean digits"),
        ({"model_version": "7"}, "unknown version of digits"),
    ],
)
def test_unknown_models_are_not_found(call: Callable[..., Any], changes: dict[str, str], complaint: str) -> None:
    code, text = refusal(lambda: call("ModelInfer", request(**changes)))
    assert (code, complaint in text) == ("NOT_FOUND", True)


def one_input(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, *SHAPE]} | changes]}


def one_output(**parameters: Any) -> dict[str, Any]:
    return {"outputs": [{"name": "logits", "parameters": parameters}]}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (one_input(name="picture"), "takes one input, 'image'"),
        (one_input(datatype="FP32"), "expected UINT8 pixels or BYTES"),
        (one_input(shape=[1, 5, 4, 1]), "has the shape [1, 5, 4, 1]"),
        (one_input(shape=[20]), "has the shape [20]"),
        (one_input(shape=[]), "has the shape []"),
        (one_input(shape=[0, *SHAPE]), "has 0 bytes, found 20"),
        (one_input(shape=[-1, *SHAPE]), "has -20 bytes, found 20"),
        (one_input(shape=[2**62, *SHAPE]), "bytes, found 20"),
        (one_input(parameters={"shared_memory_region": {"string_param": "a"}}), "shared memory is not offered"),
        (one_input(contents={"uint_contents": [1]}), "both there"),
        ({"inputs": []}, "1 elements for 0 inputs"),
        ({"inputs": one_input()["inputs"] * 2}, "1 elements for 2 inputs"),
        ({"raw_input_contents": []}, "has 20 bytes, found 0"),
        ({"raw_input_contents": [bytes(19)]}, "has 20 bytes, found 19"),
        ({"raw_input_contents": [bytes(10), bytes(10)]}, "2 elements for 1 inputs"),
        ({**one_input(shape=[9, *SHAPE]), "raw_input_contents": [bytes(180)]}, "expected 1 to 8 rows"),
        ({"outputs": [{"name": "scores"}]}, "has no output 'scores'"),
        ({"outputs": [{"name": "logits"}] * 2}, "asked for twice"),
        (one_output(classification={"int64_param": -1}), "$.outputs[0].parameters.classification"),
        (one_output(classification={"string_param": "2"}), "$.outputs[0].parameters.classification"),
        (one_output(classification={}), "$.outputs[0].parameters.classification"),
        (one_output(shared_memory_region={"string_param": "a"}), "shared memory is not offered"),
        ({"parameters": {"priority": {"bool_param": True}}}, "$.parameters.priority"),
        ({"parameters": {"priority": {"uint64_param": 2**64 - 1}}}, "$.parameters.priority"),
        ({"parameters": {"timeout": {"double_param": 0.5}}}, "$.parameters.timeout"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[..., Any], changes: dict[str, Any], complaint: str) -> None:
    code, text = refusal(lambda: call("ModelInfer", request(**changes)))
    assert (code, complaint in text) == ("INVALID_ARGUMENT", True), text


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (typed("UINT8", [1, *SHAPE], uint_contents=[256] * 20), "numbers from 0 to 255"),
        (typed("UINT8", [1, *SHAPE], uint_contents=[1] * 19), "found 19"),
        (typed("UINT8", [1, *SHAPE], int_contents=[1] * 20), "has to be uint_contents, found int_contents"),
        (typed("UINT8", [1, *SHAPE]), "found 0"),
        (typed("FP32", [1, *SHAPE], fp32_contents=[1] * 20), "expected UINT8 pixels"),
        (typed("BYTES", [2], bytes_contents=[b"x"]), "1 elements in bytes_contents"),
        (typed("BYTES", [1], bytes_contents=[b"no picture"]), "picture"),
        (typed("BYTES", [1], bytes_contents=[b""]), "picture"),
        (request(**one_input(datatype="BYTES", shape=[1])), "each after its length"),
        (request(**one_input(datatype="BYTES", shape=[1, 2])), "has the shape [1, 2]"),
    ],
)
def test_values_that_do_not_fit_are_refused(call: Callable[..., Any], message: Any, complaint: str) -> None:
    code, text = refusal(lambda: call("ModelInfer", message))
    assert (code, complaint in text) == ("INVALID_ARGUMENT", True), text


def test_what_is_no_message_is_refused(call: Callable[..., Any]) -> None:
    for method in ("ModelInfer", "ModelReady", "RepositoryIndex"):
        assert refusal(lambda method=method: call(method, b"\x0a\x7f"))[0] == "INVALID_ARGUMENT"  # type: ignore[misc]
    assert refusal(lambda: call("ModelReady", b"\x0a\xff\xff\x0f" + b"x" * 0x3FFFF))[0] == "INVALID_ARGUMENT"
    assert refusal(lambda: call("SystemSharedMemoryStatus", b""))[0] == "UNIMPLEMENTED"


def test_a_call_without_a_message_is_refused(shared: Any) -> None:
    with grpc.insecure_channel(shared.address) as channel:
        assert refusal(lambda: channel.stream_unary(PREFIX + "ModelInfer")(iter(()), timeout=20)) == (
            "INVALID_ARGUMENT",
            "the call came to its end without a message",
        )


@pytest.mark.parametrize("first", [255, 253])
def test_what_fails_inside_stays_inside(client: Any, first: int) -> None:
    code, text = refusal(lambda: client.infer("digits", [tensor(pixels(first))]))
    assert code == "INTERNAL"
    assert "secret" not in text
    assert "log" in text


def test_messages_beyond_four_megabytes() -> None:
    limits = ServerLimits(max_body_bytes=6 * 2**20)
    with threaded(FakeSession(), limits=limits) as running:
        client = triton.InferenceServerClient(running.address)
        noise = np.random.default_rng(0).integers(0, 256, (2200, 2200), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "PNG")
        assert 4 * 2**20 < len(file.getvalue()) < 6 * 2**20
        encoded = np.array([file.getvalue()], np.object_)
        assert client.infer("digits", [tensor(encoded, "BYTES")]).as_numpy("logits").shape == (1, 3)
        code, _ = refusal(lambda: client.infer("digits", [tensor(np.array([bytes(8 * 2**20)], np.object_), "BYTES")]))
        assert code == "RESOURCE_EXHAUSTED"
        assert client.is_server_live()
        client.close()


def test_requests_that_are_large_beside_their_tensors_are_refused() -> None:
    limits = ServerLimits(max_json_bytes=1000)
    with threaded(FakeSession(), limits=limits) as running, grpc.insecure_channel(running.address) as channel:
        infer = channel.unary_unary(PREFIX + "ModelInfer")
        message = request(id="x" * 1000).SerializeToString()
        code, text = refusal(lambda: infer(message, timeout=20))
        assert (code, "beside raw_input_contents" in text) == ("INVALID_ARGUMENT", True)
        assert logits(infer(request(id="x" * 800).SerializeToString(), timeout=20)) == [[0, 1, 2]]


def test_compressed_messages_are_refused(call: Callable[..., Any]) -> None:
    """A megabyte of zeros that became a gigabyte would be one small message."""
    code, _ = refusal(lambda: call("ModelInfer", request(), compression=grpc.Compression.Gzip))
    assert code == "UNIMPLEMENTED"


def test_models_that_change_while_clients_ask() -> None:
    """What is known of a request must not keep the model that it was for."""
    first, second = FakeSession("1"), FakeSession("2")
    with threaded(first) as running, triton.InferenceServerClient(running.address) as client:

        def exchanged(*sessions: Any) -> None:
            done = threading.Event()

            def exchange() -> None:
                running.models.exchange("digits", [running.models.endpoint(session) for session in sessions])
                done.set()

            running.loop.call_soon_threadsafe(exchange)
            assert done.wait(20)

        def version() -> str:
            return str(client.infer("digits", [tensor(pixels(1))]).get_response().model_version)

        assert version() == version() == "1"
        exchanged(second)
        assert version() == version() == "2"
        exchanged()
        assert refusal(version)[0] == "NOT_FOUND"
        exchanged(second)
        second.close()
        assert refusal(version)[0] == "UNAVAILABLE"
        assert not client.is_model_ready("digits")


# How long it takes, and who has gone.


def test_deadlines() -> None:
    """That of the request is told when the queue comes to it, that of the call at once."""
    session = FakeSession()
    with threaded(session) as running, triton.InferenceServerClient(running.address) as client:
        blocked = in_a_thread(lambda: client.infer("digits", [tensor(pixels(254))]))
        assert session.waits.wait(20)
        late = in_a_thread(lambda: refusal(lambda: client.infer("digits", [tensor(pixels(1))], timeout=1)))
        code, _ = refusal(lambda: client.infer("digits", [tensor(pixels(1))], client_timeout=0.1))
        assert code == "DEADLINE_EXCEEDED"
        assert eventually(lambda: session.batcher.stats().queued_requests <= 1), "it waits in the queue for nobody"
        session.go.set()
        assert blocked().as_numpy("logits")[0, 0] == 254
        assert late()[0] == "DEADLINE_EXCEEDED"
        assert session.runs == [1], "a request ran that nobody waited for"


def test_the_call_s_deadline_is_the_request_s(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float | None] = []

    async def outputs(self: ModelEndpoint, what: InferRequest) -> dict[str, NDArray[np.float32]]:
        asked.append(what.timeout_s)
        return {"logits": np.zeros((1, 3), np.float32)}

    monkeypatch.setattr(ModelEndpoint, "outputs", outputs)
    with threaded(FakeSession()) as running, triton.InferenceServerClient(running.address) as client:
        client.infer("digits", [tensor(pixels(1))])
        client.infer("digits", [tensor(pixels(1))], timeout=7_000_000)
        client.infer("digits", [tensor(pixels(1))], timeout=7_000_000, client_timeout=100)
        client.infer("digits", [tensor(pixels(1))], timeout=700_000_000, client_timeout=100)
    none, *given, shorter = asked
    assert none is None
    assert given == [7, 7]
    assert 90 < (shorter or 0) < 110


def in_a_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begins the work; call what it gives to have the result."""
    done: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=lambda: done.put(work()), daemon=True).start()
    return lambda: done.get(timeout=30)


def eventually(condition: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + 20
    while not condition() and time.monotonic() < end_s:
        time.sleep(0.005)
    return condition()


def test_a_client_that_leaves_takes_its_request_along() -> None:
    session = FakeSession()
    with threaded(session) as running, grpc.insecure_channel(running.address) as channel:
        infer = channel.unary_unary(PREFIX + "ModelInfer")
        blocked = infer.future(request(raw_input_contents=[b"\xfe" + bytes(19)]).SerializeToString())
        assert session.waits.wait(20)
        left = infer.future(request().SerializeToString())
        assert eventually(lambda: session.batcher.stats().queued_requests == 1)
        left.cancel()
        assert eventually(lambda: session.batcher.stats().queued_requests == 0)
        session.go.set()
        assert logits(blocked.result(20))[0][0] == 254
        assert session.runs == [1]
        (endpoint,) = running.models
        assert eventually(lambda: endpoint.tally.failures["CANCELED"] == 1)


def test_a_full_queue_says_when_to_come_back() -> None:
    session = FakeSession()
    with threaded(session) as running, grpc.insecure_channel(running.address) as channel:
        infer = channel.unary_unary(PREFIX + "ModelInfer")
        rows = {**one_input(shape=[8, *SHAPE]), "raw_input_contents": [b"\xfe" + bytes(159)]}
        begun = [infer.future(request(**rows).SerializeToString())]
        assert session.waits.wait(20)
        begun += [infer.future(request(**rows).SerializeToString()) for _ in range(2)]
        assert eventually(lambda: session.batcher.stats().queued_requests == 2)
        with pytest.raises(grpc.RpcError) as caught:
            infer(request().SerializeToString(), timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert int(dict(caught.value.trailing_metadata())["retry-after"]) >= 1
        session.go.set()
        for one in begun:
            assert len(logits(one.result(20))) == 8


def test_calls_are_bounded() -> None:
    session, limits = FakeSession(), ServerLimits(max_connections=2)
    own = [("grpc.use_local_subchannel_pool", 1)]  # channels to one address would share a connection
    with (
        threaded(session, limits=limits) as running,
        grpc.insecure_channel(running.address, own) as one,
        grpc.insecure_channel(running.address, own) as other,
    ):
        data = request(raw_input_contents=[b"\xfe" + bytes(19)]).SerializeToString()
        begun = [one.unary_unary(PREFIX + "ModelInfer").future(data)]
        assert session.waits.wait(20)
        begun.append(one.unary_unary(PREFIX + "ModelInfer").future(data))
        assert eventually(lambda: session.batcher.stats().queued_requests == 1)
        code, text = refusal(lambda: other.unary_unary(PREFIX + "ServerLive")(b"", timeout=20))
        assert (code, "2 calls" in text) == ("UNAVAILABLE", True)
        with grpc.insecure_channel(running.address, own) as third:
            code, text = refusal(lambda: third.unary_unary(PREFIX + "ServerLive")(b"", timeout=1))
            assert (code, "2 calls" in text) != ("UNAVAILABLE", True), "a third connection was taken in"
        session.go.set()
        for call in begun:
            call.result(20)
        assert other.unary_unary(PREFIX + "ServerLive")(b"", timeout=20) == b"\x08\x01"


def test_a_message_that_does_not_come() -> None:
    limits, never = ServerLimits(body_s=0.2), threading.Event()
    with threaded(FakeSession(), limits=limits) as running, grpc.insecure_channel(running.address) as channel:
        silent = iter(lambda: never.wait(20) and b"", None)
        code, text = refusal(lambda: channel.stream_unary(PREFIX + "ModelInfer")(silent, timeout=20))
        never.set()
        assert (code, "did not arrive" in text) == ("DEADLINE_EXCEEDED", True)


# Who may ask.


def test_a_token_is_asked_for_everywhere() -> None:
    access = Access("secret-token")
    with threaded(FakeSession(), access=access) as running, grpc.insecure_channel(running.address) as channel:
        (service,) = service_pb2.DESCRIPTOR.services_by_name.values()
        for name in (*service.methods_by_name, "/grpc.health.v1.Health/Check"):
            path = name if name.startswith("/") else PREFIX + name
            if "SharedMemory" in path or "Setting" in path:
                continue
            for metadata in ((), (("authorization", "Bearer wrong"),), (("x-api-key", "wrong"),)):
                code, _ = refusal(lambda: list(channel.unary_stream(path)(b"", timeout=20, metadata=metadata)))  # noqa: B023
                assert code == "UNAUTHENTICATED", path
        live = channel.unary_unary(PREFIX + "ServerLive")
        for metadata in ((("authorization", "bearer secret-token"),), (("x-api-key", "secret-token"),)):
            assert live(b"", timeout=20, metadata=metadata) == b"\x08\x01"
        with triton.InferenceServerClient(running.address) as client:
            headers = {"authorization": "Bearer secret-token"}
            assert client.infer("digits", [tensor(pixels(1))], headers=headers).as_numpy("logits")[0, 0] == 1


def test_health_may_be_open() -> None:
    access = Access("secret-token", open_health=True)
    with threaded(FakeSession(), access=access) as running, triton.InferenceServerClient(running.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert refusal(lambda: client.is_model_ready("digits"))[0] == "UNAUTHENTICATED"


# Streams.


def test_a_stream_answers_each_request_in_order(shared: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(shared.address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(100):
            if number % 10 == 3:
                client.async_stream_infer("digits", [tensor(pixels(1), name="wrong")], request_id=str(number))
            else:
                client.async_stream_infer("digits", [tensor(pixels(number))], request_id=str(number))
        for number in range(100):
            result, error = answers.get(timeout=20)
            if number % 10 == 3:
                assert "takes one input, 'image'" in str(error)
                continue
            assert error is None, error.message()
            assert result.get_response().id == str(number)
            assert result.as_numpy("logits")[0, 0] == number
            assert result.get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()


def test_requests_of_a_stream_run_together() -> None:
    session = FakeSession()
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with threaded(session) as running, triton.InferenceServerClient(running.address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("digits", [tensor(pixels(254))])
        assert session.waits.wait(20)
        for first in (1, 2, 3):
            client.async_stream_infer("digits", [tensor(pixels(first))])
        assert eventually(lambda: session.batcher.stats().queued_requests == 3)
        session.go.set()
        answered = [answers.get(timeout=20) for _ in range(4)]
        assert [error for _, error in answered] == [None] * 4
        assert [result.as_numpy("logits")[0, 0] for result, _ in answered] == [254, 1, 2, 3]
        client.stop_stream()
        assert session.runs == [1, 3]


def test_a_stream_that_is_cancelled_takes_its_requests_along() -> None:
    session = FakeSession()
    with threaded(session) as running, triton.InferenceServerClient(running.address) as client:
        client.start_stream(lambda result, error: None)
        client.async_stream_infer("digits", [tensor(pixels(254))])
        assert session.waits.wait(20)
        for first in (1, 2, 3):
            client.async_stream_infer("digits", [tensor(pixels(first))])
        assert eventually(lambda: session.batcher.stats().queued_requests == 3)
        client.stop_stream(cancel_requests=True)
        assert eventually(lambda: session.batcher.stats().queued_requests == 0)
        session.go.set()
        assert client.infer("digits", [tensor(pixels(9))]).as_numpy("logits")[0, 0] == 9


# The asyncio client, in the loop of the server.


def test_many_clients_each_get_their_own_answer() -> None:
    async def ask(address: str, number: int) -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            for turn in range(20):
                first, count = (number * 20 + turn) % 250, 1 + turn % 3
                result = await client.infer("digits", [tensor(pixels(*[first] * count))], request_id=f"{number}-{turn}")
                assert result.as_numpy("logits").tolist() == [[first, 7, 0]] * count
                assert result.get_response().id == f"{number}-{turn}"

    async def scenario() -> None:
        session = FakeSession(max_queue_rows=64)
        async with started(session) as running:
            await asyncio.gather(*(ask(running.address, number) for number in range(12)))
            assert max(session.runs) > 1, "no two clients shared a batch"

    asyncio.run(scenario())


def test_asyncio_client() -> None:
    async def scenario() -> None:
        async with started(FakeSession()) as running, triton_aio.InferenceServerClient(running.address) as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("digits")
            assert (await client.get_model_metadata("digits")).name == "digits"
            assert (await client.get_model_config("digits")).config.name == "digits"
            assert (await client.infer("digits", [tensor(pixels(5))])).as_numpy("logits")[0, 0] == 5
            with pytest.raises(TritonError, match="unknown model"):
                await client.infer("letters", [tensor(pixels(5))])

            async def requests() -> AsyncIterator[dict[str, Any]]:
                for first in range(50):
                    yield {"model_name": "digits", "inputs": [tensor(pixels(first))]}

            answers = [result.as_numpy("logits")[0, 0] async for result, error in client.stream_infer(requests())]
            assert answers == list(range(50))

    asyncio.run(scenario())


def test_stopping_answers_what_was_begun_and_ends_streams() -> None:
    async def scenario() -> None:
        session = FakeSession()
        async with started(session) as running, grpc.aio.insecure_channel(running.address) as channel:
            blocking = request(raw_input_contents=[b"\xfe" + bytes(19)]).SerializeToString()
            begun = channel.unary_unary(PREFIX + "ModelInfer")(blocking)
            assert await asyncio.to_thread(session.waits.wait, 20)
            stream = channel.stream_stream(PREFIX + "ModelStreamInfer")()
            await stream.write(request().SerializeToString())
            assert await asyncio.to_thread(eventually, lambda: session.batcher.stats().queued_requests == 1)
            stopping = asyncio.get_running_loop().create_task(running.server.stop(20))
            await asyncio.sleep(0.05)
            session.go.set()
            assert logits(await begun)[0][0] == 254
            answer = service_pb2.ModelStreamInferResponse.FromString(await stream.read())
            assert logits(answer.infer_response.SerializeToString()) == [[0, 1, 2]]
            with pytest.raises(grpc.aio.AioRpcError, match="the server is stopping"):
                await stream.read()
            await stopping

    asyncio.run(scenario())


def test_what_does_not_end_is_ended() -> None:
    async def scenario() -> None:
        session = FakeSession()
        async with started(session) as running, grpc.aio.insecure_channel(running.address) as channel:
            data = request(raw_input_contents=[b"\xfe" + bytes(19)]).SerializeToString()
            begun = channel.unary_unary(PREFIX + "ModelInfer")(data)
            assert await asyncio.to_thread(session.waits.wait, 20)
            await running.server.stop(0.1)
            with pytest.raises(grpc.aio.AioRpcError):
                await begun
            session.go.set()

    asyncio.run(scenario())


# Where it listens, and without what.


def test_an_address_that_can_not_be_had() -> None:
    async def begin(host: str, port: int) -> None:
        models = Models(ServerLimits(), 1)
        server = GrpcServer(models, Repository(models), Access(), ServerLimits(), lambda: True)
        try:
            await server.start(host, port)
        finally:
            await server.stop(0)
            models.close()

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="is in use"):
        asyncio.run(begin("127.0.0.1", taken.getsockname()[1]))
    for host in ("unix", "no such name", "203.0.113.7"):
        with pytest.raises(UsageError):
            asyncio.run(begin(host, 0))


def test_a_port_of_another_grpc_server_is_in_use() -> None:
    with threaded(FakeSession()) as running, pytest.raises(UsageError, match="is in use"):
        asyncio.run(start_once(running.port))


async def start_once(port: int) -> None:
    models = Models(ServerLimits(), 1)
    server = GrpcServer(models, Repository(models), Access(), ServerLimits(), lambda: True)
    try:
        await server.start("127.0.0.1", port)
    finally:
        await server.stop(0)
        models.close()


@pytest.mark.parametrize(("module", "package"), [("grpc", "grpcio"), ("google.protobuf", "protobuf")])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    import sys

    for name in list(sys.modules):
        if name == module or name.startswith(f"{module}."):
            monkeypatch.setitem(sys.modules, name, None)
    models = Models(ServerLimits(), 1)
    with pytest.raises(MissingError, match=rf"gRPC needs {package}.*trueport\[serve\]"):
        GrpcServer(models, cast("Any", None), Access(), ServerLimits(), lambda: True)
    models.close()


# Whatever is sent.

parameter = some.one_of(
    some.just({}),
    some.builds(lambda value: {"bool_param": value}, some.booleans()),
    some.builds(lambda value: {"int64_param": value}, some.integers(-(2**63), 2**63 - 1)),
    some.builds(lambda value: {"uint64_param": value}, some.integers(0, 2**64 - 1)),
    some.builds(lambda value: {"double_param": value}, some.floats()),
    some.builds(lambda value: {"string_param": value}, some.text(max_size=20)),
)
names = some.sampled_from(["image", "logits", "digits", "", "x" * 3000, "\u2603"])
parameters = some.dictionaries(
    some.sampled_from(["priority", "timeout", "classification", "shared_memory_region", "binary_data_size", "other"]),
    parameter,
    max_size=4,
)
contents = some.fixed_dictionaries(
    {},
    optional={
        "uint_contents": some.lists(some.integers(0, 2**32 - 1), max_size=25),
        "int_contents": some.lists(some.integers(-(2**31), 2**31 - 1), max_size=3),
        "bytes_contents": some.lists(some.binary(max_size=20), max_size=3),
        "fp32_contents": some.lists(some.floats(width=32), max_size=3),
    },
)
shapes = some.one_of(
    some.just([1, *SHAPE]), some.just([2, *SHAPE]), some.lists(some.integers(-(2**63), 2**63 - 1), max_size=6)
)
inputs = some.fixed_dictionaries(
    {
        "name": names,
        "datatype": some.sampled_from(["UINT8", "BYTES", "FP32", "", "UINT8 "]),
        "shape": shapes,
        "parameters": parameters,
    },
    optional={"contents": contents},
)
raw = some.one_of(
    some.binary(max_size=45),
    some.just(bytes(20)),
    some.just(bytes(40)),
    some.builds(
        lambda size, data: struct.pack("<I", size) + data, some.integers(0, 2**32 - 1), some.binary(max_size=9)
    ),
)
requests = some.builds(
    lambda **fields: service_pb2.ModelInferRequest(**fields).SerializeToString(),
    model_name=some.sampled_from(["digits", "digits", "letters", "x" * 3000]),
    model_version=some.sampled_from(["", "1", "9"]),
    id=some.text(max_size=10),
    parameters=parameters,
    inputs=some.lists(inputs, min_size=1, max_size=2),
    outputs=some.lists(some.fixed_dictionaries({"name": names, "parameters": parameters}), max_size=2),
    raw_input_contents=some.lists(raw, max_size=2),
)
EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE", "DEADLINE_EXCEEDED"}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some.one_of(requests, some.binary(max_size=60)))
def test_hostile_requests_are_refused_or_answered(call: Callable[..., Any], message: bytes) -> None:
    try:
        response = service_pb2.ModelInferResponse.FromString(call("ModelInfer", message))
    except grpc.RpcError as error:
        assert error.code().name in EXPECTED, error.details()
        return
    assert response.outputs[0].name == "logits"
    assert logits(call("ModelInfer", request())) == [[0, 1, 2]]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    some.sampled_from(["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryModelLoad"]),
    some.binary(max_size=40),
)
def test_hostile_questions_are_refused_or_answered(call: Callable[..., Any], method: str, message: bytes) -> None:
    try:
        call(method, message)
    except grpc.RpcError as error:
        assert error.code().name in EXPECTED, error.details()
