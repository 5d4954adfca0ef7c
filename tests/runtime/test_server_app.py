"""The application without a socket: routes, status codes, tensors each way, malformed and hostile requests."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import random
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.runtime.fake_manifest import LABELS, ROW_BYTES, SHAPE, fake_manifest
from trueport.runtime import Prediction, Score, Session, preprocessing
from trueport.runtime.batcher import Batcher, BatcherStats
from trueport.runtime.batching import BatchLimits
from trueport.runtime.errors import (
    ClosedError,
    DeadlineError,
    ImageError,
    InvalidRequestError,
    MissingError,
    OutputError,
    OverloadedError,
    RequestError,
    StuckError,
    UsageError,
)
from trueport.runtime.manifest import Manifest
from trueport.runtime.server import Access, App, ServerLimits, token_from_file
from trueport.runtime.server.answers import UnknownError, UnsupportedError
from trueport.runtime.server.decoding import Decoder
from trueport.runtime.server.models import Models
from trueport.runtime.server.routes import Router
from trueport.runtime.server.statistics import REASONS, Tally

CLASSES = len(LABELS)
INFER = "/v2/models/digits/infer"
LENGTH = "Inference-Header-Content-Length"


@dataclass
class FakeBatcher:
    """The first pixels of a row are its logits, unless the batcher is told to fail."""

    failure: BaseException | None = None
    asked: list[tuple[float | None, int]] = field(default_factory=list)
    limits: BatchLimits = BatchLimits(max_batch_rows=8)  # noqa: RUF009 (frozen)

    async def asubmit(
        self, rows: NDArray[np.uint8], *, deadline_s: float | None = None, priority: int = 0
    ) -> dict[str, NDArray[Any]]:
        self.asked.append((deadline_s, priority))
        if self.failure is not None:
            raise self.failure
        assert rows.dtype == np.uint8
        assert rows.shape[1:] == SHAPE
        return {"logits": rows.reshape(len(rows), -1)[:, :CLASSES].astype(np.float32) / 2}

    def run_here(self, loop: asyncio.AbstractEventLoop) -> bool:
        return False

    def give_up(self, after_s: float) -> bool:
        return False

    def enqueue(
        self, rows: NDArray[np.uint8], receiver: Any, *, wake: bool = True, **options: Any
    ) -> asyncio.Task[Any]:
        def settle(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                return
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
        return BatcherStats(requests=len(self.asked), rows=len(self.asked), batches=1, queue_s=0.5, run_s=0.25)


@dataclass
class FakeSession:
    manifest: Manifest = field(default_factory=fake_manifest)
    batcher: FakeBatcher = field(default_factory=FakeBatcher)
    closed: bool = False

    def prepare(self, source: bytes) -> NDArray[np.uint8]:
        return preprocessing.prepare(source, self.manifest.preprocessing)

    def predictions(self, logits: NDArray[Any], top: int) -> list[Prediction]:
        best = np.argsort(-logits, axis=1)[:, :top]
        return [
            Prediction(tuple(Score(f"class {i}", int(i), float(row[i])) for i in order))
            for row, order in zip(logits, best, strict=True)
        ]

    def close(self, timeout_s: float | None = None) -> None: ...


def serving(*sessions: FakeSession, **limits: int) -> App:
    return App(cast("list[Session]", sessions), ServerLimits(**limits), gate=None)


@dataclass
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"}
        return str(self.json["error"])

    @property
    def tensors(self) -> tuple[Any, bytes]:
        """The JSON and what follows it."""
        size = int(self.headers["inference-header-content-length"])
        return json.loads(self.body[:size]), self.body[size:]


async def acall(
    app: App,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    query: bytes = b"",
    root_path: str = "",
) -> Response:
    chunks = [body] if isinstance(body, bytes) else list(body)
    incoming: Iterator[dict[str, Any]] = iter(
        [{"type": "http.request", "body": chunk, "more_body": i + 1 < len(chunks)} for i, chunk in enumerate(chunks)]
    )
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        for message in incoming:
            return message
        await asyncio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    given = {"content-length": str(len(chunks[0]))} if isinstance(body, bytes) else {}
    scope = {
        "type": "http",
        "method": method,
        "path": root_path + path,
        "root_path": root_path,
        "query_string": query,
        "headers": [
            (name.lower().encode(), value.encode("latin1")) for name, value in (given | dict(headers or {})).items()
        ],
    }
    await app(scope, receive, send)
    start, end = sent
    answered = {name.decode(): value.decode() for name, value in start["headers"]}
    assert int(answered["content-length"]) == len(end["body"])
    return Response(start["status"], answered, end["body"])


def call(app: App, *arguments: Any, **options: Any) -> Response:
    return asyncio.run(acall(app, *arguments, **options))


def pixels(rows: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(rows).integers(0, 256, (rows, *SHAPE), np.uint8)


def binary_request(rows: NDArray[np.uint8], **extra: Any) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "image",
        "datatype": "UINT8",
        "shape": rows.shape,
        "parameters": {"binary_data_size": rows.nbytes},
    }
    head = json.dumps({"inputs": [tensor]} | extra).encode()
    return head + rows.tobytes(), {LENGTH: str(len(head))}


def json_request(rows: NDArray[np.uint8], data: Any = None, **tensor: Any) -> bytes:
    values = rows.ravel().tolist() if data is None else data
    described = {"name": "image", "datatype": "UINT8", "shape": rows.shape, "data": values} | tensor
    return json.dumps({"inputs": [described]}).encode()


def picture(rows: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rows[0, :, :, 0]).save(stream, kind)
    return stream.getvalue()


def bytes_request(*elements: bytes, shape: list[int] | None = None) -> tuple[bytes, dict[str, str]]:
    data = b"".join(len(each).to_bytes(4, "little") + each for each in elements)
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": shape or [len(elements)],
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + data, {LENGTH: str(len(head))}


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def app(session: FakeSession) -> Iterator[App]:
    app = serving(session)
    yield app
    app.close()


def test_health_is_200_and_says_what_it_means(app: App) -> None:
    """KServe's client reads the body, others look at the status."""
    ready = {"name": "digits", "ready": True}
    for path, told in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/digits/ready", ready),
        ("/v2/models/digits/versions/1/ready", ready),
    ):
        response = call(app, "GET", path)
        assert (response.status, response.headers["content-type"]) == (200, "application/json"), path
        assert response.json == told, path
    assert call(app, "HEAD", "/v2/health/live").status == 200


