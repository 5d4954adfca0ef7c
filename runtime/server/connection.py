"""One client's connection: bytes into requests, answers into bytes, one request after the other.

An asyncio.Protocol. On the usual path, a request that arrives at once with a head that is known, there is no task, no
timer and no copy beside that of the body: the handler is called from `data_received`, its answer is one write.
Requests that a client sends before it has its answer wait in the buffer, which is bounded by not reading on.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from ..errors import OverloadedError
from .answers import Answer, ProtocolError, answer_from_error, log_failure
from .contract import Cancel, Handler, Request
from .http1 import CHUNKED, END, ChunkedBody, Head, check_beginning, too_large
from .routes import begun

if TYPE_CHECKING:
    from .listening import Connections

READ_AHEAD_BYTES = 64 * 2**10
"""What may wait behind the request that is being answered."""
MOST_SKIPPED_BYTES = 2**20
"""A refused body up to this size is read over, so that the connection can be used again; after a larger one it ends."""
REQUESTS_AT_ONCE = 16
"""Of one client, before others get their turn."""
RETRY_S = 1.0
LINGER_S = 5.0
"""How long a refused client may go on sending before it has to have read why."""

FAILED = 500
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
CLOSE = b"\r\nconnection: close\r\n\r\n"
KEEP = b"\r\nconnection: keep-alive\r\n\r\n"
"""For HTTP/1.0; in HTTP/1.1 nothing needs to be said."""


class Phase(Enum):
    """What a connection is waiting for."""

    HEAD = auto()
    """A request, or the rest of its head."""
    BODY = auto()
    REFUSED_BODY = auto()
    """The rest of a body that is not kept; then the refusal is sent."""
    ANSWER = auto()
    """Of the handler."""
    WRITING = auto()
    """The client has to read before it is answered again."""
    END = auto()
    """Nothing more is read; what was written is still on its way."""


class Connection(asyncio.Protocol):
    """Answers one client, by the router that all connections share."""

    __slots__ = (
        "_advancing",
        "_buffer",
        "_cancel",
        "_chunks",
        "_connections",
        "_generation",
        "_handler",
        "_head",
        "_held",
        "_missing",
        "_phase",
        "_reading",
        "_refusal",
        "_request_id",
        "_searched",
        "_since_s",
        "_transport",
        "_writable",
    )

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._transport: asyncio.Transport
        self._phase = Phase.HEAD
        self._since_s = connections.now_s
        """When the phase began; a head that has not begun to arrive: when the connection was last used."""
        self._buffer = bytearray()
        self._searched = 0
        """So many bytes of the buffer hold no end of a head."""
        self._head: Head
        self._handler: Handler
        self._generation = 0
        """Of the models, when the handler was found."""
        self._chunks: ChunkedBody | None = None
        self._held = 0
        """What all connections' count of held bytes has from this one."""
        self._missing = 0
        """Bytes of a refused body that are still to come."""
        self._refusal: Answer
        self._request_id = b""
        self._cancel: Cancel | None = None
        self._advancing = False
        self._reading = True
        self._writable = True

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast("asyncio.Transport", transport)
        refusal = self._connections.opened(self)
        if refusal is not None and not transport.is_closing():
            self._end_with(refusal)

    def data_received(self, data: bytes) -> None:
        """A piece of a request, or several requests."""
        if self._phase is Phase.HEAD and not self._buffer:
            end = data.find(END) + len(END)
            known = self._connections.known_head(data[:end])
            if known is not None and known.length == len(data) - end:
                self._accept(known, data[end:])
                return
        elif self._phase is Phase.END:
            return
        self._buffer += data
        if self._phase is Phase.ANSWER or self._phase is Phase.WRITING:
            self._read_on(len(self._buffer) < READ_AHEAD_BYTES)
        else:
            self._advance()
        self._hold(len(self._buffer) + (0 if self._chunks is None else len(self._chunks)))
        if self._phase is Phase.BODY and self._connections.held_bytes > self._connections.limits.max_held_bytes:
            self._end_with(answer_from_error(OverloadedError(_HELD, RETRY_S)))

    def eof_received(self) -> bool:
        """The client sends no more: it is taken to have gone. The transport closes itself, then `connection_lost`."""
        self._begin_end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as asyncio calls it
        """The client has gone: what it waits for leaves the queue."""
        self._connections.closed(self)
        self._phase = Phase.END
        self._drop()
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def pause_writing(self) -> None:
        """The client does not read its answers fast enough."""
        self._writable = False

    def resume_writing(self) -> None:
        """It has read most of them."""
        self._writable = True
        if self._phase is Phase.WRITING:
            self._await_head()
            self._advance()
            if self._connections.stopping:
                self.finish()

    # What all connections are told.

    def check_time(self, now_s: float) -> None:
        """End it where the client has taken too long."""
        limits, waited_s = self._connections.limits, now_s - self._since_s
        match self._phase:
            case Phase.HEAD if self._buffer:
                if waited_s > limits.head_s:
                    self._time_out("header", limits.head_s)
            case Phase.HEAD:
                if waited_s > limits.idle_s:
                    self._close()
            case Phase.BODY | Phase.REFUSED_BODY:
                if waited_s > limits.body_s:
                    self._time_out("body", limits.body_s)
            case Phase.WRITING:
                if waited_s > limits.body_s:
                    self.abort()
            case Phase.END:
                if waited_s > LINGER_S:
                    self.abort()

    def finish(self) -> None:
        """The server stops: end it now where it is idle, else with the answer to what it has begun."""
        if self._phase is Phase.HEAD and not self._buffer:
            self._close()

    def abort(self) -> None:
        """End it at once."""
        self._phase = Phase.END
        self._transport.abort()

    # From bytes to a request.

    def _advance(self) -> None:
        """Go as far as the buffer reaches, but leave others their turn."""
        if self._advancing:
            return
        self._advancing = True
        try:
            for _ in range(REQUESTS_AT_ONCE):
                if not self._step():
                    return
            if self._buffer:
                self._read_on(len(self._buffer) < READ_AHEAD_BYTES)
                asyncio.get_running_loop().call_soon(self._advance)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self._end_with(answer_from_error(error))
        finally:
            self._advancing = False

    def _step(self) -> bool:
        """One request further; False where more has to arrive, or be answered, first."""
        if self._phase is Phase.HEAD and not self._begin_head():
            return False
        if self._phase is Phase.REFUSED_BODY:
            self._read_over()
        elif self._phase is Phase.BODY:
            body = self._body()
            if body is None:
                return False
            self._route_again()
            self._answer(body)
        return self._phase is Phase.HEAD

    def _begin_head(self) -> bool:
        """Whether a head has arrived and the connection has gone on to the next phase."""
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):  # some clients end a body with a line end that is none of it
            del buffer[:2]
        if not buffer:
            return False
        end = buffer.find(END, self._searched)
        if end < 0:
            if not self._searched:
                self._since_s = self._connections.now_s
            check_beginning(buffer, self._searched, self._connections.limits)
            self._searched = max(1, len(buffer) - len(END) + 1)
            self._read_on(True)
            return False
        data = bytes(buffer[: end + len(END)])
        del buffer[: end + len(END)]
        self._searched = 0
        self._accept(self._connections.head(data))
        return True

    def _accept(self, head: Head, body: bytes | None = None) -> None:
        """Route a request, then go on to its body. body: it is here already."""
        self._head = head
        connections = self._connections
        self._request_id = connections.router.request_id(head.headers)
        try:
            self._handler = connections.router.route(head.method, head.path, head.headers)
            if head.length > connections.limits.max_body_bytes:
                raise too_large(connections.limits.max_body_bytes, close=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self._refuse(answer_from_error(error), 0 if body is not None else head.length)
            return
        if body is not None:
            self._answer(body)
            return
        self._phase, self._since_s = Phase.BODY, connections.now_s
        self._generation = connections.router.models.generation
        self._read_on(True)
        if head.length == CHUNKED:
            self._chunks = ChunkedBody(connections.limits.max_body_bytes)
        if head.expects and not self._buffer:
            self._transport.write(CONTINUE)

    def _refuse(self, answer: Answer, length: int) -> None:
        """Answer without the body, which the client may be sending all the same."""
        if 0 <= length <= MOST_SKIPPED_BYTES and not (length and self._head.expects):
            self._phase, self._since_s = Phase.REFUSED_BODY, self._connections.now_s
            self._refusal, self._missing = answer, length
            self._read_on(True)
            if not self._advancing:
                self._read_over()
        else:
            self._end_with(answer)

    def _read_over(self) -> None:
        taken = min(self._missing, len(self._buffer))
        del self._buffer[:taken]
        self._missing -= taken
        if not self._missing:
            self._phase = Phase.ANSWER
            self._respond(self._refusal)

    def _body(self) -> bytes | None:
        """The body once all of it is here."""
        buffer = self._buffer
        if self._chunks is not None:
            body = self._chunks.feed(buffer)
            if body is not None:
                self._chunks = None
            return body
        length = self._head.length
        if len(buffer) < length:
            return None
        body = bytes(buffer[:length]) if len(buffer) > length else bytes(buffer)
        del buffer[:length]
        return body

    # From a request to its answer.

    def _route_again(self) -> None:
        """A model may have been exchanged while the body arrived: the new one answers."""
        router, head = self._connections.router, self._head
        if self._generation != router.models.generation:
            try:
                self._handler = router.route(head.method, head.path, head.headers)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
                answer = answer_from_error(error)
                self._handler = lambda _, respond: respond(answer)

    def _answer(self, body: bytes) -> None:
        self._phase = Phase.ANSWER
        request = Request(self._head.headers, self._head.query, body)
        cancel = begun(self._handler, request, self._respond)
        if self._phase is Phase.ANSWER:
            self._cancel = cancel

    def _respond(self, answer: Answer) -> None:
        """Write an answer and go on to the next request."""
        if self._phase is not Phase.ANSWER:  # the client has gone
            log_failure(answer, self._request_id)
            return
        self._cancel = None
        head = self._head
        if not head.keep_alive or self._connections.stopping:
            self._write(answer, CLOSE)
            self._close()
            return
        self._write(answer, KEEP if head.old else END)
        self._since_s = self._connections.now_s
        if not self._writable:
            self._phase = Phase.WRITING
            return
        self._await_head()
        if self._buffer:
            self._advance()

    def _write(self, answer: Answer, ending: bytes) -> None:
        if answer.status == FAILED:
            log_failure(answer, self._request_id)
        body = answer.body if self._head.method != "HEAD" else b""
        self._transport.write(
            b"".join(
                (
                    STATUS_LINES[answer.status],
                    answer.fields.raw,
                    self._connections.date,
                    b"x-request-id: ",
                    self._request_id,
                    ending,
                    body,
                )
            )
        )

    def _await_head(self) -> None:
        self._phase, self._request_id = Phase.HEAD, b""
        if self._held:
            self._hold(len(self._buffer))
        self._read_on(len(self._buffer) < READ_AHEAD_BYTES)

    def _hold(self, count: int) -> None:
        """Let all connections know how much of this one's is in memory."""
        self._connections.held_bytes += count - self._held
        self._held = count

    def _drop(self) -> None:
        """Forget what has arrived."""
        self._buffer.clear()
        self._chunks = None
        self._hold(0)

    def _read_on(self, wanted: bool) -> None:
        """Let the transport read, or stop it: what the client sends then fills its own buffers."""
        if wanted is not self._reading:
            self._reading = wanted
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    # Ends.

    def _end_with(self, answer: Answer) -> None:
        """Answer, and read nothing more as a request.

        Closing at once would make the client's system drop the answer where more of the request arrives behind it: so
        our side is closed, and what arrives is thrown away for a while.
        """
        if self._phase is Phase.END:
            return
        self._head, self._request_id = _UNREAD, self._request_id or self._connections.router.request_id({})
        self._write(answer, CLOSE)
        self._begin_end()
        self._drop()
        self._read_on(True)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _time_out(self, part: str, limit_s: float) -> None:
        text = f"the {part} of the request did not arrive within {limit_s:g} s: send it faster, or in smaller requests"
        self._end_with(answer_from_error(ProtocolError(408, text)))

    def _close(self) -> None:
        """Close once everything that was written has gone out."""
        self._begin_end()
        self._transport.close()

    def _begin_end(self) -> None:
        self._phase, self._since_s = Phase.END, self._connections.now_s


_HELD = "the server holds as many bytes of unfinished requests as it may: send it again later"
_UNREAD = Head("", "", b"", {}, 0, keep_alive=False, expects=False, old=False)
"""Of a request whose head was not read."""
