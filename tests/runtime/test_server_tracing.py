"""W3C Trace Context read strictly, and OpenTelemetry's spans by its own exporter in memory."""

from __future__ import annotations

import asyncio
import http.client
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from trueport.runtime import Session
from trueport.runtime.server import App
from trueport.runtime.server.tracing import Tracing, traceparent, tracing
from trueport.runtime.server.watched import Seen

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{PARENT}-01"
INFER = "/v2/models/digits/infer"
BINARY = {"Inference-Header-Content-Length": "0"}
ROW = bytes(64)


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (GOOD, True),
        (f"00-{TRACE}-{PARENT}-00", False),
        (f"cc-{TRACE}-{PARENT}-03", True),
        (f"01-{GOOD[3:]}-more", True),
    ],
)
def test_a_good_traceparent_is_read(value: str, sampled: bool) -> None:
    assert traceparent({b"traceparent": value.encode()}) == (TRACE, PARENT, sampled)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "00",
        GOOD.upper(),
        f"ff{GOOD[2:]}",
        f"{GOOD}-more",
        f"{GOOD}-",
        f"{GOOD}\n",
        f" {GOOD}",
        f"{GOOD}, {GOOD}",
        f"01{GOOD[2:]}more",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-1",
        f"00-{TRACE}-{PARENT}-0x",
        f"00-{TRACE[:-1]}g-{PARENT}-01",
        f"0-{TRACE}-{PARENT}-01",
    ],
)
def test_a_malformed_traceparent_is_ignored(value: str) -> None:
    assert traceparent({b"traceparent": value.encode()}) is None
    assert traceparent({}) is None