def test_server_metadata_lists_its_extensions(app: App) -> None:
    answer = call(app, "GET", "/v2").json
    assert answer["name"] == "trueport"
    assert {"binary_tensor_data", "classification"} <= set(answer["extensions"])


@pytest.mark.parametrize("base", ["/v2/models/digits", "/v2/models/digits/versions/1"])
def test_model_metadata_and_config_state_the_tensors(app: App, base: str) -> None:
    metadata = call(app, "GET", base).json
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 4, 5, 1]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]}]
    config = call(app, "GET", f"{base}/config").json
    assert config["max_batch_size"] == 8
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [4, 5, 1]}]


def test_binary_tensors_there_and_back(app: App) -> None:
    rows = pixels(3)
    body, headers = binary_request(rows, id="a/7", parameters={"binary_data_output": True})
    for _ in range(2):  # the second time its JSON is known
        response = call(app, "POST", INFER, body, headers)
        assert response.status == 200
        head, data = response.tensors
        assert (head["id"], head["model_name"], head["model_version"]) == ("a/7", "digits", "1")
        (output,) = head["outputs"]
        assert (output["shape"], output["datatype"]) == ([3, CLASSES], "FP32")
        assert output["parameters"]["binary_data_size"] == len(data)
        np.testing.assert_array_equal(np.frombuffer(data, np.float32).reshape(3, -1), rows.reshape(3, -1)[:, :3] / 2)


def test_answers_that_begin_alike_are_told_apart_by_id_and_rows(app: App) -> None:
    for _ in range(2):  # the second time each beginning is known
        for name, count in (("a", 1), ("b", 1), ("a", 2), ("", 1), ("a" * 500, 1)):
            rows = pixels(count)
            body, headers = binary_request(rows, id=name, parameters={"binary_data_output": True})
            head, data = call(app, "POST", INFER, body, headers).tensors
            assert head.get("id", "") == name
            assert head["outputs"][0]["shape"] == [count, CLASSES]
            np.testing.assert_array_equal(np.frombuffer(data, np.float32), (rows.reshape(count, -1)[:, :3] / 2).ravel())


def test_known_json_goes_with_other_pixels(app: App) -> None:
    for value in (1, 2):
        body, headers = binary_request(np.full((1, *SHAPE), value, np.uint8))
        assert call(app, "POST", INFER, body, headers).json["outputs"][0]["data"] == [value / 2] * CLASSES


@pytest.mark.parametrize("nested", [False, True])
def test_json_tensors_there_and_back(app: App, nested: bool) -> None:
    rows = pixels(2)
    body = json_request(rows, rows.tolist() if nested else None)
    response = call(app, "POST", INFER, json.dumps(json.loads(body), indent=8).encode() if nested else body)
    assert response.headers["content-type"] == "application/json"
    (output,) = response.json["outputs"]
    assert output["data"] == (rows.reshape(2, -1)[:, :CLASSES] / 2).ravel().tolist()
    assert "id" not in response.json


def test_an_outputs_own_flag_overrides_the_requests(app: App) -> None:
    wanted = [{"name": "logits", "parameters": {"binary_data": False}}]
    body, headers = binary_request(pixels(1), outputs=wanted, parameters={"binary_data_output": True})
    assert "data" in call(app, "POST", INFER, body, headers).json["outputs"][0]


def test_header_length_zero_is_one_raw_row(app: App) -> None:
    rows = pixels(1)
    head, data = call(app, "POST", INFER, rows.tobytes(), {LENGTH: "0"}).tensors
    assert head["outputs"][0]["shape"] == [1, CLASSES]
    np.testing.assert_array_equal(np.frombuffer(data, np.float32), rows.ravel()[:CLASSES] / 2)
    assert f"{ROW_BYTES} bytes" in call(app, "POST", INFER, rows.tobytes()[1:], {LENGTH: "0"}).error


@pytest.mark.parametrize("binary", [False, True])
def test_classification_is_value_index_label_best_first(app: App, binary: bool) -> None:
    rows = np.zeros((2, *SHAPE), np.uint8)
    rows.reshape(2, -1)[:, :CLASSES] = [[1, 5, 3], [7, 7, 0]]
    wanted = [{"name": "logits", "parameters": {"binary_data": binary, "classification": 2}}]
    body, headers = binary_request(rows, outputs=wanted)
    response = call(app, "POST", INFER, body, headers)
    expected = ["2.5:1:one", "1.5:2:two", "3.5:0:zero", "3.5:1:one"]
    if binary:
        head, data = response.tensors
        assert data == b"".join(len(text).to_bytes(4, "little") + text.encode() for text in expected)
    else:
        head = response.json
        assert head["outputs"][0]["data"] == expected
    assert (head["outputs"][0]["datatype"], head["outputs"][0]["shape"]) == ("BYTES", [2, 2])


def test_more_classes_than_there_are_gives_all(app: App) -> None:
    body, headers = binary_request(pixels(1), outputs=[{"name": "logits", "parameters": {"classification": 10**9}}])
    assert call(app, "POST", INFER, body, headers).json["outputs"][0]["shape"] == [1, CLASSES]


@pytest.mark.parametrize("column", [False, True])
def test_bytes_are_encoded_pictures(app: App, column: bool) -> None:
    rows = pixels(2)
    elements = [picture(rows[:1]), picture(rows[1:])]
    body, headers = bytes_request(*elements, shape=[2, 1] if column else [2])
    data = call(app, "POST", INFER, body, headers).json["outputs"][0]["data"]
    assert data == (rows.reshape(2, -1)[:, :CLASSES] / 2).ravel().tolist()


