"""Serving on a port until a signal: uvicorn on plain asyncio and h11, or on uvloop and httptools where installed."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from ..errors import UsageError
from .app import DEFAULT_LIMITS, App
from .contract import ServerLimits

if TYPE_CHECKING:
    import uvicorn

    from ..session import Session

BACKLOG = 2048
KEEP_ALIVE_S = 75
"""Longer than clients and proxies keep an idle connection, so that it is not closed under a request."""
HIGHEST_PORT = 65535

logger = logging.getLogger("trueport.server")


def serve(
    sessions: Sequence[Session],
    host: str = "127.0.0.1",
    port: int = 8000,
    log: Callable[[str], None] = logger.info,
    limits: ServerLimits = DEFAULT_LIMITS,
) -> None:
    """Serve until SIGINT or SIGTERM, answer what was begun, then close the sessions and return.

    port: 0 takes a free one. log: called with one sentence that holds the URL once requests are answered.
    Raises UsageError where the address can't be had or a model can't be served; the sessions are closed then too.
    """
    try:
        app = App(sessions, limits)
        with _bound(host, port) as listener:
            names = ", ".join(session.manifest.name for session in sessions)
            server = _server(app, limits.drain_s, lambda: log(f"serving {names} on {_url(listener)}, Ctrl-C stops it"))
            with _quiet_signals(server):
                server.run(sockets=[listener])
    finally:
        for session in sessions:
            session.close()


def _server(app: App, drain_s: int, started: Callable[[], None]) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            started()

    config = uvicorn.Config(
        app,
        loop="auto",
        http="auto",
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
    )
    return Server(config)


@contextmanager
def _quiet_signals(server: uvicorn.Server) -> Iterator[None]:
    """Make a signal a normal end: uvicorn raises it once more after its shutdown, which would kill this process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal calls it
        server.should_exit = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    if not 0 <= port <= HIGHEST_PORT:
        raise UsageError(f"port has to be from 0 (any free one) to {HIGHEST_PORT}, found {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except (OSError, ValueError) as error:  # ValueError: no name at all, as a..b
        raise UsageError(_bind_problem(error, host, port)) from error


def _bind_problem(error: OSError | ValueError, host: str, port: int) -> str:
    if isinstance(error, ValueError | socket.gaierror):
        return f"{host!r} is no address of this machine: 127.0.0.1 serves this machine alone, 0.0.0.0 every network"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there, or give another port (0 takes a free one)"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs rights this user does not have: give a port of 1024 or above"
    return f"can't listen on {host} port {port}: {error.strerror or error}"


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"
