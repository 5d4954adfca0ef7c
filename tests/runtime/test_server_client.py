"""A real server on a loopback port, used by an unmodified tritonclient; starting, refusing to start and stopping.

Run as a program, this file serves the fake session: what a signal does is seen from outside the process.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.runtime.fake_manifest import LABELS, SHAPE, fake_manifest
from trueport.runtime import Prediction, Score, Session, preprocessing
from trueport.runtime.batcher import BatcherStats
from trueport.runtime.batching import BatchLimits
from trueport.runtime.errors import OverloadedError, UsageError
from trueport.runtime.server import App, serve
from trueport.runtime.server.serve import SWITCH_S, _switching

ROOT = Path(__file__).parents[2]
MANIFEST = fake_manifest()


class FakeSession:
    """The first pixels of a row are its logits; a row that begins with 255 is refused, with 254 it waits."""

    manifest = MANIFEST

    def __init__(self) -> None:
        self.limits = BatchLimits(max_batch_rows=8)
        self.closed = False
        self.report = SimpleNamespace(threads=1)

    @property
    def batcher(self) -> Any:
        return self

    async def asubmit(
        self, rows: NDArray[np.uint8], *, deadline_s: float | None = None, priority: int = 0
    ) -> dict[str, Any]:
        if rows.flat[0] == 255:
            raise OverloadedError("the queue is full", 1.5)
        if rows.flat[0] == 254:
            print("begun", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        return {"logits": rows.reshape(len(rows), -1)[:, : len(LABELS)].astype(np.float32)}

    def run_here(self, loop: asyncio.AbstractEventLoop) -> bool:
        return False

    def give_up(self, after_s: float) -> bool:
        return False

    def enqueue(
        self, rows: NDArray[np.uint8], receiver: Any, *, wake: bool = True, **options: Any
    ) -> asyncio.Task[Any]:
        def settle(task: asyncio.Task[Any]) -> None:
            if error := task.exception():
                receiver.set_exception(error)
            else:
                receiver.set_result(task.result())

        task = asyncio.get_running_loop().create_task(self.asubmit(rows, **options))
        task.add_done_callback(settle)
        return task

    def withdraw(self, task: asyncio.Task[Any]) -> bool:
        return task.cancel()

    def stats(self) -> BatcherStats:
        return BatcherStats(requests=1, rows=3, batches=1)

    def prepare(self, source: bytes) -> NDArray[np.uint8]:
        return preprocessing.prepare(source, self.manifest.preprocessing)

    def predictions(self, logits: NDArray[Any], top: int) -> list[Prediction]:
        best = [int(row.argmax()) for row in logits]
        return [Prediction((Score(LABELS[i], i, 1.0),)) for i in best]

    def close(self, timeout_s: float | None = None) -> None:
        self.closed = True
        print("closed", flush=True)


def fakes() -> list[Session]:
    return cast("list[Session]", [FakeSession()])


def pixels(rows: int) -> NDArray[np.uint8]:
    return np.random.default_rng(rows).integers(0, 200, (rows, *SHAPE), np.uint8)


def logits(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    return rows.reshape(len(rows), -1)[:, : len(LABELS)].astype(np.float32)


@contextmanager
def under_uvicorn(loop: str) -> Iterator[str]:
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    http = "httptools" if loop == "uvloop" else "h11"
    config = uvicorn.Config(App(fakes(), gate=None), http=http, loop=loop, ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    host, port = listener.getsockname()
    yield f"{host}:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module", params=["ours on asyncio", "ours on uvloop", "uvicorn on asyncio", "uvicorn on uvloop"])
def address(request: pytest.FixtureRequest, running: Any) -> Iterator[str]:
    """Of a running server: all of this holds for the own one and for the ASGI application under another one."""
    server, loop = request.param.split(" on ")
    pytest.importorskip(loop)
    if server == "uvicorn":
        pytest.importorskip("uvicorn")
        pytest.importorskip("httptools" if loop == "uvloop" else "h11")
    with under_uvicorn(loop) if server == "uvicorn" else running(fakes(), loop=loop) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    from tritonclient.http import InferenceServerClient

    with InferenceServerClient(address, concurrency=4) as client:
        yield client


def infer_input(array: NDArray[Any], datatype: str = "UINT8", binary: bool = True) -> Any:
    from tritonclient.http import InferInput

    return InferInput("image", list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


def test_client_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("plates")
    assert not client.is_model_ready("digits", "2")
    assert client.get_server_metadata()["name"] == "trueport"
    assert client.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, *SHAPE]
    assert client.get_model_config("digits", "1")["max_batch_size"] == 8
    for statistics in (client.get_inference_statistics(), client.get_inference_statistics("digits", "1")):
        assert statistics["model_stats"][0]["name"] == "digits"


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
def test_client_infers(client: Any, binary_in: bool, binary_out: bool | None) -> None:
    from tritonclient.http import InferRequestedOutput

    rows = pixels(3)
    outputs = None if binary_out is None else [InferRequestedOutput("logits", binary_data=binary_out)]
    result = client.infer("digits", [infer_input(rows, binary=binary_in)], outputs=outputs, request_id="seven")
    np.testing.assert_array_equal(result.as_numpy("logits"), logits(rows))
    assert result.get_response()["id"] == "seven"


@pytest.mark.parametrize("binary", [True, False])
def test_client_asks_for_classes(client: Any, binary: bool) -> None:
    from tritonclient.http import InferRequestedOutput

    rows = np.zeros((1, *SHAPE), np.uint8)
    rows.flat[:3] = [1, 5, 3]
    output = InferRequestedOutput("logits", binary_data=binary, class_count=2)
    answer = client.infer("digits", [infer_input(rows)], outputs=[output]).as_numpy("logits")
    texts = [text.decode() if isinstance(text, bytes) else text for text in answer.ravel()]
    assert (answer.shape, texts) == ((1, 2), ["5.0:1:one", "3.0:2:two"])


def test_client_sends_encoded_pictures(client: Any) -> None:
    rows = pixels(2)
    elements = np.array([encoded(row) for row in rows], dtype=object)
    result = client.infer("digits", [infer_input(elements, "BYTES")])
    np.testing.assert_array_equal(result.as_numpy("logits"), logits(rows))


def test_client_sees_the_sentence_of_an_error(client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=r"\[400\] input image has the shape \[1, 5, 4, 1\], expected"):
        client.infer("digits", [infer_input(np.zeros((1, 5, 4, 1), np.uint8))])
    with pytest.raises(InferenceServerException, match=r"\[404\] unknown model 'digit': did you mean digits"):
        client.infer("digit", [infer_input(pixels(1))])
    with pytest.raises(InferenceServerException, match=r"\[503\] the queue is full"):
        client.infer("digits", [infer_input(np.full((1, *SHAPE), 255, np.uint8))])
    with pytest.raises(InferenceServerException, match=r"\[415\] Content-Encoding 'gzip' is not read here"):
        client.infer("digits", [infer_input(pixels(1))], request_compression_algorithm="gzip")


def test_client_infers_asynchronously(client: Any) -> None:
    batches = [pixels(rows) for rows in (1, 2, 3, 4)]
    pending = [client.async_infer("digits", [infer_input(rows)]) for rows in batches]
    for rows, each in zip(batches, pending, strict=True):
        np.testing.assert_array_equal(each.get_result().as_numpy("logits"), logits(rows))


def test_aio_client(address: str) -> None:
    from tritonclient.http.aio import InferenceServerClient

    batches = [pixels(rows) for rows in (1, 2, 3, 4)]

    async def use() -> list[Any]:
        async with InferenceServerClient(address) as client:
            assert await client.is_model_ready("digits")
            assert (await client.get_model_metadata("digits"))["name"] == "digits"
            return await asyncio.gather(*[client.infer("digits", [infer_input(rows)]) for rows in batches])

    for rows, result in zip(batches, asyncio.run(use()), strict=True):
        np.testing.assert_array_equal(result.as_numpy("logits"), logits(rows))


def test_picture_upload_and_reused_connection(address: str) -> None:
    rows = np.zeros((1, *SHAPE), np.uint8)
    rows.flat[2] = 9
    connection = http.client.HTTPConnection(address)
    try:
        for _ in range(2):
            connection.request("POST", "/classify?top=1", encoded(rows[0]))
            response = connection.getresponse()
            answer = msgspec.json.decode(response.read())
            assert (response.status, answer["predictions"][0]["label"]) == (200, "two")
            connection.request("POST", "/classify", b"no picture")
            response = connection.getresponse()
            assert (response.status, list(msgspec.json.decode(response.read()))) == (400, ["error"])
    finally:
        connection.close()


def test_too_large_a_body_leaves_the_connection_usable(address: str) -> None:
    connection = http.client.HTTPConnection(address)
    try:
        connection.request("POST", "/classify", b"x" * (64 * 2**20 + 1))
        response = connection.getresponse()
        assert (response.status, b"error" in response.read()) == (413, True)
        connection.request("GET", "/v2/health/live")
        assert connection.getresponse().status == 200
    finally:
        connection.close()


def test_a_port_in_use_is_a_usage_error_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sessions = fakes()
        with pytest.raises(UsageError, match=rf"port {port} on 127.0.0.1 is in use: .* another port"):
            serve(sessions, port=port)
        assert sessions[0].closed


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("127.0.0.1", 65536, "from 0"),
        ("127.0.0.1", -1, "from 0"),
        ("no-such-host.invalid", 0, "is no address"),
        ("a..b", 0, "is no address"),
        ("a\0b", 0, "is no address"),
    ],
)
def test_an_address_that_can_not_be_had_is_a_usage_error(host: str, port: int, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        serve(fakes(), host, port)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_begun_request_finish_and_ends_normally(number: signal.Signals) -> None:
    with answering() as (server, connection):
        assert server.stdin is not None
        server.send_signal(number)
        server.stdin.write("\n")
        server.stdin.flush()
        response = connection.getresponse()
        assert response.status == 200
        assert b"logits" in response.read()
        rest, _ = server.communicate(timeout=30)
        assert (server.returncode, rest) == (0, "closed\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    with answering() as (server, connection):
        server.send_signal(number)
        with pytest.raises(ConnectionRefusedError):  # which is how it is seen that the first one has been heard
            for _ in range(3000):
                socket.create_connection((connection.host, connection.port), timeout=30).close()
                time.sleep(0.01)
        server.send_signal(number)
        assert server.wait(timeout=30) == 128 + number


def test_threads_take_turns_more_often_as_long_as_it_serves() -> None:
    before = sys.getswitchinterval()
    with _switching(), _switching():
        assert sys.getswitchinterval() == pytest.approx(SWITCH_S, abs=2e-6)  # Python keeps whole microseconds
    assert sys.getswitchinterval() == pytest.approx(before, abs=2e-6)


@contextmanager
def answering() -> Iterator[tuple[subprocess.Popen[str], http.client.HTTPConnection]]:
    """A server that has begun a request, which it ends when it reads a line; and the connection it came by."""
    command = [sys.executable, "-m", "tests.runtime.test_server_client"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        connection = http.client.HTTPConnection(started(server), timeout=30)
        connection.request("POST", "/v2/models/digits/infer", b"\xfe" * 20, {"Inference-Header-Content-Length": "0"})
        assert server.stdout.readline() == "begun\n"
        yield server, connection
        connection.close()


def started(server: subprocess.Popen[str]) -> str:
    """The address, once it says that it serves."""
    assert server.stdout is not None
    assert server.stdout.readline() == "golden\n"
    assert "HTTP takes one thread" in server.stdout.readline()
    ready = server.stdout.readline()
    assert ready.startswith("serving digits on http://127.0.0.1:")
    return ready.split("//")[1].split(",")[0]


def encoded(row: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(row[:, :, 0]).save(stream, "PNG")
    return stream.getvalue()


def say(sentence: str) -> None:
    print(sentence, flush=True)


if __name__ == "__main__":
    serve(fakes(), port=0, log=say, gate=lambda _: "golden")