def test_the_picture_that_can_not_be_decoded_is_named(app: App) -> None:
    body, headers = bytes_request(picture(pixels(1)), b"no picture")
    response = call(app, "POST", INFER, body, headers)
    assert response.status == 400
    assert response.error.startswith("picture 2 of 2: ")


def test_priority_and_timeout_reach_the_batcher(app: App, session: FakeSession) -> None:
    for parameters in ({}, {"priority": 1, "timeout": 1500}, {"priority": 101}, {"priority": 10**12}):
        body, headers = binary_request(pixels(1), parameters=parameters)
        assert call(app, "POST", INFER, body, headers).status == 200
    deadlines, priorities = zip(*session.batcher.asked, strict=True)
    assert deadlines == (None, pytest.approx(0.0015), None, None)
    assert priorities[0] == 0
    assert priorities[1] > priorities[0] > priorities[2] > priorities[3]


def test_decoding_counts_towards_the_timeout(app: App, session: FakeSession) -> None:
    body, headers = bytes_request(picture(pixels(1)))
    size = int(headers[LENGTH])
    head = json.loads(body[:size]) | {"parameters": {"timeout": 10_000_000}}
    text = json.dumps(head).encode()
    assert call(app, "POST", INFER, text + body[size:], {LENGTH: str(len(text))}).status == 200
    ((deadline_s, _),) = session.batcher.asked
    assert deadline_s is not None
    assert 0 < deadline_s < 10


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("path", ["/classify", "/v2/models/digits/classify", "/v2/models/digits/versions/1/classify"])
def test_classify_takes_the_bytes_of_a_picture(app: App, path: str, kind: str) -> None:
    rows = np.zeros((1, *SHAPE), np.uint8)
    rows[0, :, 1:] = 200
    response = call(app, "POST", path, picture(rows, kind), {"Content-Type": "image/x-whatever"}, query=b"top=2")
    assert response.status == 200
    assert response.json["model_name"] == "digits"
    predictions = response.json["predictions"]
    assert {each["index"] for each in predictions} == {1, 2}
    assert [each["label"] for each in predictions] == [f"class {each['index']}" for each in predictions]
    assert predictions[0]["score"] >= predictions[1]["score"]


@pytest.mark.parametrize(
    ("query", "body", "headers", "status", "expected"),
    [
        (b"top=0", None, {}, 400, "top has to be"),
        (b"top=five", None, {}, 400, "top has to be"),
        (b"top=", None, {}, 400, "top has to be"),
        (b"top=" + b"9" * 5000, None, {}, 400, "top has to be"),
        (b"", b"", {}, 400, "the body is empty"),
        (b"", b"GIF89a, or so", {}, 400, ""),
        (b"", None, {"Content-Type": "multipart/form-data; boundary=x"}, 400, "curl -F"),
        (b"", None, {"Content-Type": "multipart/mixed; boundary=x"}, 415, "form-data"),
        (b"", None, {"Content-Encoding": "gzip"}, 415, "uncompressed"),
    ],
)
def test_classify_refuses(
    app: App, query: bytes, body: bytes | None, headers: dict[str, str], status: int, expected: str
) -> None:
    response = call(app, "POST", "/classify", picture(pixels(1)) if body is None else body, headers, query=query)
    assert response.status == status
    assert expected in response.error


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (InvalidRequestError("no"), 400),
        (UsageError("no"), 400),
        (OverloadedError("full", 2.2), 503),
        (ClosedError("closed"), 503),
        (StuckError("stuck"), 503),
        (DeadlineError("late"), 504),
        (OutputError("NaN"), 500),
        (RequestError("the run was ended by SystemExit: secret"), 500),
        (RuntimeError("secret: /etc/shadow"), 500),
    ],
)
def test_every_error_has_its_status(app: App, session: FakeSession, failure: Exception, status: int) -> None:
    session.batcher.failure = failure
    body, headers = binary_request(pixels(1))
    response = call(app, "POST", INFER, body, headers)
    assert response.status == status
    assert response.error == (
        str(failure)
        if "secret" not in str(failure)
        else "the server failed to answer this request, the reason is in its log"
    )


def test_what_a_run_lacks_is_no_fault_of_the_request(app: App, session: FakeSession) -> None:
    session.batcher.failure = MissingError("CUDA refuses to run this")
    for path, (body, headers) in ((INFER, binary_request(pixels(1))), ("/classify", (picture(pixels(1)), {}))):
        response = call(app, "POST", path, body, headers)
        assert (response.status, "its log" in response.error) == (500, True), path


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OverloadedError("full", 1.0), "REJECTED"),
        (DeadlineError("late"), "REJECTED"),
        (ClosedError("closed"), "REJECTED"),
        (asyncio.CancelledError(), "CANCELED"),
        (OutputError("NaN"), "BACKEND"),
        (StuckError("it does not end"), "BACKEND"),
        (RequestError("output 'logits' has 3 rows, expected the 2 that were run"), "BACKEND"),
        (MissingError("CUDA refuses"), "BACKEND"),
        (RuntimeError("x"), "BACKEND"),
        (InvalidRequestError("no"), "OTHER"),
        (ImageError("no picture"), "OTHER"),
        (UnknownError("no such model"), "OTHER"),
        (UnsupportedError("compressed"), "OTHER"),
        (UsageError("no"), "OTHER"),
    ],
)
def test_every_failure_has_its_reason(error: BaseException, reason: str) -> None:
    tally = Tally()
    tally.failed(error, 0.5)
    assert {name for name, count in tally.failures.items() if count} == {reason}


@pytest.mark.parametrize(
    ("wait_s", "seconds"),
    [(0.0, "1"), (0.2, "1"), (1.0, "1"), (2.2, "3"), (float("inf"), "3600"), (float("nan"), "3600")],
)
def test_overload_says_when_to_come_back(app: App, session: FakeSession, wait_s: float, seconds: str) -> None:
    session.batcher.failure = OverloadedError("full", wait_s)
    body, headers = binary_request(pixels(1))
    assert call(app, "POST", INFER, body, headers).headers["retry-after"] == seconds


