"""The batching policy: who is admitted, who runs next. Pure: no threads and no clock, times come as arguments.

Rows are counted, not requests; a request is never split between batches, one larger than a batch runs alone; a free
runner takes what is waiting.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, Literal, TypeVar

import msgspec

from .errors import UsageError

# Disturbances only ever make a run slower, so a faster measurement is believed sooner.
FASTER_WEIGHT = 0.5
SLOWER_WEIGHT = 0.2
CAUTION = 1.15
"""What is expected until an answer counts so many times where it is held against a deadline: the curve leans to the
fast side, batches are not always full, and whoever is admitted should be answered in time."""


@dataclass(frozen=True)
class BatchLimits:
    """How much runs at once, how much may wait, and for how long a free runner may wait for company."""

    max_batch_rows: int = 32
    max_queue_rows: int = 1024
    """Rows waiting, those that run not counted; at least `max_batch_rows` and `max_request_rows`."""
    max_wait_s: float = 0.0
    """0: a free runner takes what is waiting. Else it waits until the oldest request has waited so long."""
    max_request_rows: int = 0
    """Of one request; 0: as many as a batch. One that is larger than a batch runs alone, in parts of its size."""

    def __post_init__(self) -> None:
        if self.max_batch_rows < 1:
            raise UsageError(f"max_batch_rows must be at least 1, found {self.max_batch_rows}")
        if self.max_request_rows < 0:
            raise UsageError(f"max_request_rows must be 0 or more, found {self.max_request_rows}")
        for name, rows in (("max_batch_rows", self.max_batch_rows), ("max_request_rows", self.request_rows)):
            if self.max_queue_rows < rows:
                raise UsageError(
                    f"max_queue_rows is {self.max_queue_rows}, expected at least the {rows} of {name}:"
                    " they have to fit in the queue"
                )
        if not 0 <= self.max_wait_s < math.inf:
            raise UsageError(f"max_wait_s must be seconds, 0 or more, found {self.max_wait_s}")

    @property
    def request_rows(self) -> int:
        """The most that a request may hold."""
        return self.max_request_rows or self.max_batch_rows

    def run_s(self, rows: int, curve: LatencyCurve) -> float:
        """What so many rows are expected to take: at once, or in parts where they are more than a batch."""
        if rows <= self.max_batch_rows:
            return curve.seconds(rows)
        parts, rest = divmod(rows, self.max_batch_rows)
        return parts * curve.seconds(self.max_batch_rows) + (curve.seconds(rest) if rest else 0.0)


@dataclass(frozen=True)
class LatencyCurve:
    """Seconds that a run takes, by its rows, as measured; without points nothing is known and a run counts as 0 s.

    Between points it is linear. Beyond them two bounds hold: fewer rows never take longer, and more rows never take
    longer than as many smaller runs.
    """

    points: tuple[tuple[float, float], ...] = ()
    """(rows, seconds), rows ascending. Rows may be fractional: a learnt point is an average of nearby sizes."""

    def __post_init__(self) -> None:
        previous = 0.0
        for rows, seconds in self.points:
            if not previous < rows < math.inf or not 0 <= seconds < math.inf:
                raise UsageError(
                    f"a latency curve holds (rows, seconds) with rows above 0 and ascending and seconds not negative,"
                    f" found ({rows}, {seconds}) after {previous:g} rows"
                )
            previous = rows

    def seconds(self, rows: float) -> float:
        """What a run of so many rows is expected to take."""
        points = self.points
        if not points:
            return 0.0
        index = bisect_left(points, (rows,))
        if index == 0:
            return points[0][1]
        rows_below, seconds_below = points[index - 1]
        if index == len(points):
            return seconds_below * rows / rows_below
        rows_above, seconds_above = points[index]
        return seconds_below + (seconds_above - seconds_below) * (rows - rows_below) / (rows_above - rows_below)

    def updated(self, rows: int, seconds: float) -> LatencyCurve:
        """The curve after one more run: an exponentially weighted average per power of two of rows.

        Both bounds are applied to the other points, so that one disturbed or first run of a size that is rare does not
        stay in the curve, where it would keep such requests from being admitted and so from being measured again.
        """
        points = self.points
        index = bisect_left(points, (rows,))
        octave = rows.bit_length()
        near = next((i for i in (index, index - 1) if 0 <= i < len(points) and _octave(points[i]) == octave), None)
        at_rows, estimate = float(rows), seconds
        if near is not None:
            weight = FASTER_WEIGHT if seconds < self.seconds(rows) else SLOWER_WEIGHT
            at_rows = points[near][0] + weight * (rows - points[near][0])
            estimate = points[near][1] + weight * (seconds - points[near][1])
        below = tuple((r, min(s, estimate)) for r, s in points[: index if near is None else near])
        above = tuple((r, min(s, estimate * r / at_rows)) for r, s in points[index if near is None else near + 1 :])
        return LatencyCurve((*below, (at_rows, estimate), *above))


def _octave(point: tuple[float, float]) -> int:
    return int(point[0]).bit_length()


class Waiting(msgspec.Struct, eq=False):
    """What the policy sees of a request; compared by identity."""

    rows: int
    arrived_s: float
    deadline_s: float
    """It is not run where it is not expected to be answered by then; inf: no deadline."""
    priority: int
    """Higher runs first."""


W = TypeVar("W", bound=Waiting)


@dataclass(slots=True)
class _Level(Generic[W]):
    """The requests of one priority. An OrderedDict: first in line, append and removal anywhere are all O(1)."""

    requests: OrderedDict[W, None] = field(default_factory=OrderedDict)
    rows: int = 0


class WaitingQueue(Generic[W]):
    """Waiting requests by priority, then arrival. Costs grow with the distinct priorities, not with the requests."""

    def __init__(self, requests: Iterable[W] = ()) -> None:
        self.rows = 0
        self._levels: dict[int, _Level[W]] = {}
        self._ascending: list[int] = []
        for request in requests:
            self.add(request)

    def __len__(self) -> int:
        return sum(len(level.requests) for level in self._levels.values())

    def __bool__(self) -> bool:
        return bool(self._levels)

    def __iter__(self) -> Iterator[W]:
        return (request for level in self.levels() for request in level)

    def levels(self) -> Iterator[Iterable[W]]:
        """The requests of each priority, highest first, each in order of arrival."""
        return (self._levels[priority].requests for priority in reversed(self._ascending))

    def rows_ahead(self, priority: int) -> int:
        """Rows that would run before a request that arrives now with this priority."""
        return sum(level.rows for known, level in self._levels.items() if known >= priority)

    def add(self, request: W) -> None:
        """Put a request at the end of its priority."""
        level = self._levels.get(request.priority)
        if level is None:
            level = self._levels[request.priority] = _Level()
            insort(self._ascending, request.priority)
        level.requests[request] = None
        level.rows += request.rows
        self.rows += request.rows

    def discard(self, request: W) -> bool:
        """Take a request out, wherever it is; False where it is not in the queue."""
        level = self._levels.get(request.priority)
        if level is None or request not in level.requests:
            return False
        del level.requests[request]
        level.rows -= request.rows
        self.rows -= request.rows
        if not level.requests:
            del self._levels[request.priority]
            self._ascending.remove(request.priority)
        return True


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request is not admitted."""

    reason: Literal["too many rows", "queue full", "deadline"]
    expected_wait_s: float
    """Until the queue is expected to have room, or to be short enough for such a deadline; 0 for too many rows."""


