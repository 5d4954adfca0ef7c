"""The server's log: its sentences, one line a request where that is wanted, and what Python's `logging` is given.

Nothing that a client sends can begin a line, end one, or steer a terminal: what is not printable is escaped.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from .tracing import traceparent
from .watched import Seen

LONGEST_PATH = 512
_WORD = re.compile(r"[A-Za-z0-9._:/+-]+")
_NOT_PRINTABLE_ASCII = re.compile(r"[^\x20-\x7e]")


class RequestLine(msgspec.Struct, omit_defaults=True):
    """What the access log tells of one request; what is empty is left out."""

    time: str
    """When its header had arrived: RFC 3339, UTC."""
    method: str
    path: str
    status: int
    """499: the client has gone before its answer."""
    duration_ms: float
    """To the answer; a body that arrives slowly counts."""
    bytes_in: int
    bytes_out: int
    request_id: str
    trace_id: str = ""
    model: str = ""
    version: str = ""


class Sentence(msgspec.Struct, omit_defaults=True):
    """Anything else that is told."""

    time: str
    level: str
    message: str
    error: str = ""
    """The traceback."""


class Log:
    """Writes to a stream, each line at once; a stream that nobody reads any more fails no request.

    as_json: every line is one JSON object; else sentences are told as they are, all else as NAME=VALUE pairs.
    """

    def __init__(self, stream: TextIO, *, as_json: bool = False) -> None:
        self._stream = stream
        self._as_json = as_json

    def say(self, sentence: str) -> None:
        """Something that whoever runs the server should know."""
        if self._as_json:
            self._write(json_line(Sentence(_time_now(), "info", _encodable(sentence))))
        else:
            self._write(printable(sentence))

    def request(self, seen: Seen) -> None:
        """One request that has come to its end."""
        came = traceparent(seen.headers)
        line = RequestLine(
            _time(seen.begun_ns / 1e9),
            seen.method or "-",
            seen.path[:LONGEST_PATH] or "-",
            seen.status,
            round(seen.duration_ns / 1e6, 3),
            seen.bytes_in,
            seen.bytes_out,
            seen.request_id,
            came.trace_id if came else "",
            seen.model,
            seen.model_version,
        )
        self._write(json_line(line) if self._as_json else pairs_line(line))

    def record(self, record: logging.LogRecord) -> None:
        """What was given to `logging`; a traceback follows its line, indented."""
        error = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        line = Sentence(_time(record.created), record.levelname.lower(), _encodable(record.getMessage()))
        if self._as_json:
            line.error = _encodable(error)
            self._write(json_line(line))
        else:
            told = "".join(f"\n    {printable(each)}" for each in error.splitlines())
            self._write(pairs_line(line) + told)

    @contextmanager
    def handling(self) -> Iterator[None]:
        """As long as this lasts, warnings and errors of `logging` are told here."""
        root, handler = logging.getLogger(), _Handler(self)
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)

    def _write(self, line: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(line + "\n")
            self._stream.flush()


class _Handler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.record(record)


def json_line(value: object) -> str:
    """JSON in printable ASCII: every other character is escaped."""
    return _NOT_PRINTABLE_ASCII.sub(_escaped, msgspec.json.encode(value).decode())


def pairs_line(value: msgspec.Struct) -> str:
    """NAME=VALUE of each field; what is more than a word stands in quotes, as in JSON."""
    named = msgspec.to_builtins(value).items()
    return " ".join(f"{name}={text if _WORD.fullmatch(text := str(each)) else json_line(text)}" for name, each in named)


def printable(text: str) -> str:
    """The same text in one line: control and format characters are escaped."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _escaped(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def _encodable(text: str) -> str:
    """Without halves of characters, which the name of a file may hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _time_now() -> str:
    return _time(datetime.now(UTC).timestamp())


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
