"""A listening socket, and what all of its connections share: limits, the clock, the heads that are known."""

from __future__ import annotations

import asyncio
import errno
import socket
from email.utils import formatdate
from typing import Any

from ..errors import OverloadedError, UsageError
from .answers import Answer, answer_from_error
from .connection import RETRY_S, Connection
from .contract import ServerLimits
from .http1 import Head, head_from_bytes
from .routes import Router
from .watched import Watch, WatchedConnection

BACKLOG = 2048
HIGHEST_PORT = 65535
LONGEST_KNOWN_HEAD = 2048
MOST_KNOWN_HEADS = 256
MOST_REFUSED = 64
"""Connections beyond the limit that are told so; the rest is just closed."""


class Connections:
    """Every open connection. Made and used in one event loop.

    Clients send the same head again and again: one that was read and found good is not read a second time.
    watch: is told of every request; None: nobody wants to know.
    """

    def __init__(self, router: Router, limits: ServerLimits, watch: Watch | None = None) -> None:
        self.router = router
        self._watch = watch
        self.limits = limits
        self.stopping = False
        self.now_s = 0.0
        """Of the loop's clock, as of the last tick: good enough for limits that are longer than a tick."""
        self.date = b""
        """The header field."""
        self.held_bytes = 0
        """Of requests that have not arrived whole."""
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._known: dict[bytes, Head] = {}
        self._tick_s = min(1.0, limits.head_s / 4, limits.body_s / 4, limits.idle_s / 4)
        self._emptied = asyncio.Event()
        self._ticking: asyncio.TimerHandle | None = None
        self._tick()

    def __call__(self) -> Connection:
        """A new one, as the loop's `create_server` calls it."""
        return Connection(self) if self._watch is None else WatchedConnection(self, self._watch)

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, connection: Connection) -> Answer | None:
        """Take one in; the refusal where there are too many."""
        self._open.add(connection)
        if len(self._open) <= self.limits.max_connections:
            return None
        if len(self._open) > self.limits.max_connections + MOST_REFUSED:
            connection.abort()
        text = f"the server holds {self.limits.max_connections} connections, its most: try again later"
        return answer_from_error(OverloadedError(text, RETRY_S))

    def closed(self, connection: Connection) -> None:
        """Forget one."""
        self._open.discard(connection)
        if not self._open:
            self._emptied.set()

    def known_head(self, data: bytes) -> Head | None:
        """The head that these bytes are, where they have been read before."""
        return self._known.get(data)

    def head(self, data: bytes) -> Head:
        """The head that these bytes are. Raises ProtocolError."""
        head = self._known.get(data)
        if head is None:
            head = head_from_bytes(data, self.limits)
            if len(data) <= LONGEST_KNOWN_HEAD:
                if len(self._known) >= MOST_KNOWN_HEADS:
                    del self._known[next(iter(self._known))]
                self._known[data] = head
        return head

    async def drain(self, seconds: float) -> None:
        """End the idle ones now, the others with their answer, and what is left after so many seconds at once."""
        self.stopping = True
        self.router.stop()
        for connection in list(self._open):
            connection.finish()
        if self._open:
            self._emptied.clear()
            try:
                await asyncio.wait_for(self._emptied.wait(), seconds)
            except TimeoutError:
                for connection in list(self._open):
                    connection.abort()
        if self._ticking is not None:
            self._ticking.cancel()

    def _tick(self) -> None:
        self.now_s = self._loop.time()
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        self._ticking = self._loop.call_later(self._tick_s, self._tick)
        for connection in list(self._open):
            connection.check_time(self.now_s)
        self.router.models.look_after()


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UsageError where it can't be had.

    shared: with other processes of this user that say so too. It does not listen yet: whoever listens gets its share of
    the connections, whether it is ready to answer them or not.
    """
    if not 0 <= port <= HIGHEST_PORT:
        raise UsageError(f"port has to be from 0 (any free one) to {HIGHEST_PORT}, found {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if shared:
            return _bound_shared(family, address)
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except (OSError, ValueError) as error:  # ValueError: no name at all, as a..b
        raise UsageError(_bind_problem(error, host, port)) from error


def url(listener: socket.socket) -> str:
    """Where it listens."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"


def _bound_shared(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind_problem(error: OSError | ValueError, host: str, port: int) -> str:
    if isinstance(error, ValueError | socket.gaierror):
        return f"{host!r} is no address of this machine: 127.0.0.1 serves this machine alone, 0.0.0.0 every network"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there, or give another port (0 takes a free one)"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs rights this user does not have: give a port of 1024 or above"
    return f"can't listen on {host} port {port}: {error.strerror or error}"
