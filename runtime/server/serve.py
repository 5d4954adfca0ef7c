"""Serving on a port until a signal, on uvloop where it is installed and on asyncio's own loop elsewhere."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..machine import available_cores
from .access import Access
from .app import DEFAULT_LIMITS
from .contract import ServerLimits
from .listening import BACKLOG, Connections, bound, url
from .models import Models
from .replay import require_golden
from .repository import Repository, Source
from .routes import Router
from .tracing import tracing
from .watched import Seen, Watch

if TYPE_CHECKING:
    from ..session import Session
    from .grpc_service import GrpcServer
    from .member import Member

SWITCH_S = 50e-6
"""For how long one thread may keep the interpreter from another. A worker needs it for microseconds after each run,
while the loop is at its requests: at Python's own 5 ms it waits for longer than a short run takes."""
HANGUP = getattr(signal, "SIGHUP", None)
"""Systems without it have no way to say this."""

logger = logging.getLogger("trueport.server")


def serve(
    sessions: Sequence[Session],
    host: str = "127.0.0.1",
    port: int = 8000,
    log: Callable[[str], None] = logger.info,
    limits: ServerLimits = DEFAULT_LIMITS,
    access: Access | None = None,
    gate: Callable[[Session], str] = require_golden,
    *,
    grpc_port: int | None = None,
    source: Source | None = None,
    decode_threads: int | None = None,
    member: Member | None = None,
    watch: Watch | None = None,
) -> None:
    """Replay each golden set, then serve until SIGINT or SIGTERM, answer what was begun, close the sessions, return.

    A second signal ends the process at once, with exit code 130 for SIGINT and 143 for SIGTERM. SIGHUP loads those
    models anew whose bundle has been exchanged.
    port, grpc_port: 0 takes a free one; grpc_port None: no gRPC. log: called with sentences; the one that holds the URL
    when requests are answered. access: who may ask; None: everybody who reaches the port. gate: what a session has to
    pass, told in a sentence. source: where models come from while it runs; None: they stay as they are.
    decode_threads: that decode pictures; None: one for each core. member: this is one of several processes on the port.
    watch: is told of each HTTP request that has come to its end, as `Log.request` is; beside it each is a span where
    OpenTelemetry has a tracer provider by now.
    Raises UsageError where the address can't be had or a model can't be served, GateError where one does not answer its
    golden set as the original did, MissingError where gRPC is not installed; the sessions are closed then too.
    """
    with (
        _signals() as stopping,
        _switching(),
        _closed_at_the_end(sessions, limits),
        bound(host, port, shared=member is not None) as listener,
    ):
        if not sessions and source is None:
            raise UsageError("there is no model to serve: give at least one")
        models = Models(limits, decode_threads)
        if member is not None:
            models.shared = member.figures
        try:
            for session in sessions:
                passed = gate(session)
                models.add(session, passed)
                log(passed)
            log(_shares(models, member.place.count if member else 1))
            router = Router(models, access or Access(), Repository(models, source, log))
            server = _Server(router, limits, listener, host, grpc_port, log, member, _watching(watch))
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(server.run(stopping))
        finally:
            models.close()


