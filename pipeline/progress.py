"""How long work shows itself: a bar on a terminal, plain lines at a moderate pace anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 5.0
"""At least so long between two lines about the same kind of work, the last one excepted."""
SECONDS_OF_SILENCE = 60.0
"""After which a log is told how far the work is: who watches it must not take it for dead."""


class Progress(Protocol):
    """A context in which work counts its pictures."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, what: str, pictures: int, done: int = 0) -> None:
        """Start on something new, of which `done` pictures were done before."""
        ...

    def advance(self, pictures: int, note: str = "") -> None:
        """So many more are done; a note that is not empty takes the place of the one before."""
        ...

    def report(self, text: str, *, last: bool = False) -> None:
        """One of many lines of its kind: on a terminal the bar stands for it, elsewhere some are shown and the last."""
        ...

    def say(self, text: str) -> None:
        """A line that is always shown."""
        ...


class Lines:
    """Plain lines without control characters.

    clock: seconds, only differences count.
    """

    def __init__(self, file: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._due = self._told_s = clock()
        self._what, self._done, self._pictures = "", 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.flush()

    def begin(self, what: str, pictures: int, done: int = 0) -> None:
        """One line, and the next report is due at once."""
        self._what, self._done, self._pictures = what, done, pictures
        self.say(f"{what}: {pictures - done:,} pictures")
        self._due = self._clock()

    def advance(self, pictures: int, note: str = "") -> None:
        """A line only where there was none for long: one a batch is noise in a log."""
        self._done += pictures
        if self._clock() >= self._told_s + SECONDS_OF_SILENCE:
            self.say(f"{self._what}: {self._done:,} of {self._pictures:,} pictures{f', {note}' if note else ''}")

    def report(self, text: str, *, last: bool = False) -> None:
        """A line, if one is due."""
        if last or self._clock() >= self._due:
            self.say(text)
            self._due = self._clock() + SECONDS_BETWEEN_LINES

    def say(self, text: str) -> None:
        """A line."""
        self._told_s = self._clock()
        print(text, file=self._file, flush=True)


class Bar:
    """rich's bar: what, note, share done, pictures a second, time left."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column
        from rich.text import Text

        class Speed(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.finished_speed or task.speed or 0:,.0f} images/s", style="progress.data.speed")

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            Speed(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, what: str, pictures: int, done: int = 0) -> None:
        """Put a new bar in the place of the one before."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task(what, total=pictures, completed=done, note="")

    def advance(self, pictures: int, note: str = "") -> None:
        """Move the bar."""
        for task in self._bar.task_ids:
            self._bar.advance(task, pictures)
            if note:
                self._bar.update(task, note=note)

    def report(self, text: str, *, last: bool = False) -> None:
        """The last one as a line that stays; the others are in the bar's note."""
        if last:
            self.say(text)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)


def open_progress(console: Console | None = None) -> Progress:
    """A bar where the console is a terminal, lines elsewhere. console: None is standard error."""
    if console is None:
        if not sys.stderr.isatty():
            return Lines(sys.stderr)
        from rich.console import Console

        console = Console(stderr=True)
    if console.quiet:
        from io import StringIO

        return Lines(StringIO())
    return Bar(console) if console.is_terminal else Lines(console.file)