def test_an_unexpected_failure_is_logged_with_its_cause(
    app: App, session: FakeSession, caplog: pytest.LogCaptureFixture
) -> None:
    session.batcher.failure = RuntimeError("the secret cause")
    body, headers = binary_request(pixels(1))
    call(app, "POST", INFER, body, headers)
    assert "the secret cause" in caplog.text


def test_a_closed_session_is_no_longer_ready(app: App, session: FakeSession) -> None:
    session.closed = True
    assert call(app, "GET", "/v2/models/digits/ready").status == 400
    assert call(app, "GET", "/v2/health/ready").status == 400
    assert call(app, "GET", "/v2/health/live").status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "expected"),
    [
        ("GET", "/v2/models/digit", 404, "did you mean digits"),
        ("POST", "/v2/models/digit/infer", 404, "did you mean digits"),
        ("GET", "/v2/models/digit/ready", 400, "did you mean digits"),
        ("GET", "/v2/models/digits/versions/7", 404, "unknown version of digits '7'"),
        ("POST", "/v2/models/digits/versions/7/infer", 404, "known: 1"),
        ("GET", "/v2/models/digits/versions/7/ready", 400, "known: 1"),
        ("GET", "/v2/models/digits/statistics", 404, "there is nothing at"),
        ("GET", "/v2/models/digit/stats", 404, "did you mean digits"),
        ("GET", "/v2/models/digits/", 404, "there is nothing at"),
        ("GET", "/nothing", 404, "there is nothing at"),
        ("GET", "", 404, "there is nothing at"),
        ("GET", "/v2/models/" + "x" * 10**5, 404, "unknown model"),
    ],
)
def test_unknown_names_and_paths(app: App, method: str, path: str, status: int, expected: str) -> None:
    response = call(app, method, path)
    assert response.status == status
    assert expected in response.error
    assert len(response.body) < 500


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", INFER, "POST"),
        ("PUT", "/classify", "POST"),
        ("POST", "/v2", "GET, HEAD"),
        ("DELETE", "/v2/models/digits", "GET, HEAD"),
        ("POST", "/v2/health/live", "GET, HEAD"),
    ],
)
def test_another_method_is_405_with_allow(app: App, method: str, path: str, allow: str) -> None:
    response = call(app, method, path)
    assert (response.status, response.headers["allow"]) == (405, allow)
    assert method in response.error


@pytest.mark.parametrize("path", ["/v2/models/digits/stats", "/v2/models/digits/versions/1/stats", "/v2/models/stats"])
def test_statistics_have_every_field_of_the_extension(app: App, path: str) -> None:
    body, headers = binary_request(pixels(1))
    assert call(app, "POST", INFER, body, headers).status == 200
    assert call(app, "POST", INFER, b"{").status == 400
    (model,) = call(app, "GET", path).json["model_stats"]
    assert (model["name"], model["version"]) == ("digits", "1")
    assert model["last_inference"] > 1.5e12
    assert (model["inference_count"], model["execution_count"]) == (1, 1)
    durations = model["inference_stats"]
    assert set(durations) == {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
    }  # fmt: skip
    assert durations["success"]["count"] == durations["fail"]["count"] == 1
    assert durations["success"]["ns"] > 0
    assert durations["queue"] == {"count": 1, "ns": 500_000_000}
    assert durations["compute_infer"] == {"count": 1, "ns": 250_000_000}
    # perf_analyzer ends with an error where these differ
    assert durations["compute_input"]["count"] == durations["compute_output"]["count"] == 1


def test_metrics_are_prometheus_text(app: App, session: FakeSession) -> None:
    body, headers = binary_request(pixels(1))
    for failure in (None, None, OverloadedError("full", 1.0), OutputError("NaN"), RequestError("rows")):
        session.batcher.failure = failure
        call(app, "POST", INFER, body, headers)
    response = call(app, "GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.body.decode().splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    model = 'model="digits",version="1"'
    assert samples[f"nv_inference_request_success{{{model}}}"] == "2"
    failures = {reason: samples[f'nv_inference_request_failure{{{model},reason="{reason}"}}'] for reason in REASONS}
    assert failures == {"REJECTED": "1", "CANCELED": "0", "BACKEND": "2", "OTHER": "0"}
    assert samples[f"nv_inference_queue_duration_us{{{model}}}"] == "500000"
    assert samples[f"nv_inference_compute_infer_duration_us{{{model}}}"] == "250000"
    assert float(samples[f"nv_inference_request_duration_us{{{model}}}"]) > 0
    assert samples[f"nv_inference_pending_request_count{{{model}}}"] == "0"
    histogram = f"trueport_request_duration_seconds_bucket{{{model},le="
    counts = [int(value) for name, value in samples.items() if name.startswith(histogram)]
    assert counts == sorted(counts)
    assert counts[-1] == int(samples[f"trueport_request_duration_seconds_count{{{model}}}"]) == 2
    assert list(samples)[list(samples).index(f'{histogram}"+Inf"}}') - 1] == f'{histogram}"10.0"}}'
    for name in {name.split("{")[0] for name in samples}:
        family = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        assert any(line.startswith((f"# TYPE {name} ", f"# TYPE {family} ")) for line in lines), name


def test_a_duration_falls_into_the_bucket_whose_bound_it_does_not_exceed() -> None:
    tally = Tally()
    for seconds in (0.0, 0.0001, 0.00011, 10.0, 10.1):
        tally.succeeded(seconds)
    assert (tally.buckets[0], tally.buckets[1], tally.buckets[-2], tally.buckets[-1]) == (2, 1, 1, 1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Basic s3cret"}, 401),
        ({"Authorization": "s3cret"}, 401),
        ({"X-Api-Key": ""}, 401),
        ({"X-Api-Key": "s3cret\u00e9"}, 401),
        ({"Authorization": "Bearer s3cret"}, 200),
        ({"Authorization": "bearer  s3cret "}, 200),
        ({"X-Api-Key": "s3cret"}, 200),
    ],
)
def test_every_route_asks_for_the_token(session: FakeSession, headers: dict[str, str], status: int) -> None:
    app = App(cast("list[Session]", [session]), access=Access("s3cret"), gate=None)
    body, tensors = binary_request(pixels(1))
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/digits", "/metrics"):
        assert call(app, "GET", path, headers=headers).status == status
    assert call(app, "POST", INFER, body, tensors | headers).status == status
    assert call(app, "GET", "/nothing", headers=headers).status == (404 if status == 200 else 401)
    app.close()


