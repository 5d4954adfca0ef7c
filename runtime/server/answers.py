"""HTTP answers, and the one that each error of the tree becomes: always JSON, `{"error": "one sentence"}`.

ProtocolError                                 its own status: 400, 408, 413, 414, 417, 431 or 505
InvalidRequestError, UsageError, ImageError   400
GateError, BundleError, MissingError          400, of a model that was to be loaded; what a run lacks is no such error
UnauthorizedError                             401 with WWW-Authenticate
UnknownError (no such model, version or path) 404
MethodError                                   405 with Allow
TooLargeError                                 413
UnsupportedError (form data, compressed body) 415
OutputError (NaN or infinity in an output)    500
OverloadedError                               503 with Retry-After
ClosedError, StuckError, UnavailableError     503
DeadlineError                                 504, as gRPC's DEADLINE_EXCEEDED; a 503 would invite a retry
anything else                                 500, its cause only in the log
"""

from __future__ import annotations

import logging
import math

import msgspec

from ..errors import (
    BundleError,
    ClosedError,
    DeadlineError,
    GateError,
    InvalidRequestError,
    MissingError,
    OutputError,
    OverloadedError,
    RequestError,
    StuckError,
    UsageError,
)

Pair = tuple[bytes, bytes]

logger = logging.getLogger("trueport.server")

JSON: Pair = (b"content-type", b"application/json")
OCTETS: Pair = (b"content-type", b"application/octet-stream")
LONGEST_RETRY_S = 3600


class ProtocolError(RequestError):
    """The bytes are no request that is read here: where the next one would begin can't be known.

    status: of the answer, after which the connection ends.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnauthorizedError(RequestError):
    """The request does not carry the token."""


class UnknownError(RequestError):
    """There is no such model, version or path."""


class UnavailableError(RequestError):
    """The server does not offer this unless it was asked to."""


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


class Fields(msgspec.Struct, frozen=True, gc=False):
    """Header fields, as pairs and as they go over the wire."""

    pairs: tuple[Pair, ...]
    raw: bytes


class Answer(msgspec.Struct, frozen=True, gc=False):
    """One HTTP response."""

    status: int
    fields: Fields
    body: bytes


class FailedAnswer(Answer, frozen=True, gc=True):
    """One that says no more than that the server failed. Tracked by the collector: its cause may lead back to it."""

    cause: BaseException


def log_failure(answer: Answer, request_id: bytes) -> None:
    """Why, for whoever runs the server; called where the request's id is known."""
    if isinstance(answer, FailedAnswer):
        logger.error("the request %s failed", request_id.decode("latin1"), exc_info=answer.cause)


def fields(*pairs: Pair) -> Fields:
    """Of these pairs of name and value, which hold no line ends."""
    return Fields(pairs, b"".join(b"%b: %b\r\n" % pair for pair in pairs))


def answer_from_bytes(body: bytes, *pairs: Pair, status: int = 200) -> Answer:
    """The answer that holds `body`; pairs: its header fields beside Content-Length."""
    return Answer(status, fields(*pairs, content_length(len(body))), body)


def answer_from_json(value: object, status: int = 200, *pairs: Pair) -> Answer:
    """The answer that holds `value` as JSON."""
    return answer_from_bytes(msgspec.json.encode(value), JSON, *pairs, status=status)


def empty_answer() -> Answer:
    """200 and nothing more: yes."""
    return answer_from_bytes(b"")


def answer_from_error(error: BaseException) -> Answer:
    """The answer that says what was wrong with a request, or that the server failed."""
    status, extra = _status(error)
    if status == 500 and not isinstance(error, OutputError):
        answer = answer_from_json({"error": _FAILED}, status, *extra)
        return FailedAnswer(answer.status, answer.fields, answer.body, error)
    return answer_from_json({"error": str(error)}, status, *extra)


_FAILED = "the server failed to answer this request, the reason is in its log"


def content_length(size: int) -> Pair:
    """The header field for a body of so many bytes."""
    return b"content-length", b"%d" % size


def _status(error: BaseException) -> tuple[int, list[Pair]]:  # noqa: PLR0911 - the table at the top of this file
    match error:
        case ProtocolError():
            return error.status, []
        case InvalidRequestError() | UsageError() | GateError() | BundleError() | MissingError():
            return 400, []
        case UnauthorizedError():
            return 401, [(b"www-authenticate", b"Bearer")]
        case UnknownError():
            return 404, []
        case MethodError():
            return 405, [(b"allow", error.allow.encode())]
        case TooLargeError():
            return 413, [(b"connection", b"close")] if error.close else []
        case UnsupportedError():
            return 415, []
        case OverloadedError():
            return 503, [(b"retry-after", b"%d" % retry_after_s(error.expected_wait_s))]
        case ClosedError() | StuckError() | UnavailableError():
            return 503, []
        case DeadlineError():
            return 504, []
    return 500, []


def retry_after_s(expected_wait_s: float) -> int:
    """Whole seconds after which to try again, for a wait that is expected; at most an hour."""
    if not math.isfinite(expected_wait_s):
        return LONGEST_RETRY_S
    return min(max(1, math.ceil(expected_wait_s)), LONGEST_RETRY_S)
