"""The access log and the server's sentences: one line each whatever a client sends, in text and in JSON."""

from __future__ import annotations

import http.client
import io
import json
import logging
import queue
import re
import shlex
import socket
from collections.abc import Callable
from typing import Any

import pytest

from trueport.runtime import Session
from trueport.runtime.server import Access, Log, ServerLimits
from trueport.runtime.server.listening import Connections
from trueport.runtime.server.logs import LONGEST_PATH
from trueport.runtime.server.models import Models
from trueport.runtime.server.watched import CLIENT_LEFT, Seen

ROW = bytes(64)
INFER = "/v2/models/digits/infer"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ")
HOSTILE = "a\nb\r\x1b[31m\x9b2J\u2028\u202e\"' = \\ \x00 é \N{GRINNING FACE}"


@pytest.fixture
def ask(running: Any, session_of: Callable[..., Session]) -> Callable[..., list[Seen]]:
    """What was seen of requests, each (method, path, body, headers), on one connection."""

    def asked(*requests: Any, access: Access | None = None, limits: ServerLimits | None = None) -> list[Seen]:
        seen: list[Seen] = []
        session = session_of()
        try:
            with running([session], limits or ServerLimits(), access, watch=seen.append) as address:
                connection = http.client.HTTPConnection(address, timeout=30)
                for method, path, body, headers in requests:
                    connection.request(method, path, body, headers)
                    connection.getresponse().read()
                connection.close()
        finally:
            session.close()
        return seen

    return asked


def line(seen: Seen, as_json: bool = True) -> str:
    stream = io.StringIO()
    Log(stream, as_json=as_json).request(seen)
    text = stream.getvalue()
    assert text.endswith("\n")
    return text.removesuffix("\n")


def test_a_request_is_one_line(ask: Callable[..., list[Seen]]) -> None:
    headers = {
        "Inference-Header-Content-Length": "0",
        "X-Request-Id": "r-1",
        "traceparent": f"00-{TRACE}-{'1' * 16}-01",
    }
    (seen,) = ask(("POST", INFER, ROW, headers))
    told = json.loads(line(seen))
    assert TIME.fullmatch(told.pop("time"))
    assert 0 < told.pop("duration_ms") < 60_000
    assert told.pop("bytes_out") > 0
    assert told == {
        "method": "POST",
        "path": INFER,
        "status": 200,
        "bytes_in": 64,
        "request_id": "r-1",
        "trace_id": TRACE,
        "model": "digits",
        "version": "1",
    }
    assert f" method=POST path={INFER} status=200 duration_ms=" in line(seen, as_json=False)
    assert f" request_id=r-1 trace_id={TRACE} model=digits version=1" in line(seen, as_json=False)


def test_every_way_that_a_request_ends_is_told(ask: Callable[..., list[Seen]]) -> None:
    seen = ask(
        ("GET", "/v2/health/live", None, {}),
        ("HEAD", "/v2", None, {}),
        ("GET", "/nowhere", None, {}),
        ("POST", "/nowhere", b"body", {}),
        ("POST", INFER, ROW[1:], {"Inference-Header-Content-Length": "0"}),
        ("POST", INFER, bytes(200), {}),
        ("POST", INFER, iter([ROW[:5], ROW[5:]]), {"Inference-Header-Content-Length": "0"}),
        ("POST", "/classify", b"", {}),
        limits=ServerLimits(max_body_bytes=100),
    )
    assert [each.status for each in seen] == [200, 200, 404, 404, 400, 413, 200, 400]
    assert [each.bytes_in for each in seen] == [0, 0, 0, 0, 63, 0, 64, 0]
    assert seen[1].bytes_out == 0
    assert [each.route for each in seen] == [
        "/v2/health/live",
        "/v2",
        "",
        "",
        "/v2/models/{model}/infer",
        "",
        "/v2/models/{model}/infer",
        "/classify",
    ]
    assert [each.model for each in seen] == ["", "", "", "", "digits", "", "digits", "digits"]
    assert len({each.request_id for each in seen}) == len(seen)


def test_who_may_not_ask_is_told_of(ask: Callable[..., list[Seen]]) -> None:
    (seen,) = ask(("POST", INFER, ROW, {"Authorization": "Bearer wrong"}), access=Access("s3cret"))
    assert (seen.status, seen.model) == (401, "")
    assert "wrong" not in line(seen) + line(seen, as_json=False)


def test_what_is_no_request_is_told_of(running: Any, session_of: Callable[..., Session]) -> None:
    seen: list[Seen] = []
    with session_of() as session, running([session], watch=seen.append) as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(b"nonsense\r\n\r\n")
            while client.recv(4096):
                pass
    (told,) = seen
    assert told.status == 400
    assert json.loads(line(told))["method"] == "-"


def test_a_client_that_leaves_is_told_of(running: Any, session_of: Callable[..., Session]) -> None:
    seen: queue.Queue[Seen] = queue.Queue()
    with session_of() as session, running([session], watch=seen.put) as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        assert seen.get(timeout=30).status == CLIENT_LEFT