def admit(
    request: Waiting,
    queue: WaitingQueue[W],
    running: Collection[tuple[float, int]],
    now_s: float,
    limits: BatchLimits,
    curve: LatencyCurve,
    runners: int = 1,
) -> Refused | None:
    """Whether a request may join the queue: None where it may.

    running: when each run in progress began, and its rows; a runner without one is free.
    The expected completion assumes that batches fill up; runs that leave rows empty make it optimistic, see CAUTION.
    """
    largest = limits.max_batch_rows
    if request.rows > limits.request_rows:
        return Refused("too many rows", 0.0)
    excess = queue.rows + request.rows - limits.max_queue_rows
    if excess > 0:
        start_s = _start_s((excess - 1) // largest, running, now_s, limits, curve, runners)
        return Refused("queue full", start_s - now_s)
    if request.deadline_s == math.inf:
        return None
    ahead = queue.rows_ahead(request.priority)
    alone = request.rows > largest
    batches_ahead = -(-ahead // largest) if alone else (ahead + request.rows - 1) // largest
    start_s = _start_s(batches_ahead, running, now_s, limits, curve, runners)
    end_s = start_s + limits.run_s(request.rows if alone else ahead + request.rows - batches_ahead * largest, curve)
    late_s = now_s + CAUTION * (end_s - now_s) - request.deadline_s
    return None if late_s <= 0 else Refused("deadline", late_s)


def _start_s(
    batches_ahead: int,
    running: Collection[tuple[float, int]],
    now_s: float,
    limits: BatchLimits,
    curve: LatencyCurve,
    runners: int,
) -> float:
    """When a batch is expected to start that has so many full ones before it."""
    ends_s = sorted(max(now_s, began_s + limits.run_s(rows, curve)) for began_s, rows in running)
    free_s = [now_s] * (runners - len(ends_s)) + ends_s
    rounds, runner = divmod(batches_ahead, runners)
    return free_s[runner] + rounds * curve.seconds(limits.max_batch_rows)


@dataclass(frozen=True, slots=True)
class Batch(Generic[W]):
    """What a free runner does now: both lists leave the queue. With nothing to do, when to ask again."""

    take: list[W]
    expired: list[W]
    """Their deadline has passed, or would before they are answered beside what is taken; they are not run."""
    wait_until_s: float
    """inf: nothing is waiting. Otherwise only later than now where company is waited for."""


def next_batch(queue: WaitingQueue[W], now_s: float, limits: BatchLimits, curve: LatencyCurve) -> Batch[W]:
    """What to run now, without changing the queue; looks at the requests it returns and one more of each priority.

    A request that does not fit the rows left ends the batch: were smaller ones let past it, a large one could wait
    for ever under a stream of small ones, and nobody could tell from the queue when it will run. So does one that would
    make somebody late who was taken before it, save where `_given_up` lets it take that place.
    """
    take: list[W] = []
    expired: list[W] = []
    hurried: list[W] = []  # of `take`, those with a deadline, the nearest first
    rows, full = 0, False
    largest, never = limits.max_batch_rows, math.inf
    for level in queue.levels():
        for request in level:
            if full or (rows and rows + request.rows > largest):
                if not _late(request, request.rows, now_s, limits, curve):
                    full = True
                    break
                expired.append(request)
                continue
            if hurried or request.deadline_s < never:
                if _late(request, rows + request.rows, now_s, limits, curve):
                    expired.append(request)
                    continue
                given_up = _given_up(request, rows, hurried, queue, now_s, limits, curve)
                if given_up is None:
                    full = True
                    break
                for other in given_up:
                    take.remove(other)
                    rows -= other.rows
                expired += given_up
                del hurried[: len(given_up)]
                if request.deadline_s < never:
                    insort(hurried, request, key=_DEADLINE)
            take.append(request)
            rows += request.rows
    if not take:
        return Batch(take, expired, math.inf)
    if limits.max_wait_s > 0 and not full and rows < largest:
        until_s = min(request.arrived_s for request in take) + limits.max_wait_s
        # Company is worth a wait only where it makes nobody late.
        if until_s > now_s and not (hurried and _late(hurried[0], rows, until_s, limits, curve)):
            return Batch([], expired, until_s)
    return Batch(take, expired, now_s)


_DEADLINE = attrgetter("deadline_s")


def _late(request: Waiting, rows: int, start_s: float, limits: BatchLimits, curve: LatencyCurve) -> bool:
    """Whether a run of so many rows that starts then is expected to answer it too late."""
    return request.deadline_s < math.inf and request.deadline_s <= start_s + CAUTION * limits.run_s(rows, curve)


def _given_up(
    request: W,
    rows: int,
    hurried: list[W],
    queue: WaitingQueue[W],
    now_s: float,
    limits: BatchLimits,
    curve: LatencyCurve,
) -> list[W] | None:
    """The first of `hurried` that are not run, so that this request joins those taken; None: it does not join them.

    rows: of all taken. Only for one that would be late in the batch after this does another of its priority give way,
    with no more rows than it brings. Were a batch cut short for whoever is nearest to a deadline whatever it costs the
    next, an overloaded runner would answer a few rows at a time and let all others expire, one after the other.
    """
    if not hurried or not _late(hurried[0], rows + request.rows, now_s, limits, curve):
        return []
    left = min(queue.rows_ahead(request.priority) - rows, limits.max_batch_rows)
    if not _late(request, left, now_s + CAUTION * curve.seconds(rows), limits, curve):
        return None
    spare = request.rows
    for count, other in enumerate(hurried):
        if not _late(other, rows + spare, now_s, limits, curve):
            return hurried[:count]
        spare -= other.rows
        if spare < 0 or other.priority > request.priority:
            return None
    return hurried[:]
