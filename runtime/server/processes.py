"""Several processes on one port (SO_REUSEPORT): started, watched, restarted, reloaded one by one and stopped together.

This process holds the port and opens no model. Linux spreads the connections over those that listen; other systems may
give them all to one. Each process has a place, and where it ends by itself another one takes its place.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import msgspec

from ..errors import UsageError
from .child import Child, ending, exit_code, started
from .listening import bound, url
from .member import Place

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
STEADY_S = 60.0
"""Who has answered for so long did not end because of how it was started."""


def serve_in_processes(
    command: Sequence[str],
    count: int,
    host: str,
    port: int,
    log: Callable[[str], None],
    *,
    grpc_port: int | None = None,
) -> int:
    """Start processes and keep them until SIGINT or SIGTERM; answers the exit code.

    command: of each process, which finds in its environment what `member_from_environment` reads. port, grpc_port: 0
    takes a free one. log: called with sentences; the one that holds the URL when every process answers requests.
    The first signal lets each process answer what it has accepted; a second one ends them at once. SIGHUP lets them
    load their changed models anew, one after the other. At the start it is an error if one can't begin, and its exit
    code is the answer; later another one takes its place, after a pause that grows.
    Raises UsageError where the address can't be had, or the system can't share one.
    """
    if not hasattr(socket, "SO_REUSEPORT") or not hasattr(socket, "AF_UNIX"):
        raise UsageError(
            f"--processes {count}: this system can't share a port (SO_REUSEPORT): serve with one process, or with"
            " several servers on ports of their own behind a proxy"
        )
    with ExitStack() as stack:
        held = stack.enter_context(_reserved(host, port))
        place = Place(
            number=0,
            count=count,
            port=held.getsockname()[1],
            grpc_port=None,
            folder=stack.enter_context(tempfile.TemporaryDirectory(prefix="trueport-", ignore_cleanup_errors=True)),
            instance=secrets.token_hex(6),
            channel=-1,
        )
        if grpc_port is not None:
            grpc = stack.enter_context(_reserved(host, grpc_port))
            place = msgspec.structs.replace(place, grpc_port=grpc.getsockname()[1])
        return asyncio.run(_Group(command, place, url(held), log).run())


def _reserved(host: str, port: int) -> socket.socket:
    """The address, for the processes of this user alone; nobody is listening yet. Raises UsageError."""
    with bound(host, port) as alone:  # or else it might already be shared by another group of processes
        number = alone.getsockname()[1]
    return bound(host, number, shared=True)


class _Group:
    def __init__(self, command: Sequence[str], place: Place, address: str, log: Callable[[str], None]) -> None:
        self.command = command
        self.place = place
        self.log = log
        self.chorus = Chorus(log)
        self.stopping = asyncio.Event()
        self.first = asyncio.Event()
        """One process serves, so that the others will: what keeps them from it is told once. Or the group stops."""
        self.code = 0
        self._address = address
        self._keepers = [_Keeper(self, number) for number in range(1, place.count + 1)]
        self._begun = False
        self._reloading: asyncio.Task[None] | None = None
        self._again = False

    async def run(self) -> int:
        """Until every process has ended; answers the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        try:
            await asyncio.gather(self._keepers[0].keep(), *(self._follow(keeper) for keeper in self._keepers[1:]))
        finally:
            self._kill()
        return self.code

    def one_is_ready(self, name: str) -> None:
        """Tell it, or that all are for the first time."""
        self.first.set()
        children = [keeper.child for keeper in self._keepers if keeper.child and keeper.child.ready]
        if self._begun:
            self.log(f"{name} serves in its place")
        if self._begun or len(children) < len(self._keepers):
            return
        self._begun = True
        self.chorus.in_unison = False
        also = f" and by gRPC on port {self.place.grpc_port}" if self.place.grpc_port is not None else ""
        pids = ", ".join(str(child.pid) for child in children)
        where = f"{self._address}{also} in {len(children)} processes ({pids})"
        self.log(f"serving {children[0].names} on {where}, Ctrl-C stops it")

    def hopeless(self) -> bool:
        """Whether nobody serves, or not all did at the start."""
        return not self._begun or not any(keeper.child and keeper.child.ready for keeper in self._keepers)

    def give_up(self, code: int) -> None:
        """End now, with this exit code."""
        self.code = code
        self._end()
        self._kill()

    async def _follow(self, keeper: _Keeper) -> None:
        await self.first.wait()
        await keeper.keep()

    def _end(self) -> None:
        self.stopping.set()
        self.first.set()

    def _kill(self) -> None:
        for keeper in self._keepers:
            if keeper.child:
                keeper.child.kill()

    def _stop(self, number: int) -> None:
        if self.stopping.is_set():
            self.give_up(128 + number)
            return
        self._end()
        for keeper in self._keepers:
            if keeper.child:
                keeper.child.stop()

    def _reload(self) -> None:
        self._again = True  # whoever has been asked before may have looked before the last change
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.get_running_loop().create_task(self._reload_all())

    async def _reload_all(self) -> None:
        while self._again:
            self._again = False
            self.chorus.in_unison = True
            for keeper in self._keepers:
                if keeper.child:
                    await keeper.child.reload()
            self.chorus.in_unison = not self._begun
            self.log(f"all {len(self._keepers)} processes have looked for changed models")


