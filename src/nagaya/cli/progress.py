"""How a long job shows itself: a bar on a terminal, lines in a pipe, nothing when quiet or quick."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TextIO

from nagaya.ansi import clean

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from nagaya.cli.session import Session

GRACE_S = 0.5  # a job that ends sooner needs no bar
LINE_INTERVAL_S = 5.0  # a log of a build stays readable


class View(Protocol):
    """Where a job's progress goes."""

    def update(self, step: str, fraction: float | None) -> None:
        """`step` in words; `fraction` of the whole job, 0 to 1, None where nobody can say."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Silent:
    """For `-q`."""

    def update(self, step: str, fraction: float | None) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """For pipes and logs: a line when the step changes, and one a second at most while it goes on."""

    def __init__(self, title: str, stream: TextIO, interval_s: float = LINE_INTERVAL_S) -> None:
        self._title = title
        self._stream = stream
        self._interval_s = interval_s
        self._line = ""
        self._step = ""
        self._written_at = -interval_s

    def update(self, step: str, fraction: float | None) -> None:
        percent = "" if fraction is None else f" {min(max(fraction, 0), 1):.0%}"
        line = f"{self._title}: {clean(step)}{percent}" if step or percent else self._title
        now = time.monotonic()
        if line == self._line or (step == self._step and now - self._written_at < self._interval_s):
            return
        self._line, self._step, self._written_at = line, step, now
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        pass


class Bar:
    """For terminals: one line that is redrawn, and gone at the end. It appears after `grace_s`."""

    def __init__(self, title: str, color: bool, grace_s: float = GRACE_S) -> None:
        self._title = title
        self._color = color
        self._step = ""
        self._fraction: float | None = None
        self._rich: RichProgress | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(grace_s, self._appear)
        self._timer.daemon = True
        self._timer.start()

    def update(self, step: str, fraction: float | None) -> None:
        with self._lock:
            self._step, self._fraction = clean(step), fraction
            self._draw()

    def close(self) -> None:
        self._timer.cancel()
        self._timer.join()
        if self._rich is not None:
            self._rich.stop()

    def _draw(self) -> None:
        if self._rich is not None:
            total = None if self._fraction is None else 1.0
            task = self._rich.task_ids[0]
            self._rich.update(task, step=self._step, total=total, completed=self._fraction or 0.0)

    def _appear(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[step]}", markup=False),
        )
        console = Console(stderr=True, no_color=not self._color)
        with self._lock:
            self._rich = Progress(*columns, console=console, transient=True)
            self._rich.add_task(self._title, step="", total=None)
            self._rich.start()
            self._draw()


@contextlib.contextmanager
def view(session: Session, title: str) -> Iterator[View]:
    """The view that fits this invocation, closed at the end whatever happens."""
    shown: View
    if session.quiet:
        shown = Silent()
    elif sys.stderr.isatty():
        shown = Bar(title, session.colors(sys.stderr))
    else:
        shown = Lines(title, sys.stderr)
    with contextlib.closing(shown):
        yield shown
