"""Serving on a port until a signal, on uvloop where it is installed and on asyncio's own loop elsewhere."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from ..machine import available_cores
from .access import Access
from .app import DEFAULT_LIMITS
from .contract import ServerLimits
from .listening import BACKLOG, Connections, bound, url
from .replay import require_golden
from .routes import Router

if TYPE_CHECKING:
    from ..session import Session

logger = logging.getLogger("trueport.server")


def serve(
    sessions: Sequence[Session],
    host: str = "127.0.0.1",
    port: int = 8000,
    log: Callable[[str], None] = logger.info,
    limits: ServerLimits = DEFAULT_LIMITS,
    access: Access | None = None,
    gate: Callable[[Session], str] = require_golden,
) -> None:
    """Replay each golden set, then serve until SIGINT or SIGTERM, answer what was begun, close the sessions, return.

    A second signal ends the process at once, with exit code 130 for SIGINT and 143 for SIGTERM.
    port: 0 takes a free one. log: called with sentences; the one that holds the URL when requests are answered.
    access: who may ask; None: everybody who reaches the port. gate: what a session has to pass, told in a sentence.
    Raises UsageError where the address can't be had or a model can't be served, GateError where one does not answer its
    golden set as the original did; the sessions are closed then too.
    """
    with _signals() as stopping, _closed_at_the_end(sessions), bound(host, port) as listener:
        router = Router(sessions, limits, access or Access())
        try:
            for session in sessions:
                log(gate(session))
            log(_shares(sessions))
            names = ", ".join(session.manifest.name for session in sessions)
            ready = f"serving {names} on {url(listener)}, Ctrl-C stops it"
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(_until(stopping, listener, router, limits, lambda: log(ready)))
        finally:
            router.close()


class _Stopping:
    """Set by the first signal; the second one ends the process."""

    def __init__(self) -> None:
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal calls it
        """A signal has come."""
        if self._number:
            os._exit(128 + number)
        self._number = number
        if self._loop is not None and self._event is not None:
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        """Until the first signal."""
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        if not self._number:
            await self._event.wait()


async def _until(
    stopping: _Stopping, listener: socket.socket, router: Router, limits: ServerLimits, started: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()
    connections = Connections(router, limits)
    server = await loop.create_server(connections, sock=listener, backlog=BACKLOG)
    gc.collect()
    gc.freeze()  # what is loaded by now lives as long as the server: the collector need not look at it again
    started()
    await stopping.wait()
    server.close()
    await connections.drain(limits.drain_s)


@contextmanager
def _closed_at_the_end(sessions: Sequence[Session]) -> Iterator[None]:
    try:
        yield
    finally:
        for session in sessions:
            session.close()


@contextmanager
def _signals() -> Iterator[_Stopping]:
    """SIGINT and SIGTERM become a normal end. Outside the main thread, where Python hears no signals, nothing does."""
    stopping = _Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, stopping) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed; else asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _shares(sessions: Sequence[Session]) -> str:
    """How the cores are shared."""
    cores = available_cores()
    threads = ", ".join(f"{session.report.threads} for {session.manifest.name}" for session in sessions)
    return (
        f"{cores} core{'s' if cores > 1 else ''}: inference takes {threads}, pictures are decoded on {cores}, "
        "HTTP takes one thread; they share the cores as the system schedules them"
    )
