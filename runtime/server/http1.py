"""Requests of HTTP/1.1 from bytes, after RFC 9112: no sockets and no clocks.

Strict, so that no proxy before it can see other requests in the same bytes: what two readers may take differently is
refused, as are obsolete forms (folded fields, line feeds alone). Every length is checked before it is believed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

import msgspec

from .answers import ProtocolError, TooLargeError
from .contract import ServerLimits

CHUNKED = -1
"""In place of a body's length: it comes in chunks."""
END = b"\r\n\r\n"
LONGEST_CHUNK_LINE = 256
MOST_FRAMING_BYTES = 2**20
"""Of the sizes, extensions and trailers of one chunked body together."""
LONGEST_NUMBER = 18

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/(\d)\.(\d)" % _TOKEN)
_FIELD = re.compile(rb"(%b):([\t\x20-\x7e\x80-\xff]*)" % _TOKEN)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[\t ]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")

SINGLE = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"content-encoding")
) | {b"inference-header-content-length", b"expect"}
"""Fields that decide something: twice in one request they could decide it twice."""


class Head(msgspec.Struct, frozen=True, gc=False):
    """A request without its body."""

    method: str
    path: str
    """Percent-decoded."""
    query: bytes
    headers: Mapping[bytes, bytes]
    """Names in lower case; of fields of one name the values, joined by commas."""
    length: int
    """Bytes of the body, or CHUNKED."""
    keep_alive: bool
    """Whether the client wants to use the connection again."""
    expects: bool
    """It waits for 100 Continue before it sends the body."""
    old: bool
    """HTTP/1.0, which ends a connection unless both sides say otherwise."""


def check_beginning(data: bytes | bytearray, start: int, limits: ServerLimits) -> None:
    """Refuse a head that has not arrived whole and can't become a good one. start: up to where it was looked at."""
    if len(data) > limits.max_head_bytes:
        raise _too_long_a_head(limits)
    if _BARE_LINE_FEED.search(data, start):
        raise ProtocolError(400, "a line of the request's head ends with a line feed alone, expected CR LF")
    if b"\r" not in data[: limits.max_request_line_bytes + 1] and len(data) > limits.max_request_line_bytes:
        raise _too_long_a_line(limits)


def head_from_bytes(data: bytes, limits: ServerLimits) -> Head:
    """The head that is `data`, its empty line included. Raises ProtocolError."""
    if len(data) > limits.max_head_bytes:
        raise _too_long_a_head(limits)
    first, *lines = data[: -len(END)].split(b"\r\n")
    if len(first) > limits.max_request_line_bytes:
        raise _too_long_a_line(limits)
    if len(lines) > limits.max_fields:
        raise ProtocolError(431, f"the request has {len(lines)} header fields, at most {limits.max_fields} are read")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise ProtocolError(400, "the request line has to be METHOD /path HTTP/1.1")
    method, target, major, minor = line.groups()
    if major != b"1":
        raise ProtocolError(505, f"HTTP/{int(major)} is not spoken here: use HTTP/1.1")
    old = minor == b"0"
    headers = _headers(lines)
    if not old and b"host" not in headers:
        raise ProtocolError(400, "the Host field is missing, which HTTP/1.1 asks for")
    path, query = _path_and_query(target)
    length = _length(headers, old)
    expects = _expects(headers, old) and length != 0
    connection = headers.get(b"connection", b"").lower()
    options = [option.strip() for option in connection.split(b",")] if connection else []
    keep_alive = b"close" not in options and (not old or b"keep-alive" in options)
    return Head(method.decode(), path, query, headers, length, keep_alive, expects, old)


