"""What was asked of all the processes that share a port: each writes its figures down, whoever is asked adds them up.

What a process has told is written before it is told, so that no figure falls when a process is killed; one that takes
the place of another goes on from what that one wrote.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from ..batcher import BatcherStats
from .statistics import Figures, Tally

if TYPE_CHECKING:
    from .endpoint import ModelEndpoint

STALE_S = 3.0
"""What was waiting so long ago is not told as waiting now: the process may have ended."""

Key: TypeAlias = tuple[str, str]
"""Name and version."""

logger = logging.getLogger("trueport.server")


class _Written(msgspec.Struct, frozen=True, array_like=True):
    at_s: float
    """Of the monotonic clock, which is the same for every process of the machine."""
    figures: list[Figures]


_READ = msgspec.msgpack.Decoder(_Written)


class SharedFigures:
    """Of one process. Used from one event loop.

    folder: the processes' own; number: of this one's place among them, from 1 to `count`; instance: names them all.
    """

    def __init__(
        self, folder: Path, number: int, count: int, instance: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.count = count
        self.instance = instance
        self._folder = folder
        self._path = folder / f"{number}.figures"
        self._clock = clock
        self._before = summed(map(_at_rest, _read(self._path).figures))
        """Of those that had this place before, and of models that are served no longer."""
        self._counting: list[ModelEndpoint] = []
        """Every endpoint that may still count: one that was exchanged does until it is closed."""
        self._complained = False
        self._alone = False

    def leave(self) -> None:
        """The folder is no more: from now on these figures are this process's own. Called in any thread."""
        self._alone = True

    def gathered(self, endpoints: Iterable[ModelEndpoint]) -> dict[Key, Figures]:
        """Of every process. endpoints: all that this process serves."""
        own = self._own(list(endpoints))
        self._write(own)
        return summed([*own.values(), *self._others()])

    def write(self, endpoints: Iterable[ModelEndpoint]) -> None:
        """Let the others know, now and then, where this process is not asked."""
        self._write(self._own(list(endpoints)))

    def _own(self, served: list[ModelEndpoint]) -> dict[Key, Figures]:
        ended = [each for each in self._counting if each not in served and each.session.closed]
        self._before = summed([*self._before.values(), *(_at_rest(each.figures()) for each in ended)])
        self._counting = [each for each in self._counting if each not in ended]
        self._counting += [each for each in served if each not in self._counting]
        return summed([*self._before.values(), *(each.figures() for each in self._counting)])

    def _others(self) -> Iterable[Figures]:
        for path in self._folder.glob("*.figures"):
            if path != self._path:
                written = _read(path)
                stale = written.at_s < self._clock() - STALE_S
                yield from map(_at_rest, written.figures) if stale else written.figures

    def _write(self, own: dict[Key, Figures]) -> None:
        if self._alone:
            return
        data = msgspec.msgpack.encode(_Written(self._clock(), list(own.values())))
        new = self._path.with_suffix(".new")
        try:
            # one step for whoever reads; nothing of it has to outlive the machine, so it is not waited for the disk
            new.write_bytes(data)
            new.replace(self._path)
        except OSError as error:
            if not self._complained:
                logger.warning("the other processes do not see this one's figures: %s", error)
            self._complained = True


def summed(figures: Iterable[Figures]) -> dict[Key, Figures]:
    """Of each name and version, what all of them say together."""
    sums: dict[Key, Figures] = {}
    for each in figures:
        key = each.name, each.version
        sums[key] = _sum(sums[key], each) if key in sums else each
    return sums


def _sum(first: Figures, second: Figures) -> Figures:
    one, other = first.tally, second.tally
    tally = Tally(
        success=one.success + other.success,
        success_s=one.success_s + other.success_s,
        failures={reason: count + other.failures[reason] for reason, count in one.failures.items()},
        failure_s=one.failure_s + other.failure_s,
        buckets=list(map(add, one.buckets, other.buckets)),
        last_s=max(one.last_s, other.last_s),
    )
    numbers = map(add, msgspec.structs.astuple(first.batcher), msgspec.structs.astuple(second.batcher))
    return Figures(first.name, first.version, tally, BatcherStats(*numbers))


def _at_rest(figures: Figures) -> Figures:
    """Without what is waiting: of a process that has ended nothing is."""
    batcher = msgspec.structs.replace(figures.batcher, queued_rows=0, queued_requests=0)
    return figures._replace(batcher=batcher)


def _read(path: Path) -> _Written:
    try:
        return _READ.decode(path.read_bytes())
    except FileNotFoundError:  # it has not written yet
        return _Written(0.0, [])
