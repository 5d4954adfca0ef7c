"""The gRPC status that each error of the tree becomes; its text is one sentence.

InvalidRequestError, UsageError, ImageError   INVALID_ARGUMENT
UnauthorizedError                             UNAUTHENTICATED
UnknownError (no such model or version)       NOT_FOUND
TooLargeError                                 RESOURCE_EXHAUSTED, as gRPC's own answer to a message that is too large
OverloadedError                               UNAVAILABLE with retry-after, in seconds, in the trailing metadata
ClosedError, StuckError, UnavailableError     UNAVAILABLE
DeadlineError                                 DEADLINE_EXCEEDED
GateError, BundleError, MissingError          FAILED_PRECONDITION, of a model that was to be loaded
OutputError (NaN or infinity in an output)    INTERNAL
anything else                                 INTERNAL, its cause only in the log
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import grpc

from ...errors import (
    BundleError,
    ClosedError,
    DeadlineError,
    GateError,
    InvalidRequestError,
    MissingError,
    OutputError,
    OverloadedError,
    StuckError,
    UsageError,
)
from ..answers import TooLargeError, UnauthorizedError, UnavailableError, UnknownError, retry_after_s

logger = logging.getLogger("trueport.server")

LONGEST_TEXT = 2000
"""A client takes no more than 8 KiB of metadata, and what is not ASCII triples in it."""

CODES: tuple[tuple[tuple[type[BaseException], ...], grpc.StatusCode], ...] = (
    ((InvalidRequestError, UsageError), grpc.StatusCode.INVALID_ARGUMENT),
    ((UnauthorizedError,), grpc.StatusCode.UNAUTHENTICATED),
    ((UnknownError,), grpc.StatusCode.NOT_FOUND),
    ((TooLargeError,), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ((OverloadedError, ClosedError, StuckError, UnavailableError), grpc.StatusCode.UNAVAILABLE),
    ((DeadlineError,), grpc.StatusCode.DEADLINE_EXCEEDED),
    ((GateError, BundleError, MissingError), grpc.StatusCode.FAILED_PRECONDITION),
    ((OutputError,), grpc.StatusCode.INTERNAL),
)


class Status(NamedTuple):
    """How a call ends that went wrong."""

    code: Any
    """A grpc.StatusCode."""
    text: str
    trailing: tuple[tuple[str, str], ...] = ()


def status_from_error(error: BaseException) -> Status:
    """The status that says what was wrong with a request, or that the server failed."""
    trailing: tuple[tuple[str, str], ...] = ()
    if isinstance(error, OverloadedError):
        trailing = (("retry-after", str(retry_after_s(error.expected_wait_s))),)
    for kinds, code in CODES:
        if isinstance(error, kinds):
            return Status(code, str(error)[:LONGEST_TEXT], trailing)
    logger.error("a call failed", exc_info=error)
    return Status(grpc.StatusCode.INTERNAL, "the server failed to answer this call, the reason is in its log")
