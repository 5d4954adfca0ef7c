"""Bytes on a loopback socket: framing, order, limits, slow clients, clients that leave; each gets its own answer."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.runtime.fake_manifest import LABELS, SHAPE, fake_manifest
from trueport.runtime import BatchLimits, Session
from trueport.runtime.batcher import Batcher
from trueport.runtime.server import Access, ServerLimits
from trueport.runtime.server.listening import Connections
from trueport.runtime.server.models import Models
from trueport.runtime.server.routes import Router

CLASSES = len(LABELS)
INFER = b"/v2/models/digits/infer"
TIMEOUT_S = 30
HELD = 254
"""A row that begins with it waits until the session is told to go on."""
MANIFEST = fake_manifest()


class Rows:
    """A session whose logits are the first pixels of each row, through a real batcher."""

    manifest = MANIFEST
    closed = False

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        self.rows_run: list[int] = []
        self.report = SimpleNamespace(threads=1)
        self.batcher = Batcher(self.run, BatchLimits(max_batch_rows=8, max_queue_rows=64))

    def run(self, rows: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        self.rows_run.append(len(rows))
        if (rows[:, 0, 0, 0] == HELD).any():
            self.begun.release()
            assert self.go_on.wait(TIMEOUT_S)
        return {"logits": rows.reshape(len(rows), -1)[:, :CLASSES].astype(np.float32)}


@dataclass
class Response:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def error(self) -> str:
        return str(msgspec.json.decode(self.body)["error"])

    @property
    def logits(self) -> list[float]:
        size = int(self.headers["inference-header-content-length"])
        return cast("list[float]", np.frombuffer(self.body[size:], np.float32).tolist())


class Client:
    """A socket, and the responses on it."""

    def __init__(self, address: str) -> None:
        host, port = address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def response(self, head_only: bool = False) -> Response:
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers: dict[str, str] = {}
        while (field := self._file.readline()) != b"\r\n":
            name, _, value = field.decode().partition(": ")
            assert name not in headers
            headers[name] = value.rstrip("\r\n")
        size = 0 if head_only else int(headers.get("content-length", "0"))
        return Response(int(line.split()[1]), headers, self._file.read(size))

    def ask(self, data: bytes) -> Response:
        self.send(data)
        return self.response()

    def ended(self) -> bool:
        """Whether the server has closed its side, with nothing before."""
        return self._file.read() == b""

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def session() -> Iterator[Rows]:
    session = Rows()
    yield session
    session.go_on.set()
    session.batcher.close(timeout_s=TIMEOUT_S)


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


@contextmanager
def client_of(running: Any, session: Rows, access: Access | None = None, loop: str = "asyncio", **limits: Any) -> Any:
    with running(sessions(session), ServerLimits(**limits), access, loop) as address:
        client = Client(address)
        try:
            yield client
        finally:
            client.close()


def sessions(session: Rows) -> list[Session]:
    return cast("list[Session]", [session])


@pytest.fixture
def client(running: Any, session: Rows, loop: str) -> Iterator[Client]:
    with client_of(running, session, loop=loop) as client:
        yield client


def row(*first: int) -> bytes:
    return bytes(first).ljust(20, b"\0")


def post(body: bytes, path: bytes = INFER, fields: bytes = b"", binary: bool = True, version: bytes = b"1.1") -> bytes:
    kind = b"Inference-Header-Content-Length: 0\r\n" if binary else b""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST %b HTTP/%b\r\nHost: here\r\n%b%b%b\r\n%b" % (path, version, kind, length, fields, body)


def get(path: bytes = b"/v2/health/live", fields: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\nHost: here\r\n%b\r\n" % (method, path, fields)


def chunked(body: bytes, size: int) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return head % INFER + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def tensor(rows: bytes) -> bytes:
    count = len(rows) // 20
    described = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [count, *SHAPE],
        "parameters": {"binary_data_size": len(rows)},
    }
    head = msgspec.json.encode({"inputs": [described], "parameters": {"binary_data_output": True}})
    length = b"Inference-Header-Content-Length: %d\r\n" % len(head)
    return post(head + rows, fields=length, binary=False)


CORPUS = [
    get(),
    post(row(1, 2, 3)),
    tensor(row(4, 5, 6) + row(7, 8, 9)),
    chunked(row(9, 8, 7), 6),
    get(b"/v2/models/digits"),
    post(b"x", b"/nowhere"),
    post(row(1)[1:]),
    get(b"/v2/nothing"),
    get(method=b"HEAD"),
    post(b"{}", binary=False),
    get(INFER),
    post(b"", b"/classify"),
    chunked(row(3, 1, 4), 1),
]


def said(response: Response) -> tuple[int, dict[str, str], bytes]:
    """What of a response does not depend on when it was made."""
    fields = {name: value for name, value in response.headers.items() if name not in ("date", "x-request-id")}
    return response.status, fields, response.body


def test_requests_are_answered_the_same_however_they_are_cut(client: Client) -> None:
    heads = [request.startswith(b"HEAD") for request in CORPUS]
    expected = []
    for request, head_only in zip(CORPUS, heads, strict=True):
        client.send(request)
        expected.append(said(client.response(head_only)))
    statuses = [status for status, _, _ in expected]
    assert statuses == [200, 200, 200, 200, 200, 404, 400, 404, 200, 400, 405, 400, 200]
    chance, stream = random.Random(11), b"".join(CORPUS)
    for _ in range(25):
        cuts = sorted(chance.sample(range(1, len(stream)), chance.randint(0, 30)))
        for start, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
            client.send(stream[start:end])
            if chance.random() < 0.3:
                time.sleep(0.001)  # so that the pieces do not arrive as one
        assert [said(client.response(head_only)) for head_only in heads] == expected


def test_a_request_a_byte_at_a_time(client: Client) -> None:
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in tensor(row(1, 2, 3)):
        client.send(bytes([byte]))
    assert client.response().logits == [1, 2, 3]


def test_pipelined_requests_are_answered_in_order_and_are_not_kept_without_a_bound(client: Client) -> None:
    count = 3000
    sender = threading.Thread(
        target=client.send, args=(b"".join(post(row(i % 251, i // 251)) for i in range(count)),), daemon=True
    )
    sender.start()
    for number in range(count):
        response = client.response()
        assert (response.status, response.logits[:2]) == (200, [number % 251, number // 251])
    sender.join(TIMEOUT_S)
    assert client.ask(get()).status == 200


def test_a_client_with_many_requests_leaves_others_their_turn(session: Rows) -> None:
    written: list[bytes] = []

    class Transport(asyncio.Transport):
        def write(self, data: Any) -> None:
            written.append(data)

        def is_closing(self) -> bool:
            return False

    async def use() -> list[int]:
        models = Models(ServerLimits())
        for each in sessions(session):
            models.add(each)
        router = Router(models, Access())
        connections = Connections(router, ServerLimits())
        connection = connections()
        connection.connection_made(Transport())
        connection.data_received(get() * 40)
        counts = [len(written)]
        while counts[-1] < 40:
            await asyncio.sleep(0)
            counts.append(len(written))
        connection.connection_lost(None)
        await connections.drain(1)
        router.close()
        return counts

    assert asyncio.run(use()) == [16, 32, 40]


def test_what_a_client_sends_ahead_is_not_read_without_end(client: Client, session: Rows) -> None:
    client.send(post(row(HELD)))
    assert session.begun.acquire(timeout=TIMEOUT_S)
    client.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):  # the buffers of both systems are full, which are far from 200 MB
        for _ in range(200):
            client.send(get() * 25_000)
    session.go_on.set()


def test_a_client_that_does_not_read_is_not_answered_on(running: Any, session: Rows, loop: str) -> None:
    with client_of(running, session, loop=loop, body_s=0.5) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.socket.settimeout(TIMEOUT_S)
        with pytest.raises(ConnectionError):  # once nothing more fits, and half a second has passed
            for _ in range(10**5):
                client.send(get(b"/metrics") * 100)


def test_every_client_gets_its_own_answers(running: Any, session: Rows, loop: str) -> None:
    """Clients that share nothing but the server: a row's number comes back to whoever sent it."""
    clients, requests = 24, 60
    wrong: list[object] = []

    def use(number: int) -> None:
        client, chance = Client(address), random.Random(number)
        try:
            for request in range(requests):
                values = (number, request, chance.randrange(250))
                data = chance.choice((post, tensor, lambda body: chunked(body, 7)))(row(*values))
                response = client.ask(data)
                if response.status != 200 or response.logits != list(values):
                    wrong.append((values, response))
        finally:
            client.close()

    with running(sessions(session), ServerLimits(), None, loop) as address:
        threads = [threading.Thread(target=use, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert wrong == []
    assert sum(session.rows_run) == clients * requests
    assert max(session.rows_run) > 1, "nothing was batched, so that nothing could be confused"


def test_an_answered_request_leaves_nothing_to_the_collector(client: Client) -> None:
    """What waits for it grows with every request, and stops all of them while it is collected."""

    def alive() -> Counter[str]:
        return Counter(type(one).__name__ for one in gc.get_objects())

    client.ask(post(row(1)))
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for number in range(20):
            assert client.ask(post(row(number)) if number % 2 else tensor(row(number))).status == 200
        left = alive() - before
    finally:
        gc.enable()
    assert left["_Delivery"] + left["Request"] <= 2  # the last one may still be on its way back


def test_a_client_that_leaves_takes_its_request_out_of_the_queue(running: Any, session: Rows, loop: str) -> None:
    with running(sessions(session), ServerLimits(), None, loop) as address:
        holding, leaving, staying = (Client(address) for _ in range(3))
        holding.send(post(row(HELD)))
        assert session.begun.acquire(timeout=TIMEOUT_S)
        leaving.send(post(row(1)))
        wait_for(lambda: session.batcher.stats().queued_requests == 1)
        staying.send(post(row(2)))
        wait_for(lambda: session.batcher.stats().queued_requests == 2)
        leaving.close()
        wait_for(lambda: session.batcher.stats().queued_requests == 1)
        session.go_on.set()
        assert holding.response().logits[0] == HELD
        assert staying.response().logits[0] == 2
        assert session.rows_run == [1, 1]
        assert session.batcher.stats().cancelled == 1
        metrics = staying.ask(get(b"/metrics")).body
        assert b'nv_inference_request_failure{model="digits",version="1",reason="CANCELED"} 1\n' in metrics
        assert b'nv_inference_request_success{model="digits",version="1"} 2\n' in metrics
        for client in (holding, staying):
            client.close()


def wait_for(condition: Any) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\n", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (get(b"/" + b"a" * 9000), 414),
        (b"GET /" + b"a" * 9000, 414),
        (get(fields=b"Accept: x\r\n" * 101), 431),
        (get(fields=b"Accept: " + b"x" * 40_000 + b"\r\n"), 431),
        (b"GET / HTTP/1.1\r\nAccept: " + b"x" * 40_000, 431),
        (post(b"", fields=b"Expect: 200-maybe\r\n"), 417),
        (chunked(b"x", 1).replace(b"1\r\nx", b"z\r\nx"), 400),
        (chunked(b"x" * 2000, 500), 413),
        (b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %b\r\n\r\n" % (INFER, b"9" * 400), 413),
    ],
)
def test_what_can_not_be_read_is_answered_once_and_the_connection_ends(
    running: Any, session: Rows, data: bytes, status: int
) -> None:
    with client_of(running, session, max_body_bytes=1000) as client:
        response = client.ask(data + get())  # what follows must not be taken for a request
        assert (response.status, response.headers["connection"]) == (status, "close")
        assert response.error
        assert client.ended()


def test_a_refused_body_is_read_over_so_that_the_next_request_is_answered(running: Any, session: Rows) -> None:
    with client_of(running, session, max_body_bytes=1000) as client:
        assert client.ask(post(get() * 100)).status == 413
        assert client.ask(post(get() * 100, b"/nowhere")).status == 404
        assert client.ask(get()).status == 200


def test_too_large_a_body_is_refused_before_it_is_sent(running: Any, session: Rows) -> None:
    with client_of(running, session, max_body_bytes=1000) as client:
        response = client.ask(post(b"x" * 2000, fields=b"Expect: 100-continue\r\n")[:-2000])
        assert (response.status, response.headers["connection"]) == (413, "close")


def test_a_client_that_expects_to_be_told_to_go_on_is_told(client: Client) -> None:
    request = post(row(5), fields=b"Expect: 100-continue\r\n")
    for _ in range(2):  # the second time its head is known
        client.send(request[:-20])
        assert client.response().status == 100
        assert client.ask(request[-20:]).logits[0] == 5
    for again in (request, post(row(5), fields=b"Expect: 100-continue\r\nX: another head\r\n")):
        assert client.ask(again).logits[0] == 5  # the body was here already: there is nothing to tell


@pytest.mark.parametrize(
    ("data", "limits"),
    [
        (b"GET / HT", {"head_s": 0.2}),
        (b"\r\nG", {"head_s": 0.2}),
        (post(row(1))[:-1], {"body_s": 0.2}),
        (chunked(row(1), 3)[:-1], {"body_s": 0.2}),
        (post(row(1), b"/nowhere")[:-1], {"body_s": 0.2}),
    ],
)
def test_a_slow_client_is_told_and_closed(running: Any, session: Rows, data: bytes, limits: dict[str, Any]) -> None:
    with client_of(running, session, **limits) as client:
        response = client.ask(data)
        assert (response.status, response.headers["connection"]) == (408, "close")
        assert "did not arrive within 0.2 s" in response.error
        assert client.ended()


def test_bytes_that_trickle_in_do_not_put_the_end_off(running: Any, session: Rows) -> None:
    with client_of(running, session, head_s=0.3) as client:

        def trickle() -> None:
            try:
                while True:
                    client.send(b"a")
                    time.sleep(0.02)
            except OSError:
                return

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        assert client.response().status == 408
        client.close()
        thread.join(TIMEOUT_S)


def test_an_idle_connection_is_closed_without_a_word(running: Any, session: Rows, loop: str) -> None:
    with client_of(running, session, loop=loop, idle_s=0.2) as client:
        assert client.ask(get()).status == 200
        assert client.ended()


def test_a_request_that_takes_longer_than_idle_is_answered(running: Any, session: Rows) -> None:
    with client_of(running, session, idle_s=0.1, body_s=0.1, head_s=0.1) as client:
        client.send(post(row(HELD)))
        assert session.begun.acquire(timeout=TIMEOUT_S)
        time.sleep(0.5)
        session.go_on.set()
        assert client.response().status == 200


def test_one_connection_too_many_is_told_so(running: Any, session: Rows) -> None:
    with running(sessions(session), ServerLimits(max_connections=2), None, "asyncio") as address:
        first, second = Client(address), Client(address)
        assert [client.ask(get()).status for client in (first, second)] == [200, 200]
        third = Client(address)
        response = third.response()
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert third.ended()
        first.close()
        third.close()

        def admitted() -> bool:
            client = Client(address)
            try:
                return client.ask(get()).status == 200
            except (ConnectionError, AssertionError):
                return False
            finally:
                client.close()

        wait_for(admitted)
        second.close()


@pytest.mark.parametrize("cut", ["length", "chunks"])
def test_unfinished_requests_have_a_bound_together(running: Any, session: Rows, cut: str) -> None:
    whole = post(bytes(1000)) if cut == "length" else chunked(bytes(1000), 300)
    with running(sessions(session), ServerLimits(max_held_bytes=1000), None, "asyncio") as address:
        first = Client(address)
        for _ in range(3):  # what has been answered or refused is no longer held
            second = Client(address)
            first.send(whole[:800])
            time.sleep(0.05)
            response = second.ask(whole[:800])
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert second.ended()
            second.close()
            assert first.ask(whole[800:]).status == 400
        first.close()


def test_head_is_get_without_its_body(client: Client) -> None:
    whole = client.ask(get(b"/v2"))
    client.send(get(b"/v2", method=b"HEAD"))
    head = client.response(head_only=True)
    assert (head.status, head.headers["content-length"]) == (200, str(len(whole.body)))
    assert client.ask(get()).status == 200


def test_connections_are_kept_or_closed_as_the_client_wants(running: Any, session: Rows, loop: str) -> None:
    with running(sessions(session), ServerLimits(), None, loop) as address:
        for fields, version, kept in (
            (b"", b"1.1", True),
            (b"Connection: close\r\n", b"1.1", False),
            (b"", b"1.0", False),
            (b"Connection: keep-alive\r\n", b"1.0", True),
        ):
            client = Client(address)
            response = client.ask(post(row(7), fields=fields, version=version))
            assert response.logits[0] == 7
            if kept:
                assert response.headers.get("connection") == ("keep-alive" if version == b"1.0" else None)
                assert client.ask(get()).status == 200
            else:
                assert response.headers["connection"] == "close"
                assert client.ended()
            client.close()


def test_a_request_id_is_given_back_or_made(client: Client) -> None:
    assert client.ask(get(fields=b"X-Request-Id: my own\r\n")).headers["x-request-id"] == "my own"
    made = {client.ask(request).headers["x-request-id"] for request in (get(), get(), post(row(1)), get(b"/no"))}
    assert len(made) == 4
    assert client.ask(get(fields=b"X-Request-Id: " + b"x" * 500 + b"\r\n")).headers["x-request-id"] != "x" * 500
    assert client.ask(get(fields=b"X-Request-Id: my own\r\n")).headers["x-request-id"] == "my own"
    assert client.ask(b"GARBAGE\r\n\r\n").headers["x-request-id"] != "my own"


def test_without_the_token_nothing_is_answered(running: Any, session: Rows) -> None:
    with running(sessions(session), ServerLimits(), Access("secret"), "asyncio") as address:
        for request in CORPUS:
            client = Client(address)
            client.send(request)
            response = client.response(request.startswith(b"HEAD"))
            assert (response.status, response.headers["www-authenticate"]) == (401, "Bearer")
            client.close()
        assert session.rows_run == []
        client = Client(address)
        for field in (b"Authorization: Bearer secret\r\n", b"X-Api-Key: secret\r\n"):
            assert client.ask(post(row(6), fields=field)).logits[0] == 6
        client.close()


def test_a_stopping_server_answers_what_has_begun_and_then_closes(running: Any, session: Rows, loop: str) -> None:
    with running(sessions(session), ServerLimits(), None, loop) as address:
        idle, busy = Client(address), Client(address)
        assert idle.ask(get()).status == 200
        busy.send(post(row(HELD)) + get())
        assert session.begun.acquire(timeout=TIMEOUT_S)
        release = threading.Timer(0.2, session.go_on.set)
        release.start()
    response = busy.response()
    assert (response.status, response.headers["connection"]) == (200, "close")
    assert busy.ended()
    assert idle.ended()
    for client in (idle, busy):
        client.close()


def test_where_the_time_went_is_told_to_who_asks(client: Client) -> None:
    client.send(post(row(1), fields=b"X-Server-Timing: 1\r\n"))
    told = client.response().headers["server-timing"]
    found = re.fullmatch(r'decode;dur=0\.000, queue;dur=([\d.]+), compute;dur=([\d.]+), batch;desc="1 row"', told)
    assert found is not None
    assert float(found[2]) > 0
    client.send(post(row(1)))
    assert "server-timing" not in client.response().headers


def test_a_model_that_was_exchanged_while_a_body_arrived_is_not_asked(running: Any, session: Rows) -> None:
    new, routers = Rows(), list[Router]()
    new.run = lambda rows: {"logits": np.full((len(rows), CLASSES), 7, np.float32)}  # type: ignore[method-assign]
    new.batcher = Batcher(new.run)
    with running(sessions(session), seen=routers.append) as address:
        client, (router,) = Client(address), routers
        request = post(row(1, 2, 3))
        client.send(request[:-5])
        other = Client(address)
        other.send(get())  # answered after the head of the first was read
        assert other.response().status == 200
        (old,) = router.models.exchange("digits", [router.models.endpoint(sessions(new)[0])])
        old.session.batcher.close()
        client.send(request[-5:])
        assert client.response().logits == [7, 7, 7]
        client.send(request[:-5])
        other.send(get())
        assert other.response().status == 200
        router.models.exchange("digits", [])
        client.send(request[-5:])
        assert client.response().status == 404
        client.close()
        other.close()
    new.batcher.close()


def test_a_model_whose_run_does_not_end_says_so_and_comes_back(running: Any, session: Rows) -> None:
    with client_of(running, session, run_s=0.2) as client:
        client.send(post(row(HELD)))
        assert session.begun.acquire(timeout=TIMEOUT_S)
        with client_of(running, session) as other:
            other.send(get())
            assert other.response().status == 200
        answer = client.response()
        assert (answer.status, "has not come to the end of a run in " in answer.error) == (503, True)
        client.send(get(b"/v2/health/ready") + post(row(1)))
        assert client.response().status == 400
        answer = client.response()
        assert (answer.status, "does not answer at present" in answer.error) == (503, True)
        session.go_on.set()
        end_s = time.monotonic() + TIMEOUT_S
        status = 400
        while status == 400 and time.monotonic() < end_s:
            client.send(get(b"/v2/health/ready"))
            status = client.response().status
        client.send(post(row(1, 2, 3)))
        assert client.response().logits == [1, 2, 3]