def test_health_may_be_open(session: FakeSession) -> None:
    app = App(cast("list[Session]", [session]), access=Access("s3cret", open_health=True), gate=None)
    statuses = {path: call(app, "GET", path).status for path in ("/v2/health/live", "/v2/health/ready", "/v2")}
    assert statuses == {"/v2/health/live": 200, "/v2/health/ready": 200, "/v2": 401}
    app.close()


@pytest.mark.parametrize("token", ["", "two words", "line\nend", "caf\u00e9", "x" * 2000])
def test_a_token_that_no_header_can_hold_is_refused(token: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="token"):
        Access(token)


def test_a_token_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    assert token_from_file(file) == "s3cret"
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="can't read the token"):
            token_from_file(wrong)


def test_a_request_id_is_echoed(app: App) -> None:
    assert call(app, "GET", "/v2", headers={"X-Request-Id": "mine"}).headers["x-request-id"] == "mine"
    made = {call(app, "GET", "/nothing").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3


def test_an_answer_nobody_waits_for_leaves_the_queue(app: App, session: FakeSession) -> None:
    body, headers = binary_request(pixels(1))
    never = asyncio.Event()
    ended: list[str] = []

    async def waiting(*_: Any, **__: Any) -> dict[str, NDArray[Any]]:
        try:
            await never.wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return {}

    session.batcher.asubmit = waiting  # type: ignore[method-assign]

    async def leave() -> None:
        task = asyncio.create_task(acall(app, "POST", INFER, body, headers))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert ended == ["cancelled"]


ROWS = pixels(2)
TENSOR = {"name": "image", "datatype": "UINT8", "shape": [2, *SHAPE], "data": ROWS.ravel().tolist()}
MALFORMED: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "not an inference request"),
    "empty": (b"", "not an inference request"),
    "a list": ([], "Expected `object`"),
    "no inputs": ({}, "missing required field `inputs`"),
    "two inputs": ({"inputs": [TENSOR, TENSOR]}, "takes one input"),
    "no input": ({"inputs": []}, "takes one input"),
    "another name": ({"inputs": [TENSOR | {"name": "x" * 10**6}]}, "takes one input, 'image'"),
    "datatype": ({"inputs": [TENSOR | {"datatype": "FP32"}]}, "'FP32', expected UINT8"),
    "shape": ({"inputs": [TENSOR | {"shape": [2, 5, 4, 1]}]}, "expected [N, 4, 5, 1]"),
    "rank": ({"inputs": [TENSOR | {"shape": [2]}]}, "expected [N, 4, 5, 1]"),
    "endless rank": ({"inputs": [TENSOR | {"shape": [1] * 10**5}]}, "expected [N, 4, 5, 1]"),
    "no rows": ({"inputs": [TENSOR | {"shape": [0, *SHAPE], "data": []}]}, "1 to 8 rows"),
    "negative rows": ({"inputs": [TENSOR | {"shape": [-1, *SHAPE]}]}, "1 to 8 rows"),
    "too many rows": ({"inputs": [TENSOR | {"shape": [9, *SHAPE]}]}, "1 to 8 rows a request, found 9"),
    "huge rows": ({"inputs": [TENSOR | {"shape": [2**64, *SHAPE]}]}, "1 to 8 rows"),
    "fractional rows": ({"inputs": [TENSOR | {"shape": [2.5, *SHAPE]}]}, "Expected `int`"),
    "too little data": ({"inputs": [TENSOR | {"data": [1, 2]}]}, "has 2 values in data"),
    "too much data": ({"inputs": [TENSOR | {"data": [1] * 41}]}, "has 41 values in data"),
    "above 255": ({"inputs": [TENSOR | {"data": [256] * 40}]}, "whole numbers from 0 to 255"),
    "negative": ({"inputs": [TENSOR | {"data": [-1] * 40}]}, "whole numbers from 0 to 255"),
    "fraction": ({"inputs": [TENSOR | {"data": [0.5] * 40}]}, "whole numbers from 0 to 255"),
    "truth": ({"inputs": [TENSOR | {"data": [True] * 40}]}, "whole numbers from 0 to 255"),
    "text": ({"inputs": [TENSOR | {"data": "pixels"}]}, "whole numbers from 0 to 255"),
    "null": ({"inputs": [TENSOR | {"data": None}]}, "whole numbers from 0 to 255"),
    "ragged": ({"inputs": [TENSOR | {"data": [[[[1]], [[2], [3]]]]}]}, "differ in length"),
    "nested otherwise": (
        {"inputs": [TENSOR | {"data": ROWS.transpose(0, 2, 1, 3).tolist()}]},
        "nested as [2, 5, 4, 1]",
    ),
    "nested too little": ({"inputs": [TENSOR | {"data": [[1] * 40]}]}, "whole numbers from 0 to 255"),
    "no data": ({"inputs": [{k: v for k, v in TENSOR.items() if k != "data"}]}, "either data or binary_data_size"),
    "data and size": ({"inputs": [TENSOR | {"parameters": {"binary_data_size": 40}}]}, "and not both"),
    "negative size": ({"inputs": [TENSOR | {"parameters": {"binary_data_size": -1}}]}, ">= 0"),
    "shared memory": ({"inputs": [TENSOR | {"parameters": {"shared_memory_region": "x"}}]}, "shared memory"),
    "BYTES as JSON": ({"inputs": [TENSOR | {"datatype": "BYTES", "shape": [1], "data": ["x"]}]}, "as binary data"),
    "unknown output": ({"inputs": [TENSOR], "outputs": [{"name": "boxes"}]}, "no output 'boxes'"),
    "output twice": ({"inputs": [TENSOR], "outputs": [{"name": "logits"}] * 2}, "asked for twice"),
    "shared output": (
        {"inputs": [TENSOR], "outputs": [{"name": "logits", "parameters": {"shared_memory_region": "x"}}]},
        "shared memory",
    ),
    "classes": ({"inputs": [TENSOR], "outputs": [{"name": "logits", "parameters": {"classification": -1}}]}, ">= 0"),
    "priority": ({"inputs": [TENSOR], "parameters": {"priority": "high"}}, "Expected `int`"),
    "timeout": ({"inputs": [TENSOR], "parameters": {"timeout": 2**63}}, "Expected `int`"),
    "id": ({"inputs": [TENSOR], "id": 7}, "Expected `str`"),
    "bad UTF-8": (b'{"inputs": [], "id": "\xff"}', "not an inference request"),
    "deep": (b'{"inputs":' + b"[" * 10**5 + b"]" * 10**5 + b"}", "not an inference request"),
    "deep and unknown": (b'{"x":' + b"[" * 10**5 + b"]" * 10**5 + b',"inputs":[]}', "not an inference request"),
    "endless digits": (b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[' + b"9" * 10**5 + b"]}]}", ""),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_json_is_400_with_a_sentence(app: App, name: str) -> None:
    value, expected = MALFORMED[name]
    response = call(app, "POST", INFER, value if isinstance(value, bytes) else json.dumps(value).encode())
    assert response.status == 400
    assert expected in response.error
    assert len(response.error) < 500


@pytest.mark.parametrize("length", ["abc", "", "-1", "+1", " 1", "1_0", "0x10", "1e3", "9" * 5000, "99999", "²"])
def test_header_length_must_be_a_decimal_within_the_body(app: App, length: str) -> None:
    body, _ = binary_request(pixels(1))
    response = call(app, "POST", INFER, body, {LENGTH: length})
    assert response.status == 400
    assert LENGTH in response.error


def test_binary_size_shape_and_body_have_to_agree(app: App) -> None:
    body, headers = binary_request(pixels(2))
    for wrong in (body[:-1], body + b"\0"):
        response = call(app, "POST", INFER, wrong, headers)
        assert response.status == 400
        assert "follow the JSON" in response.error
    text = body[: int(headers[LENGTH])].replace(b"[2, 4", b"[3, 4")
    response = call(app, "POST", INFER, text + body[len(text) :], headers)
    assert "has 60 bytes, found 40" in response.error
    response = call(app, "POST", INFER, body[: int(headers[LENGTH])])
    assert "but 0 bytes follow" in response.error


@pytest.mark.parametrize(
    "data", [b"", b"\1", b"\1\0\0\0", b"\xff\xff\xff\xffab", b"\0\0\0\0" * 3, b"\1\0\0\0a" + b"\1\0\0\0b" + b"\0"]
)
def test_elements_that_do_not_fill_the_tensor_are_refused(app: App, data: bytes) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    response = call(app, "POST", INFER, head + data, {LENGTH: str(len(head))})
    assert response.status == 400
    assert "are not 2 elements" in response.error


def test_a_compressed_request_is_415(app: App) -> None:
    body, headers = binary_request(pixels(1))
    assert call(app, "POST", INFER, body, headers | {"Content-Encoding": "gzip"}).status == 415
    assert call(app, "POST", INFER, body, headers | {"Content-Encoding": "Identity"}).status == 200


def test_a_body_in_pieces_is_put_together(app: App) -> None:
    body, headers = binary_request(pixels(2))
    whole = call(app, "POST", INFER, body, headers)
    pieces = call(app, "POST", INFER, [body[:7], b"", body[7:90], body[90:]], headers)
    assert (pieces.status, pieces.body) == (200, whole.body)


def test_a_body_that_is_too_large_is_413(session: FakeSession) -> None:
    app = serving(session, max_body_bytes=1000, max_json_bytes=500)
    declared = call(app, "POST", INFER, b"x" * 1001)
    assert declared.status == 413
    assert "connection" not in declared.headers  # what is left of the body has a known end
    assert call(app, "POST", INFER, [b""], {"content-length": "9" * 5000}).status == 413
    assert call(app, "POST", INFER, [b"x" * 600, b"x" * 600, b"x" * 10**6]).headers["connection"] == "close"
    assert call(app, "POST", INFER, [b""], {"content-length": "2000", "expect": "100-continue"}).headers["connection"]
    response = call(app, "POST", INFER, b" " * 600)
    assert (response.status, "at most 500" in response.error) == (400, True)


def test_a_client_that_goes_away_gets_no_answer(app: App) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http", "method": "POST", "path": INFER, "headers": []}, receive, send))
    assert sent == []


async def second_while_first(app: App, session: FakeSession, request: Any) -> list[Response]:
    """The answers to two equal requests, of which the first waits for the second to be answered."""
    go, prepare = threading.Event(), session.prepare

    def gated(source: bytes) -> NDArray[np.uint8]:
        assert go.wait(30)
        return prepare(source)

    session.prepare = gated  # type: ignore[method-assign]
    first = asyncio.create_task(acall(app, "POST", INFER, *request))
    await asyncio.sleep(0)
    second = await acall(app, "POST", INFER, *request)
    go.set()
    session.prepare = prepare  # type: ignore[method-assign]
    return [await first, second]


def test_too_many_waiting_pictures_are_refused(session: FakeSession) -> None:
    app = serving(session, max_waiting_pictures=3)
    body, headers = bytes_request(*[picture(pixels(1))] * 2)
    responses = asyncio.run(second_while_first(app, session, (body, headers)))
    assert [response.status for response in responses] == [200, 503]
    assert call(app, "POST", INFER, body, headers).status == 200  # both have left


def test_the_bytes_of_waiting_pictures_are_bounded_too(session: FakeSession) -> None:
    encoded = picture(pixels(1))
    app = serving(session, max_waiting_picture_bytes=3 * len(encoded))
    body, headers = bytes_request(encoded, encoded)

    for _ in range(2):  # the second time the first ones have left
        one, other = asyncio.run(second_while_first(app, session, (body, headers)))
        assert (one.status, other.status) == (200, 503)
        assert "MiB wait to be decoded" in other.error


class Gate:
    """Threads that decode, and a first picture that holds one until `go` is set."""

    def __init__(self, threads: int = 1) -> None:
        self.decoder = Decoder(ServerLimits(), threads)
        self.go = threading.Event()
        self.decoded: list[bytes] = []

    def prepare(self, source: bytes) -> NDArray[np.uint8]:
        self.decoded.append(source)
        assert source != b"first" or self.go.wait(30)
        return np.zeros(SHAPE, np.uint8)

    def begun(self, source: bytes, timeout_s: float | None = None) -> asyncio.Task[NDArray[np.uint8]]:
        return asyncio.get_running_loop().create_task(self.decoder.rows(self.prepare, [source], timeout_s))

    async def held(self) -> asyncio.Task[NDArray[np.uint8]]:
        first = self.begun(b"first")
        while not self.decoded:
            await asyncio.sleep(0.001)
        return first


def test_a_picture_whose_deadline_has_passed_is_not_decoded() -> None:
    async def scenario() -> list[bytes]:
        gate = Gate()
        first = await gate.held()
        late, patient = gate.begun(b"late", 0.1), gate.begun(b"patient", 60)
        await asyncio.sleep(0.2)
        gate.go.set()
        with pytest.raises(DeadlineError, match="passed before the picture was decoded"):
            await late
        assert (await patient).shape == (await first).shape == (1, *SHAPE)
        gate.decoder.close()
        return gate.decoded

    assert asyncio.run(scenario()) == [b"first", b"patient"]


def test_pictures_that_would_have_their_turn_too_late_are_refused_at_once() -> None:
    async def scenario() -> None:
        gate = Gate()
        alone = gate.decoder.rows(gate.prepare, [b"alone"], 1e-6)  # nothing waits: it is not refused for what may be
        with pytest.raises(DeadlineError):
            await alone
        first = await gate.held()
        gate.decoder._picture_s = 9.0
        with pytest.raises(OverloadedError, match=r"deadline is 4000 ms away .* begin in 9000 ms") as refused:
            await gate.begun(b"second", 4.0)
        assert refused.value.expected_wait_s == pytest.approx(5.0)
        second = gate.begun(b"second", 60.0)
        gate.go.set()
        await asyncio.gather(first, second)
        gate.decoder.close()

    asyncio.run(scenario())


def test_nobody_waits_while_a_thread_is_free() -> None:
    async def scenario() -> None:
        gate = Gate(threads=2)
        first = await gate.held()
        gate.decoder._picture_s = 9.0
        assert (await gate.begun(b"second", 4.0)).shape == (1, *SHAPE)
        gate.go.set()
        await first
        gate.decoder.close()

    asyncio.run(scenario())


class Encoded:
    """What a picture's bytes may be, and who holds them can be asked."""

    def __len__(self) -> int:
        return 1000


def test_a_picture_is_counted_for_as_long_as_its_bytes_are_held() -> None:
    async def scenario() -> None:
        gate = Gate()
        first = await gate.held()
        encoded = Encoded()
        gone, second = weakref.ref(encoded), gate.begun(cast("bytes", encoded))
        del encoded
        await asyncio.sleep(0)
        assert (gate.decoder._waiting, gate.decoder._waiting_bytes) == (2, 1005)
        for task in (first, second):
            task.cancel()
        await asyncio.wait([first, second])
        del second, task
        gc.collect()
        assert gone() is None, "nobody wants it any more"
        assert (gate.decoder._waiting, gate.decoder._waiting_bytes) == (1, 5), "the first one is still being decoded"
        gate.go.set()
        gate.decoder._pool.shutdown()
        assert (gate.decoder._waiting, gate.decoder._waiting_bytes) == (0, 0)

    asyncio.run(scenario())


def test_a_timeout_reaches_the_decoder(app: App, session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float | None] = []

    async def rows(self: Decoder, prepare: Any, pictures: Any, timeout_s: float | None = None) -> NDArray[np.uint8]:
        given.append(timeout_s)
        return pixels(len(pictures))

    monkeypatch.setattr(Decoder, "rows", rows)
    body, headers = bytes_request(picture(pixels(1)))
    size = int(headers[LENGTH])
    text = json.dumps(json.loads(body[:size]) | {"parameters": {"timeout": 2_000_000}}).encode()
    assert call(app, "POST", INFER, text + body[size:], {LENGTH: str(len(text))}).status == 200
    assert call(app, "POST", "/classify", picture(pixels(1))).status == 200
    assert given == [2.0, None]


def test_a_mounted_application_gives_up_a_run_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueport.runtime.server.app.LOOK_S", 0.02)
    go, session = threading.Event(), FakeSession()

    def run(rows: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        assert go.wait(30)
        return {"logits": rows.reshape(len(rows), -1)[:, :CLASSES].astype(np.float32)}

    batcher = Batcher(run)
    session.batcher = cast("FakeBatcher", batcher)
    app = App(cast("list[Session]", [session]), ServerLimits(run_s=0.1), gate=None)
    body, headers = binary_request(pixels(1))

    async def until(condition: Any) -> None:
        end_s = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end_s
            await asyncio.sleep(0.01)

    async def scenario() -> None:
        response = await asyncio.wait_for(acall(app, "POST", INFER, body, headers), 30)
        assert (response.status, "not come to the end of a run" in response.error) == (503, True)
        assert (await acall(app, "GET", "/v2/health/ready")).status == 400
        (endpoint,) = app._router.models
        go.set()
        await until(lambda: endpoint.ready)  # nobody asks meanwhile
        await until(lambda: app._lookout._timer is None)
        assert (await acall(app, "POST", INFER, body, headers)).status == 200
        assert app._lookout._timer is not None
        await app({"type": "lifespan"}, shutting_down, ignore)
        assert app._lookout._timer is None

    async def shutting_down() -> dict[str, Any]:
        return {"type": "lifespan.shutdown"}

    async def ignore(message: Any) -> None: ...

    try:
        asyncio.run(scenario())
    finally:
        go.set()
        batcher.close()


def test_pictures_that_come_after_the_end_are_answered_503(app: App) -> None:
    app.close()
    for path, (body, headers) in ((INFER, bytes_request(picture(pixels(1)))), ("/classify", (picture(pixels(1)), {}))):
        response = call(app, "POST", path, body, headers)
        assert (response.status, "closing" in response.error) == (503, True)


def test_pictures_that_wait_at_the_end_are_answered_503(session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread for each core that there is to use: those behind them are dropped by the end, and told so."""
    monkeypatch.setattr("trueport.runtime.server.decoding.available_cores", lambda: 3)
    app, begun, go = serving(session), threading.Semaphore(0), threading.Event()
    prepare = session.prepare

    def waiting(source: bytes) -> NDArray[np.uint8]:
        begun.release()
        go.wait(30)
        return prepare(source)

    session.prepare = waiting  # type: ignore[method-assign]

    async def ended() -> list[Response]:
        body = picture(pixels(1))
        asked = [asyncio.create_task(acall(app, "POST", "/classify", body)) for _ in range(5)]
        for _ in range(3):
            await asyncio.get_running_loop().run_in_executor(None, begun.acquire)
        app.close()
        go.set()
        return await asyncio.gather(*asked)

    statuses = sorted(response.status for response in asyncio.run(ended()))
    assert statuses == [200] * 3 + [503] * 2


def test_mounted_below_a_path(app: App) -> None:
    assert call(app, "GET", "/v2/health/live", root_path="/models").status == 200
    assert call(app, "GET", "/v2/models/digits", root_path="/models").json["name"] == "digits"


def test_several_models_and_versions() -> None:
    sessions = [FakeSession(fake_manifest(*each)) for each in (("digits", "1"), ("digits", "2"), ("plates", "1"))]
    app = serving(*sessions)
    assert call(app, "GET", "/v2/models/digits").json["versions"] == ["1", "2"]
    body, headers = binary_request(pixels(1))
    for path, expected in (("digits", "2"), ("digits/versions/1", "1"), ("digits/versions/2", "2"), ("plates", "1")):
        assert call(app, "POST", f"/v2/models/{path}/infer", body, headers).json["model_version"] == expected
    assert [len(each.batcher.asked) for each in sessions] == [1, 2, 1]
    response = call(app, "POST", "/classify", picture(pixels(1)))
    assert (response.status, "/v2/models/NAME/classify" in response.error) == (404, True)


@pytest.mark.parametrize(
    "sessions",
    [
        [],
        [FakeSession(), FakeSession()],
        [FakeSession(fake_manifest(version="a/b"))],
        [FakeSession(fake_manifest(version=""))],
        [FakeSession(fake_manifest("stats"))],
        [FakeSession(fake_manifest(row=(-1, -1, 3)))],
        [FakeSession(fake_manifest(row=(10,)))],
    ],
)
def test_what_can_not_be_served_is_refused_at_once(sessions: list[FakeSession]) -> None:
    with pytest.raises(UsageError):
        serving(*sessions)
    with pytest.raises(UsageError, match="max_json_bytes must be at least 1"):
        ServerLimits(max_json_bytes=0)


def test_where_no_model_is_loaded_classify_says_so() -> None:
    router = Router(Models(ServerLimits()), Access())
    with pytest.raises(UnknownError, match="no model is loaded"):
        router.route("POST", "/classify", {})
    router.close()


def test_lifespan_ends_readiness(app: App) -> None:
    incoming = iter(["lifespan.startup", "lifespan.shutdown"])
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return {"type": next(incoming)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    asyncio.run(app({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert call(app, "GET", "/v2/health/ready").status == 400


def test_mutated_requests_never_fail_the_server(app: App) -> None:
    """Seeded truncations and mutations of valid requests: 200 or a 4xx with a sentence, never a 5xx."""
    chance = random.Random(20)
    wanted = [{"name": "logits", "parameters": {"binary_data": True, "classification": 2}}]
    seeds = [
        binary_request(pixels(2), id="7", outputs=wanted, parameters={"timeout": 10**9, "priority": 3}),
        bytes_request(picture(pixels(1)), picture(pixels(1))),
        (json_request(pixels(1), pixels(1).tolist()), {}),
    ]
    cases = [(body[:cut], headers) for body, headers in seeds for cut in range(0, len(body), 3)]
    for _ in range(1500):
        body, headers = chance.choice(seeds)
        length = headers.get(LENGTH)
        if length is not None and chance.random() < 0.3:
            headers = {LENGTH: str(chance.randrange(len(body) + 5))}
        cases.append((mutated(chance, body, int(length or len(body))), headers))

    async def every() -> list[Response]:
        return [await acall(app, "POST", INFER, body, headers) for body, headers in cases]

    seen: set[int] = set()
    for (body, headers), response in zip(cases, asyncio.run(every()), strict=True):
        seen.add(response.status)
        assert response.status == 200 or 400 <= response.status < 500, (body, headers, response)
        assert response.status == 200 or response.error
    assert seen == {200, 400}


def mutated(chance: random.Random, body: bytes, head: int) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(head if chance.random() < 0.8 else max(1, len(changed)))
        place = min(place, max(0, len(changed) - 1))
        match chance.randrange(5):
            case 0:
                changed[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del changed[place : place + chance.randint(1, 9)]
            case 2:
                changed[place:place] = changed[place : place + chance.randint(1, 30)]
            case 3:
                changed[place:place] = chance.choice(
                    [b"null", b"-1", b"1e999", b"99999999999999999999", b'"', b"[", b"}"]
                )
            case _:
                changed[place : place + 1] = chance.choice(b'0123456789"[]{},:').to_bytes(1, "little")
    return bytes(changed)