class _Keeper:
    """Keeps one place filled."""

    def __init__(self, group: _Group, number: int) -> None:
        self.child: Child | None = None
        """The present one, or the last."""
        self._group = group
        self._number = number

    async def keep(self) -> None:
        """One process after the other, until the group stops."""
        group, pause_s = self._group, 0.0
        while not group.stopping.is_set():
            steady_s, ended = await self._one()
            if group.stopping.is_set():
                return
            pause_s = next_pause_s(pause_s, steady_s)
            group.log(f"{ended}: another one takes its place in {pause_s:g} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(group.stopping.wait(), pause_s)

    async def _one(self) -> tuple[float, str]:
        """From start to end: for how long it answered requests, and how it ended; told where the group ends with it."""
        group, name = self._group, f"process {self._number}"
        try:
            child = await started(group.command, msgspec.structs.replace(group.place, number=self._number))
        except OSError as error:
            if group.hopeless():
                raise
            return 0.0, f"{name} can't be started: {error}"
        self.child = child
        if group.stopping.is_set():
            child.kill()
        name = f"{name} ({child.pid})"
        code = await child.watch(lambda line: group.chorus.say(self._number, line), lambda: group.one_is_ready(name))
        ended = f"{name} {ending(code)}"
        if group.stopping.is_set():
            if code and child.ready_at_s and not group.code:
                group.log(f"{ended} while it was to answer what it had accepted")
                group.code = exit_code(code)
            return 0.0, ended
        if not child.ready_at_s and group.hopeless():
            group.log(f"{ended} before it could serve: the others are stopped")
            group.give_up(exit_code(code))
        return asyncio.get_running_loop().time() - child.ready_at_s if child.ready_at_s else 0.0, ended


class Chorus:
    """What the processes say: what all do at the same time is told once, else who says it is told too."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._first: dict[str, int] | None = {}

    @property
    def in_unison(self) -> bool:
        """Whether all do the same at present."""
        return self._first is not None

    @in_unison.setter
    def in_unison(self, unison: bool) -> None:
        self._first = {} if unison else None

    def say(self, number: int, line: str) -> None:
        """Of this process."""
        if self._first is None:
            self._log(f"process {number}: {line}")
        elif self._first.setdefault(line, number) == number:
            self._log(line)


def next_pause_s(pause_s: float, steady_s: float) -> float:
    """Before another process takes the place of one. pause_s: the last; steady_s: for how long it answered requests."""
    if not pause_s or steady_s >= STEADY_S:
        return FIRST_PAUSE_S
    return min(2 * pause_s, LONGEST_PAUSE_S)
