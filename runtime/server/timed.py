"""Where a request's time went: told in the header Server-Timing (W3C) to who asks with X-Server-Timing: 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from .answers import Answer, Fields
from .contract import Note, Request

if TYPE_CHECKING:
    from ..answering import Request as Waiting

ASK = b"x-server-timing"


class Timed(msgspec.Struct, frozen=True):
    """One request that was answered."""

    waiting: Waiting
    decode_s: float = 0.0
    """From the first of its pictures to the last, waiting for a thread included."""

    @property
    def queue_s(self) -> float:
        """From the batcher's hands to the begin of its run."""
        return self.waiting.began_s - self.waiting.arrived_s

    @property
    def compute_s(self) -> float:
        """Of the run."""
        return self.waiting.ended_s - self.waiting.began_s


class Wanted(msgspec.Struct, frozen=True):
    """Who wants to know: the client, whoever watches the server, or both."""

    header: bool
    note: Note | None

    def told(self, answer: Answer, timed: Timed) -> Answer:
        """Tell them; answers the answer."""
        if self.note is not None:
            self.note(timed)
        return with_timing(answer, timed) if self.header else answer


def wanted(request: Request) -> Wanted | None:
    """Who wants to know; None: nobody, as is usual."""
    header = request.headers.get(ASK) == b"1"
    return Wanted(header, request.note) if header or request.note is not None else None


def with_timing(answer: Answer, timed: Timed) -> Answer:
    """The same answer, which also tells milliseconds: decode, queue, compute; and the rows of its batch."""
    count = timed.waiting.batch_rows
    rows = f"{count} row{'s' if count != 1 else ''}"
    value = (
        f"decode;dur={timed.decode_s * 1e3:.3f}, queue;dur={timed.queue_s * 1e3:.3f}, "
        f'compute;dur={timed.compute_s * 1e3:.3f}, batch;desc="{rows}"'
    ).encode()
    pairs = (*answer.fields.pairs, (b"server-timing", value))
    return Answer(answer.status, Fields(pairs, b"%bserver-timing: %b\r\n" % (answer.fields.raw, value)), answer.body)
