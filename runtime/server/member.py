"""One of the processes that share a port: what the one that started it has told it, and what they say to each other.

Over a pair of sockets, in lines. Down go the words `stop` and `reload`; up go JSON arrays of a word and a text: `ready`
with the names of the models, `said` with a sentence, `reloaded`. Where the other end is closed the process that started
this one has ended, and it ends too.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path

import msgspec

from .shared_figures import SharedFigures

VARIABLE = "TRUEPORT_MEMBER"
"""Of the environment, with what the process has to know."""
READY, SAID, RELOADED = "ready", "said", "reloaded"
STOP, RELOAD = "stop", "reload"
LONGEST_LINE = 2**20
LONGEST_TEXT = 2**16


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Which one of the processes this is."""

    number: int
    """From 1 to `count`."""
    count: int
    port: int
    grpc_port: int | None
    folder: str
    """For the figures."""
    instance: str
    """Names them all, until they end."""
    channel: int
    """File descriptor of the socket to the process that started this one."""


class Member:
    """Made as soon as the process runs: from then on it does not outlive the one that started it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.figures = SharedFigures(Path(place.folder), place.number, place.count, place.instance)
        self._channel = socket.socket(fileno=place.channel)
        self._channel.set_inheritable(False)
        self._stop: Callable[[], object] = _end
        self._reload: Callable[[], object] = _end
        threading.Thread(target=self._follow, name="trueport-member", daemon=True).start()

    def say(self, sentence: str) -> None:
        """Something that whoever runs the server should know; the other process tells it once for all that say it."""
        self._tell(SAID, sentence)

    def joined(
        self,
        names: str,
        stop: Callable[[], object],
        reload: Callable[[], object],
        reloading: Callable[[], Coroutine[None, None, None]],
    ) -> Callable[[], Coroutine[None, None, None]]:
        """Requests are answered from now on. stop, reload: called in another thread when that is asked for.

        Answers `reloading`, with word of its end.
        """
        self._stop, self._reload = stop, reload

        async def told() -> None:
            try:
                await reloading()
            finally:
                self._tell(RELOADED)

        self._tell(READY, names)
        return told

    def _tell(self, word: str, text: str = "") -> None:
        with suppress(OSError):  # nobody is there any more: the other thread learns of it too
            self._channel.sendall(msgspec.json.encode((word, text[:LONGEST_TEXT])) + b"\n")

    def _follow(self) -> None:
        with suppress(OSError), self._channel.makefile("r") as lines:
            for line in lines:
                (self._reload if line.strip() == RELOAD else self._stop)()
        self.figures.leave()
        shutil.rmtree(self.place.folder, ignore_errors=True)  # whoever made it can't
        self._stop()


def member_from_environment() -> Member | None:
    """What this process is; None where it was started by itself."""
    text = os.environ.pop(VARIABLE, None)
    return None if text is None else Member(msgspec.json.decode(text, type=Place))


def _end() -> None:
    """Before any request was accepted."""
    os._exit(128 + signal.SIGTERM)
