"""A progress bar on standard error, for what takes long while somebody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from volfs.cli.output import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY = 0.5
"""Seconds of work before there is a bar: what is quicker needs none."""


class Bar:
    """How far some work has come. It shows itself once the work takes long, on a terminal."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._begun = time.monotonic()
        self._watched = sys.stderr is not None and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def show(self, text: str) -> None:
        """Say what is being worked on."""
        if not self._watched or time.monotonic() - self._begun < DELAY:
            return
        text = printable(text)
        if self._progress is None:
            self._start(text)
        elif self._task is not None:
            self._progress.update(self._task, completed=self._done, text=text)

    def advance(self) -> None:
        """Count one of the ``total`` pieces of work as done."""
        self._done += 1

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._progress is not None:
            self._progress.stop()

    def _start(self, text: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        if console.is_dumb_terminal:
            self._watched = False
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            transient=True,
        )
        # Of a single piece nobody knows how much is left: the bar only moves.
        total = self._total if self._total > 1 else None
        self._task = self._progress.add_task(
            self._title, completed=self._done, total=total, text=text
        )
        self._progress.start()


@contextmanager
def progress(title: str, total: int) -> Iterator[Bar]:
    """A bar for work of ``total`` pieces, taken away when the work ends."""
    bar = Bar(title, total)
    try:
        yield bar
    finally:
        bar.close()