class _Server:
    """What listens, from the first request to the last."""

    def __init__(
        self,
        router: Router,
        limits: ServerLimits,
        listener: socket.socket,
        host: str,
        grpc_port: int | None,
        log: Callable[[str], None],
        member: Member | None,
        watch: Watch | None,
    ) -> None:
        self._router = router
        self._limits = limits
        self._listener = listener
        self._host = host
        self._grpc_port = grpc_port
        self._log = log
        self._member = member
        self._watch = watch

    async def run(self, stopping: _Signals) -> None:
        """Until the first signal."""
        loop, router = asyncio.get_running_loop(), self._router
        connections = Connections(router, self._limits, self._watch)
        grpc = await self._grpc()
        server = await loop.create_server(connections, sock=self._listener, backlog=BACKLOG)
        gc.collect()
        gc.freeze()  # what is loaded by now lives as long as the server: the collector need not look at it again
        names = ", ".join(router.models.names) or "no model yet"
        stopping.begin()
        reload = router.repository.reload_changed
        if self._member is None:
            also = f" and by gRPC on port {grpc.port}" if grpc else ""
            self._log(f"serving {names} on {url(self._listener)}{also}, Ctrl-C stops it")
        else:
            reload = self._member.joined(names, stopping.stop, stopping.reload, reload)
        await stopping.wait(reload)
        end_s = loop.time() + self._limits.drain_s
        server.close()
        if grpc:
            await asyncio.gather(connections.drain(self._limits.drain_s), grpc.stop(self._limits.drain_s))
        else:
            await connections.drain(self._limits.drain_s)
        await router.repository.close(max(0.0, end_s - loop.time()))
        if router.models.shared is not None:
            router.models.shared.write(router.models)

    async def _grpc(self) -> GrpcServer | None:
        if self._grpc_port is None:
            return None
        from .grpc_service import GrpcServer

        router = self._router
        grpc = GrpcServer(
            router.models,
            router.repository,
            router.access,
            self._limits,
            router.is_ready,
            shared=self._member is not None,
        )
        await grpc.start(self._host, self._grpc_port)
        return grpc


class _Signals:
    """SIGINT and SIGTERM: the first one is waited for, the second ends the process. SIGHUP may come any time."""

    def __init__(self) -> None:
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._reload: asyncio.Event | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal calls it
        """A signal has come."""
        if number == HANGUP:
            event = self._reload
        else:
            if self._number:
                os._exit(128 + number)
            self._number, event = number, self._stop
        self._set(event)

    def begin(self) -> None:
        """Called in the loop that is to be stopped."""
        self._loop, self._stop, self._reload = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """As the first signal does, however often and in whatever thread it is called."""
        self._set(self._stop)

    def reload(self) -> None:
        """As SIGHUP does, in any thread."""
        self._set(self._reload)

    async def wait(self, reload: Callable[[], Coroutine[None, None, None]]) -> None:
        """Until the first signal that stops; `reload` at each that asks for it. Called after `begin`."""
        if self._loop is None or self._stop is None or self._reload is None:
            raise RuntimeError("wait is called after begin")
        reloading = self._loop.create_task(self._reloading(self._reload, reload))
        if not self._number:
            await self._stop.wait()
        reloading.cancel()

    def _set(self, event: asyncio.Event | None) -> None:
        if self._loop is not None and event is not None:
            with suppress(RuntimeError):  # the loop has come to its end
                self._loop.call_soon_threadsafe(event.set)

    async def _reloading(self, asked: asyncio.Event, reload: Callable[[], Coroutine[None, None, None]]) -> None:
        while True:
            await asked.wait()
            asked.clear()
            await reload()


@contextmanager
def _closed_at_the_end(sessions: Sequence[Session], limits: ServerLimits) -> Iterator[None]:
    try:
        yield
    finally:
        end_s = time.monotonic() + limits.drain_s
        for session in sessions:
            if not session.closed:
                session.close(max(0.0, end_s - time.monotonic()))


@contextmanager
def _switching() -> Iterator[None]:
    """Threads take turns more often, as long as this lasts; the setting is the whole process's."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _signals() -> Iterator[_Signals]:
    """The signals, as long as this lasts. Outside the main thread, where Python hears none, nothing changes."""
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    numbers = [signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else [])]
    before = {number: signal.signal(number, signals) for number in numbers}
    try:
        yield signals
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


def _watching(watch: Watch | None) -> Watch | None:
    """Whoever wants to know of requests; None: nobody."""
    spans = tracing()
    if watch is None or spans is None:
        return watch or spans

    def both(seen: Seen) -> None:
        watch(seen)
        spans(seen)

    return both


def _shares(models: Models, processes: int) -> str:
    """How the cores are shared."""
    cores = available_cores()
    threads = ", ".join(f"{each.session.report.threads} for {each.session.manifest.name}" for each in models)
    each_of = f", and in each of {processes} processes" if processes > 1 else ""
    return (
        f"{cores} core{'s' if cores > 1 else ''}{each_of}: inference takes {threads or 'none yet'}, pictures are "
        f"decoded on {models.decoder.threads}, HTTP takes one thread; they share the cores as the system schedules them"
    )
