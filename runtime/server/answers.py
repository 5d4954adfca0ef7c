"""HTTP answers, and the one that each error of the tree becomes: always JSON, `{"error": "one sentence"}`.

InvalidRequestError, UsageError, ImageError   400
UnknownError (no such model, version or path) 404
MethodError                                   405 with Allow
TooLargeError                                 413
UnsupportedError (form data, compressed body) 415
OverloadedError                               503 with Retry-After
ClosedError                                   503
DeadlineError                                 504, as gRPC's DEADLINE_EXCEEDED; a 503 would invite a retry
anything else                                 500, its cause only in the log
"""

from __future__ import annotations

import logging
import math

import msgspec

from ..errors import (
    ClosedError,
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    UsageError,
)

Headers = list[tuple[bytes, bytes]]

logger = logging.getLogger("trueport.server")

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
OCTETS: tuple[bytes, bytes] = (b"content-type", b"application/octet-stream")
LONGEST_RETRY_S = 3600


class UnknownError(RequestError):
    """There is no such model, version or path."""


class MethodError(RequestError):
    """The path exists, with another method.

    allow: value of the Allow header.
    """

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class TooLargeError(RequestError):
    """The body is larger than the server takes.

    close: whether the rest of the body would still arrive on this connection without an end in sight.
    """

    def __init__(self, message: str, *, close: bool) -> None:
        super().__init__(message)
        self.close = close


class UnsupportedError(RequestError):
    """The body is in a form that is not read here."""


class Answer(msgspec.Struct, frozen=True, gc=False):
    """One HTTP response."""

    status: int
    headers: Headers
    body: bytes


def answer_from_json(value: object, status: int = 200) -> Answer:
    """The answer that holds `value` as JSON."""
    body = msgspec.json.encode(value)
    return Answer(status, [JSON, content_length(body)], body)


def empty_answer() -> Answer:
    """200 and nothing more: yes."""
    return Answer(200, [(b"content-length", b"0")], b"")


def answer_from_error(error: BaseException) -> Answer:
    """The answer that says what was wrong with a request, or that the server failed."""
    status, extra = _status(error)
    if status == 500:
        logger.error("a request failed", exc_info=error)
        text = "the server failed to answer this request, the reason is in its log"
    else:
        text = str(error)
    answer = answer_from_json({"error": text}, status)
    answer.headers.extend(extra)
    return answer


def content_length(body: bytes) -> tuple[bytes, bytes]:
    """The header for `body`."""
    return b"content-length", b"%d" % len(body)


def _status(error: BaseException) -> tuple[int, Headers]:  # noqa: PLR0911 - the table at the top of this file
    match error:
        case InvalidRequestError() | UsageError():
            return 400, []
        case UnknownError():
            return 404, []
        case MethodError():
            return 405, [(b"allow", error.allow.encode())]
        case TooLargeError():
            return 413, [(b"connection", b"close")] if error.close else []
        case UnsupportedError():
            return 415, []
        case OverloadedError():
            return 503, [(b"retry-after", b"%d" % _retry_after_s(error.expected_wait_s))]
        case ClosedError():
            return 503, []
        case DeadlineError():
            return 504, []
    return 500, []


def _retry_after_s(expected_wait_s: float) -> int:
    if not math.isfinite(expected_wait_s):
        return LONGEST_RETRY_S
    return min(max(1, math.ceil(expected_wait_s)), LONGEST_RETRY_S)