def test_a_watch_that_fails_costs_no_answer(
    running: Any, session_of: Callable[..., Session], caplog: pytest.LogCaptureFixture
) -> None:
    def failing(seen: Seen) -> None:
        raise OSError("the disk is full")

    with session_of() as session, running([session], watch=failing) as address:
        connection = http.client.HTTPConnection(address, timeout=30)
        for _ in range(2):
            connection.request("GET", "/v2/health/live")
            assert connection.getresponse().read() == b'{"live":true}'
        connection.close()
    assert "could not be told of" in caplog.text


@pytest.mark.parametrize("path", ["/classify", INFER])
def test_a_model_that_went_while_the_body_came_is_not_named(path: str) -> None:
    seen = Seen("POST", path)
    seen.handled(lambda _, respond: None, path, Models(ServerLimits()))
    assert (seen.model, seen.model_version) == ("", "")


def test_nobody_pays_where_nobody_watches(running: Any, session_of: Callable[..., Session]) -> None:
    import asyncio

    from trueport.runtime.server.connection import Connection
    from trueport.runtime.server.routes import Router

    async def made() -> type:
        connections = Connections(Router(Models(ServerLimits()), Access()), ServerLimits())
        return type(connections())

    assert asyncio.run(made()) is Connection


@pytest.mark.parametrize("as_json", [True, False])
def test_nobody_forges_a_line(as_json: bool) -> None:
    headers = {b"traceparent": HOSTILE.encode()}
    told = line(Seen("POST", f"/{HOSTILE}", headers=headers, request_id=HOSTILE, model=HOSTILE), as_json)
    assert told.isascii()
    assert told.isprintable()
    if as_json:
        assert json.loads(told)["path"] == f"/{HOSTILE}"
        assert json.loads(told)["request_id"] == HOSTILE
        assert "trace_id" not in json.loads(told)
    else:
        names = [word.partition("=")[0] for word in shlex.split(told, posix=False)]
        assert names[:3] == ["time", "method", "path"]
        assert told.count(" status=") == 1


def test_a_client_can_not_add_a_pair() -> None:
    told = line(Seen("GET", '/a" status=200 path="/b', status=404), as_json=False)
    assert r'path="/a\" status=200 path=\"/b" status=404' in told


def test_long_paths_are_cut() -> None:
    assert len(json.loads(line(Seen("GET", "/" * 8000)))["path"]) == LONGEST_PATH


def test_sentences_follow_the_format() -> None:
    text, lines = io.StringIO(), io.StringIO()
    Log(text).say("serving digits\non a port")
    Log(lines, as_json=True).say("serving digits\non a port")
    assert text.getvalue() == "serving digits\\non a port\n"
    told = json.loads(lines.getvalue())
    assert TIME.fullmatch(told.pop("time"))
    assert told == {"level": "info", "message": "serving digits\non a port"}


@pytest.mark.parametrize("as_json", [True, False])
def test_errors_follow_the_format_too(as_json: bool) -> None:
    stream, logger = io.StringIO(), logging.getLogger("trueport.server")
    with Log(stream, as_json=as_json).handling():
        try:
            raise ValueError("first\ntime=2026-01-01T00:00:00.000Z forged\udc80")
        except ValueError:
            logger.exception("the request %s failed", "r-1\n{}")
        logger.info("not told")
    logger.error("told elsewhere by now")
    lines = stream.getvalue().splitlines()
    if as_json:
        (told,) = map(json.loads, lines)
        assert told["level"] == "error"
        assert told["message"] == "the request r-1\n{} failed"
        assert "ValueError: first\n" in told["error"]
    else:
        assert re.match(r'time=\S+ level=error message="the request r-1\\n\{\} failed"$', lines[0])
        assert len(lines) > 3
        assert all(each.startswith("    ") for each in lines[1:])


def test_a_stream_that_nobody_reads_fails_no_request() -> None:
    stream = io.StringIO()
    log = Log(stream)
    stream.close()
    log.say("nobody hears this")
    log.request(Seen("GET", "/"))


def test_failures_are_logged_with_the_id_of_their_request(
    running: Any, session_of: Callable[..., Session], caplog: pytest.LogCaptureFixture
) -> None:
    with session_of() as session, running([session]) as address:

        def fail(feeds: Any) -> Any:
            raise RuntimeError("the secret of the inside")

        session.runner.run = fail  # type: ignore[method-assign]
        connection = http.client.HTTPConnection(address, timeout=30)
        headers = {"Inference-Header-Content-Length": "0", "X-Request-Id": "r-42"}
        connection.request("POST", INFER, ROW, headers)
        response = connection.getresponse()
        body = response.read()
        connection.close()
    assert response.status == 500
    assert b"secret" not in body
    assert "the request r-42 failed" in caplog.text
    assert "the secret of the inside" in caplog.text
