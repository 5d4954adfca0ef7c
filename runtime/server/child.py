"""One process that another one started to serve with: what it says, what it is told, how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, Process, create_subprocess_exec
from collections.abc import Callable, Sequence
from contextlib import suppress
from socket import socketpair

import msgspec

from ..errors import EXIT_INTERNAL
from .member import LONGEST_LINE, READY, RELOAD, RELOADED, SAID, STOP, VARIABLE, Place

_LINE = msgspec.json.Decoder(tuple[str, str])


class Child:
    """From its start to its end. Made and used in one event loop."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = process.pid
        self.names = ""
        """Of the models that it serves."""
        self.ready_at_s = 0.0
        """Of the loop's clock; 0: it has not been ready."""
        self._process = process
        self._reader = reader
        self._writer = writer
        self._ready = asyncio.Event()
        self._reloaded = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether it answers requests."""
        return self._ready.is_set() and not self._ended.is_set()

    async def watch(self, said: Callable[[str], None], ready: Callable[[], None]) -> int:
        """Until it has ended; answers the exit code, negative for a signal. said: called with its sentences."""
        with suppress(ConnectionError):
            async for line in self._reader:
                if not line.endswith(b"\n"):
                    break  # it was killed as it wrote
                word, text = _LINE.decode(line)
                if word == SAID:
                    said(text)
                elif word == READY:
                    self.names, self.ready_at_s = text, asyncio.get_running_loop().time()
                    self._ready.set()
                    ready()
                elif word == RELOADED:
                    self._reloaded.set()
        self._ended.set()
        self._writer.close()
        return await self._process.wait()

    async def reload(self) -> None:
        """Once it answers, let it look for changed models; until it has, or has ended."""
        await self._came(self._ready)
        if self.ready:
            self._reloaded.clear()
            self._tell(RELOAD)
            await self._came(self._reloaded)

    def stop(self) -> None:
        """Let it answer what it has accepted."""
        self._tell(STOP)

    def kill(self) -> None:
        """End it now."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def _tell(self, word: str) -> None:
        self._writer.write(f"{word}\n".encode())

    async def _came(self, event: asyncio.Event) -> None:
        waiting = [asyncio.ensure_future(each.wait()) for each in (event, self._ended)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()


async def started(command: Sequence[str], place: Place) -> Child:
    """Start one in this place. Raises OSError."""
    ours, theirs = socketpair()
    try:
        with theirs:
            place = msgspec.structs.replace(place, channel=theirs.fileno())
            process = await create_subprocess_exec(
                *command,
                stdin=DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for the process that started it, which passes it on
                env=os.environ | {VARIABLE: msgspec.json.encode(place).decode()},
            )
    except BaseException:
        ours.close()
        raise
    return Child(process, *await asyncio.open_unix_connection(sock=ours, limit=LONGEST_LINE))


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def exit_code(code: int) -> int:
    """Of the whole, where a process ended that should not have."""
    return (128 - code if code < 0 else code) or EXIT_INTERNAL
