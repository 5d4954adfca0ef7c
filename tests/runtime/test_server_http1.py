"""Heads and chunked bodies from bytes: what is read, and what is refused with which status."""

from __future__ import annotations

import random

import pytest

from trueport.runtime.server import ServerLimits
from trueport.runtime.server.answers import ProtocolError, TooLargeError
from trueport.runtime.server.http1 import CHUNKED, ChunkedBody, Head, check_beginning, head_from_bytes

LIMITS = ServerLimits(max_request_line_bytes=100, max_head_bytes=400, max_fields=5)


def head(*lines: bytes, end: bytes = b"\r\n\r\n") -> Head:
    return head_from_bytes(b"\r\n".join(lines) + end, LIMITS)


def test_a_head_says_what_it_is() -> None:
    read = head(
        b"POST /v2/models/a%20b/infer?top=2&x=%20 HTTP/1.1",
        b"HOST: here",
        b"Content-Length:   12  ",
        b"X-Empty:",
        b"Accept: a\tb, c",
    )
    assert (read.method, read.path, read.query) == ("POST", "/v2/models/a b/infer", b"top=2&x=%20")
    assert read.headers == {b"host": b"here", b"content-length": b"12", b"x-empty": b"", b"accept": b"a\tb, c"}
    assert (read.length, read.keep_alive, read.expects, read.old) == (12, True, False, False)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", b""),
        (b"/a?b?c", "/a", b"b?c"),
        (b"http://here:80/a/b?c", "/a/b", b"c"),
        (b"http://here", "/", b""),
        (b"*", "*", b""),
        (b"/%zz%00%ff", "/%zz\0\ufffd", b""),
    ],
)
def test_targets(target: bytes, path: str, query: bytes) -> None:
    read = head(b"GET %b HTTP/1.1" % target, b"Host: x")
    assert (read.path, read.query) == (path, query)


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"Keep-Alive , CLOSE", False),
        (b"1.1", b"upgrade", True),
        (b"1.0", None, False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_who_wants_the_connection_kept(version: bytes, connection: bytes | None, keep_alive: bool) -> None:
    lines = [b"GET / HTTP/%b" % version, b"Host: x"] + ([] if connection is None else [b"Connection: " + connection])
    assert head(*lines).keep_alive is keep_alive


def test_lengths() -> None:
    assert head(b"POST / HTTP/1.1", b"Host: x", b"Transfer-Encoding: Chunked").length == CHUNKED
    assert head(b"POST / HTTP/1.1", b"Host: x", b"Content-Length: 007").length == 7
    assert head(b"POST / HTTP/1.1", b"Host: x", b"Content-Length: " + b"9" * 80).length >= 10**18
    assert head(b"POST / HTTP/1.1", b"Host: x", b"Content-Length: 1", b"Expect: 100-Continue").expects
    assert not head(b"POST / HTTP/1.1", b"Host: x", b"Expect: 100-continue").expects


GET = b"GET / HTTP/1.1"
REFUSED: dict[str, tuple[list[bytes], int]] = {
    "no version": ([b"GET /", b"Host: x"], 400),
    "two spaces": ([b"GET  / HTTP/1.1", b"Host: x"], 400),
    "a space in the target": ([b"GET /a b HTTP/1.1", b"Host: x"], 400),
    "a control character in the target": ([b"GET /a\x01 HTTP/1.1", b"Host: x"], 400),
    "no path": ([b"GET a HTTP/1.1", b"Host: x"], 400),
    "authority form": ([b"CONNECT here:80 HTTP/1.1", b"Host: x"], 400),
    "HTTP/2": ([b"PRI * HTTP/2.0"], 505),
    "HTTP/0.9": ([b"GET / HTTP/0.9", b"Host: x"], 505),
    "lower case": ([b"GET / http/1.1", b"Host: x"], 400),
    "TLS": ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], 400),
    "no Host": ([GET, b"Accept: x"], 400),
    "two Hosts": ([GET, b"Host: x", b"Host: x"], 400),
    "two lengths": ([GET, b"Host: x", b"Content-Length: 1", b"Content-Length: 1"], 400),
    "listed lengths": ([GET, b"Host: x", b"Content-Length: 1, 1"], 400),
    "negative length": ([GET, b"Host: x", b"Content-Length: -1"], 400),
    "signed length": ([GET, b"Host: x", b"Content-Length: +1"], 400),
    "empty length": ([GET, b"Host: x", b"Content-Length:"], 400),
    "hexadecimal length": ([GET, b"Host: x", b"Content-Length: 0x1"], 400),
    "length and coding": ([GET, b"Host: x", b"Content-Length: 1", b"Transfer-Encoding: chunked"], 400),
    "another coding": ([GET, b"Host: x", b"Transfer-Encoding: gzip, chunked"], 400),
    "two codings": ([GET, b"Host: x", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], 400),
    "a disguised coding": ([GET, b"Host: x", b"Transfer-Encoding: \x0bchunked"], 400),
    "chunked in HTTP/1.0": ([b"POST / HTTP/1.0", b"Transfer-Encoding: chunked"], 400),
    "two authorizations": ([GET, b"Host: x", b"Authorization: a", b"Authorization: b"], 400),
    "two header lengths": ([GET, b"Host: x"] + [b"Inference-Header-Content-Length: 1"] * 2, 400),
    "a space before the colon": ([GET, b"Host: x", b"Content-Length : 1"], 400),
    "a folded field": ([GET, b"Host: x", b"Accept: a", b" b"], 400),
    "no colon": ([GET, b"Host: x", b"Accept"], 400),
    "no name": ([GET, b"Host: x", b": a"], 400),
    "NUL in a value": ([GET, b"Host: x", b"Accept: a\0b"], 400),
    "CR in a value": ([GET, b"Host: x", b"Accept: a\rb"], 400),
    "LF in a value": ([GET, b"Host: x", b"Accept: a\nContent-Length: 7"], 400),
    "another expectation": ([GET, b"Host: x", b"Expect: 200-ok"], 417),
    "a long line": ([b"GET /" + b"a" * 100 + b" HTTP/1.1", b"Host: x"], 414),
    "a long head": ([GET, b"Host: x", b"Accept: " + b"a" * 400], 431),
    "many fields": ([GET, b"Host: x"] + [b"Accept: a"] * 5, 431),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_two_readers_could_take_differently_is_refused(name: str) -> None:
    lines, status = REFUSED[name]
    with pytest.raises(ProtocolError) as error:
        head(*lines)
    assert error.value.status == status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 100, 414),
        (b"GET / HTTP/1.1\r\nAccept: " + b"a" * 400, 431),
        (b"GET / HTTP/1.1\nHost: x", 400),
        (b"\n", 400),
    ],
)
def test_a_head_that_can_not_become_good_is_refused_before_its_end(data: bytes, status: int) -> None:
    with pytest.raises(ProtocolError) as error:
        check_beginning(data, 0, LIMITS)
    assert error.value.status == status