class ChunkedBody:
    """Puts a body together that comes in chunks."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._data = bytearray()
        self._missing = 0
        """Bytes of the chunk that is arriving, and of the line end behind it."""
        self._framing = 0
        self._last = False
        """Only trailers are to come, which are read over."""
        self._whole = False

    def __len__(self) -> int:
        """Bytes so far."""
        return len(self._data)

    def feed(self, buffer: bytearray) -> bytes | None:
        """Take what can be used from the buffer's beginning; the body once it is whole.

        Raises ProtocolError, TooLargeError.
        """
        position = 0
        try:
            while not self._whole:
                taken = self._take(buffer, position) if self._missing else self._take_line(buffer, position)
                if not taken:
                    return None
                position += taken
        finally:
            del buffer[:position]
        return bytes(self._data)

    def _take(self, buffer: bytearray, position: int) -> int:
        """Bytes taken of the chunk, or of the line end behind it; 0 where there are too few."""
        here = len(buffer) - position
        if self._missing > 2:
            taken = min(here, self._missing - 2)
            self._data += buffer[position : position + taken]
        else:  # both bytes of the line end at once
            taken = 2 if here >= 2 else 0
            if taken and buffer[position : position + 2] != b"\r\n":
                raise ProtocolError(400, "a chunk is longer than its size says")
        self._missing -= taken
        return taken

    def _take_line(self, buffer: bytearray, position: int) -> int:
        """Bytes taken of a size or trailer; 0 where its line has not arrived whole."""
        end = buffer.find(b"\r\n", position, position + LONGEST_CHUNK_LINE + 2)
        if end < 0:
            if len(buffer) - position >= LONGEST_CHUNK_LINE + 2:
                raise ProtocolError(400, f"a chunk's size, or a trailer, has more than {LONGEST_CHUNK_LINE} bytes")
            return 0
        taken = end + 2 - position
        self._framing += taken
        if self._framing > MOST_FRAMING_BYTES:
            raise ProtocolError(400, f"the chunks' sizes and trailers have more than {MOST_FRAMING_BYTES} bytes")
        line = bytes(buffer[position:end])
        if self._last:
            self._read_trailer(line)
        else:
            self._read_size(line)
        return taken

    def _read_size(self, line: bytes) -> None:
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise ProtocolError(400, "a chunk has to begin with its size as hexadecimal digits")
        count = int(size[1], 16)
        if len(self._data) + count > self._max_bytes:
            raise too_large(self._max_bytes, close=False)  # the connection closes by itself
        self._last = count == 0
        self._missing = count + 2 if count else 0

    def _read_trailer(self, line: bytes) -> None:
        if line and _FIELD.fullmatch(line) is None:
            raise ProtocolError(400, "a trailer has to be NAME: VALUE")
        self._whole = not line


def too_large(limit: int, *, close: bool) -> TooLargeError:
    """Of a body of more than `limit` bytes."""
    return TooLargeError(f"the body is larger than {limit} bytes: send fewer rows at a time", close=close)


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise ProtocolError(400, "a header field has to be NAME: VALUE on one line, of printable characters")
        name, value = field[1].lower(), field[2].strip(b" \t")
        if name in headers:
            if name in SINGLE:
                raise ProtocolError(400, f"the field {name.decode()} is given twice")
            value = headers[name] + b", " + value
        headers[name] = value
    return headers


def _path_and_query(target: bytes) -> tuple[str, bytes]:
    if not target.startswith(b"/"):
        scheme, separator, rest = target.partition(b"://")  # as to a proxy, which every server has to understand
        if separator and scheme.lower() in (b"http", b"https"):
            target = b"/" + rest.partition(b"/")[2]
        elif target != b"*":
            raise ProtocolError(400, "the request's target has to be a path that begins with a slash")
    path, _, query = target.partition(b"?")
    text = path.decode()
    return (unquote(text) if "%" in text else text), query


def _length(headers: Mapping[bytes, bytes], old: bool) -> int:
    declared, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    if coding is not None:
        if declared is not None:
            raise ProtocolError(400, "Content-Length and Transfer-Encoding exclude each other")
        if old or coding.lower() != b"chunked":
            raise ProtocolError(400, "the only Transfer-Encoding that is read here is chunked, in HTTP/1.1")
        return CHUNKED
    if declared is None:
        return 0
    if not declared.isdigit():
        raise ProtocolError(400, "Content-Length has to be a decimal number")
    return int(declared) if len(declared) <= LONGEST_NUMBER else 10**LONGEST_NUMBER


def _expects(headers: Mapping[bytes, bytes], old: bool) -> bool:
    expected = headers.get(b"expect")
    if expected is None or old:
        return False
    if expected.lower() != b"100-continue":
        raise ProtocolError(417, "the only Expect that is met here is 100-continue")
    return True


def _too_long_a_head(limits: ServerLimits) -> ProtocolError:
    return ProtocolError(431, f"the request's head has more than {limits.max_head_bytes} bytes")


def _too_long_a_line(limits: ServerLimits) -> ProtocolError:
    return ProtocolError(414, f"the request line has more than {limits.max_request_line_bytes} bytes")
