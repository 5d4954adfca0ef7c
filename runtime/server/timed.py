"""Where a request's time went: told in the header Server-Timing (W3C) to who asks with X-Server-Timing: 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from .answers import Answer, Fields

if TYPE_CHECKING:
    from ..answering import Request as Waiting

ASK = b"x-server-timing"


class Timed(msgspec.Struct, frozen=True):
    """One request that was answered."""

    waiting: Waiting
    decode_s: float = 0.0
    """From the first of its pictures to the last, waiting for a thread included."""


def is_asked_for(headers: Mapping[bytes, bytes]) -> bool:
    """Whether this client wants to know."""
    return headers.get(ASK) == b"1"


def with_timing(answer: Answer, timed: Timed) -> Answer:
    """The same answer, which also tells milliseconds: decode, queue, compute; and the rows of its batch."""
    request = timed.waiting
    queue_s, compute_s = request.began_s - request.arrived_s, request.ended_s - request.began_s
    rows = f"{request.batch_rows} row{'s' if request.batch_rows != 1 else ''}"
    value = (
        f"decode;dur={timed.decode_s * 1e3:.3f}, queue;dur={queue_s * 1e3:.3f}, "
        f'compute;dur={compute_s * 1e3:.3f}, batch;desc="{rows}"'
    ).encode()
    pairs = (*answer.fields.pairs, (b"server-timing", value))
    return Answer(answer.status, Fields(pairs, b"%bserver-timing: %b\r\n" % (answer.fields.raw, value)), answer.body)