def test_a_head_that_may_become_good_is_waited_for() -> None:
    data = b"GET / HTTP/1.1\r\nHost: x\r\nAccept: b\r\n"
    for end in range(len(data)):
        check_beginning(data[:end], 0, LIMITS)


CHUNKS = b'5\r\nhello\r\n00A;name="v";x\r\n, chunked \r\n1 \r\n!\r\n0\r\nTrailer: is read over\r\n\r\n'


def test_chunks_are_put_together_however_they_are_cut() -> None:
    chance = random.Random(5)
    for _ in range(300):
        cuts = sorted(chance.sample(range(1, len(CHUNKS)), chance.randint(0, 12)))
        body, buffer, whole = ChunkedBody(100), bytearray(), None
        for start, end in zip((0, *cuts), (*cuts, len(CHUNKS)), strict=True):
            assert whole is None
            buffer += CHUNKS[start:end]
            whole = body.feed(buffer)
        assert whole == b"hello, chunked !"
        assert not buffer


def test_what_follows_a_chunked_body_is_left() -> None:
    buffer = bytearray(CHUNKS + b"GET / HTTP/1.1")
    assert ChunkedBody(100).feed(buffer) == b"hello, chunked !"
    assert buffer == b"GET / HTTP/1.1"


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1_0\r\n",
        b"f" * 16 + b"\r\n",
        b"1\nab",
        b"1;" + b"x" * 300,
        b"1\r\nab\r\n",
        b"1\r\na\n\r",
        b"0\r\nno colon\r\n",
        b"0\r\n folded\r\n",
    ],
)
def test_malformed_chunks_are_400(data: bytes) -> None:
    with pytest.raises(ProtocolError) as error:
        ChunkedBody(100).feed(bytearray(data + b"z" * 300))
    assert error.value.status == 400


@pytest.mark.parametrize("data", [b"65\r\n", b"ffffffffffffff\r\n", b"64\r\n" + b"x" * 100 + b"\r\n1\r\n"])
def test_a_chunk_beyond_the_limit_is_refused_before_it_arrives(data: bytes) -> None:
    with pytest.raises(TooLargeError):
        ChunkedBody(100).feed(bytearray(data))


def test_tiny_chunks_have_a_limit_of_their_own() -> None:
    body, buffer = ChunkedBody(10**9), bytearray(b"1;" + b"x" * 250 + b"\r\na\r\n")
    with pytest.raises(ProtocolError, match="sizes and trailers"):
        for _ in range(5000):
            body.feed(bytearray(buffer))


def test_what_is_read_is_read_as_h11_reads_it() -> None:
    """Seeded mutations of good heads: whatever is accepted here means the same to another strict reader."""
    h11 = pytest.importorskip("h11")
    chance, accepted = random.Random(3), 0
    heads = [
        b"POST /v2/models/a/infer?x=1 HTTP/1.1\r\nHost: here\r\nContent-Length: 12\r\nExpect: 100-continue\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\nAccept: a, b\r\n\r\n",
    ]
    pieces = [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b",",
        b"\0",
        b"\xff",
        b"Content-Length: 3\r\n",
        b"chunked",
        b"1",
    ]
    for _ in range(20_000):
        data = bytearray(chance.choice(heads))
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(data) - 4)
            data[place : place + chance.randint(0, 2)] = chance.choice(pieces)
        if data.find(b"\r\n\r\n") != len(data) - 4:
            continue
        try:
            ours = head_from_bytes(bytes(data), ServerLimits())
        except ProtocolError:
            continue
        accepted += 1
        theirs = h11.Connection(h11.SERVER)
        theirs.receive_data(bytes(data))
        event = theirs.next_event()
        assert (event.method.decode(), event.target.partition(b"?")[2]) == (ours.method, ours.query)
        assert set(ours.headers) == {name for name, _ in event.headers}
        assert ours.length == 0 or ours.expects == theirs.client_is_waiting_for_100_continue
        theirs.receive_data(b"0\r\n\r\n" if ours.length == CHUNKED else b"x" * min(ours.length, 10**6))
        if 0 < ours.length <= 10**6:
            assert len(theirs.next_event().data) == ours.length
        assert isinstance(theirs.next_event(), h11.EndOfMessage) == (ours.length <= 10**6)
    assert accepted > 1000