def test_nothing_is_imported_for_it() -> None:
    code = (
        "import sys; from trueport.runtime.server import serve; from trueport.runtime.server.tracing import tracing;"
        "assert tracing() is None; assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class Spans:
    """Every span that was made, by OpenTelemetry's SDK."""

    def __init__(self) -> None:
        export = pytest.importorskip("opentelemetry.sdk.trace.export")
        memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        self.trace = pytest.importorskip("opentelemetry.trace")
        self._exporter = memory.InMemorySpanExporter()
        self.provider = sdk.TracerProvider()
        self.provider.add_span_processor(export.SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("trueport")
        self.tracing = Tracing(self.trace, self.tracer)

    def made(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.provider.shutdown()


def test_without_a_provider_there_is_no_tracing() -> None:
    pytest.importorskip("opentelemetry.trace")
    assert tracing() is None


def test_with_a_provider_there_is(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans.trace, "get_tracer_provider", lambda: spans.provider)
    assert isinstance(tracing(), Tracing)
    monkeypatch.setattr(spans.trace, "get_tracer_provider", spans.trace.NoOpTracerProvider)
    assert tracing() is None


def asked(
    running: Any, session: Session, watch: Any, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
) -> int:
    with running([session], watch=watch) as address:
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request(method, path, body or None, dict(headers))
        response = connection.getresponse()
        response.read()
        assert "server-timing" not in response.headers
        connection.close()
    return response.status


def test_a_request_is_one_server_span_below_the_callers(
    running: Any, session_of: Callable[..., Session], spans: Spans
) -> None:
    headers = BINARY | {"traceparent": GOOD, "tracestate": "vendor=1", "User-Agent": "tests", "X-Request-Id": "r-1"}
    with session_of() as session:
        assert asked(running, session, spans.tracing, "POST", f"{INFER}?x=1", headers, ROW) == 200
    (span,) = spans.made()
    assert span.name == "POST /v2/models/{model}/infer"
    assert span.kind is spans.trace.SpanKind.SERVER
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.parent.is_remote
    assert span.context.trace_state.get("vendor") == "1"
    assert span.end_time > span.start_time
    said = dict(span.attributes)
    times = [said.pop(f"trueport.{name}_s") for name in ("decode", "queue", "compute")]
    assert times[0] == 0
    assert min(times) >= 0
    assert times[2] > 0
    assert said == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "http.route": "/v2/models/{model}/infer",
        "network.protocol.version": "1.1",
        "trueport.batch_rows": 1,
        "trueport.model": "digits",
        "trueport.model_version": "1",
        "trueport.request_id": "r-1",
        "url.path": INFER,
        "url.query": "x=1",
        "url.scheme": "http",
        "user_agent.original": "tests",
    }
    assert span.status.is_ok
    assert span.status.status_code is spans.trace.StatusCode.UNSET


def test_without_a_good_traceparent_a_span_begins_a_trace(
    running: Any, session_of: Callable[..., Session], spans: Spans
) -> None:
    with session_of() as session:
        assert asked(running, session, spans.tracing, "GET", "/v2", {"traceparent": GOOD.upper()}) == 200
    (span,) = spans.made()
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE


def test_what_the_caller_does_not_sample_is_not_recorded(
    running: Any, session_of: Callable[..., Session], spans: Spans
) -> None:
    with session_of() as session:
        asked(running, session, spans.tracing, "GET", "/v2", {"traceparent": f"{GOOD[:-2]}00"})
    assert spans.made() == []


def test_refusals_have_no_route_and_only_failures_are_errors(
    running: Any, session_of: Callable[..., Session], spans: Spans
) -> None:
    with session_of() as session:
        assert asked(running, session, spans.tracing, "BREW", "/v2/models/tea/infer", {}) == 404

        def fail(feeds: Any) -> Any:
            raise RuntimeError("no")

        session.runner.run = fail  # type: ignore[method-assign]
        assert asked(running, session, spans.tracing, "POST", INFER, BINARY, ROW) == 500
    refused, failed = spans.made()
    assert refused.name == "HTTP"
    assert refused.attributes["http.request.method"] == "_OTHER"
    assert refused.attributes["http.request.method_original"] == "BREW"
    assert "http.route" not in refused.attributes
    assert refused.status.status_code is spans.trace.StatusCode.UNSET
    assert failed.attributes["error.type"] == "500"
    assert failed.status.status_code is spans.trace.StatusCode.ERROR


def test_a_client_that_left_has_no_status(spans: Spans) -> None:
    spans.tracing(Seen("POST", INFER).end(b"r-1"))
    (span,) = spans.made()
    assert span.attributes["error.type"] == "client_left"
    assert "http.response.status_code" not in span.attributes


async def get(app: App, path: str, root: str = "") -> int:
    sent: list[Any] = []
    body = iter([{"type": "http.request", "body": ROW}])

    async def receive() -> dict[str, Any]:
        message = next(body, None)
        if message is None:
            await asyncio.Event().wait()
        return message or {}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": root + path, "root_path": root, "query_string": b""}
    headers = [(b"inference-header-content-length", b"0"), (b"traceparent", GOOD.encode())]
    await app(scope | {"headers": headers}, receive, send)
    return int(sent[0]["status"])


def test_a_mounted_application_joins_the_frameworks_span(
    session_of: Callable[..., Session], spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans.trace, "get_tracer_provider", lambda: spans.provider)

    async def under_a_span(app: App) -> int:
        with spans.tracer.start_as_current_span("the framework's"):
            return await get(app, INFER, "/models")

    with session_of() as session:
        app = App([session], gate=None)
        assert asyncio.run(under_a_span(app)) == 200
        assert asyncio.run(get(app, INFER, "/models")) == 200
        app.close()
    joined, own = spans.made()
    assert joined.name == "the framework's"
    assert joined.attributes["trueport.model"] == "digits"
    assert "http.route" not in joined.attributes
    assert own.name == "POST /v2/models/{model}/infer"
    assert own.attributes["url.path"] == f"/models{INFER}"
    assert f"{own.context.trace_id:032x}" == TRACE
    for span in (joined, own):
        assert span.attributes["trueport.batch_rows"] == 1
