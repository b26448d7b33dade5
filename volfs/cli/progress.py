"""Progress bars on standard error, for what takes long while somebody watches."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from volfs.cli.output import printable

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

DELAY = 0.5
"""Seconds of work before there is a bar: what is quicker needs none."""


class _Bar:
    """A bar that shows itself on a terminal once the work takes long, and goes with its context."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title = printable(title)
        self._total = total
        self._begun = time.monotonic()
        self._watched = sys.stderr is not None and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def _columns(self) -> list[ProgressColumn]:
        """What stands on the line."""
        raise NotImplementedError

    def _update(self, completed: int, text: str = "") -> bool:
        """Show how far the work has come; return whether this began the bar."""
        if not self._watched or time.monotonic() - self._begun < DELAY:
            return False
        begins = self._progress is None
        if self._progress is None:
            from rich.console import Console
            from rich.progress import Progress

            console = Console(stderr=True)
            if console.is_dumb_terminal:
                self._watched = False
                return False
            self._progress = Progress(*self._columns(), console=console, transient=True)
            self._task = self._progress.add_task(self._title, total=self._total, text=text)
            self._progress.start()
        assert self._task is not None
        self._progress.update(self._task, completed=completed, text=text)
        return begins

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


class Bar(_Bar):
    """How many of the ``total`` pieces of some work are done."""

    def __init__(self, title: str, total: int) -> None:
        # Nobody knows how much of a single piece is left: the bar only moves.
        super().__init__(title, total if total > 1 else None)
        self._done = 0

    def show(self, text: str) -> None:
        """Say what is being worked on."""
        self._update(self._done, printable(text))

    def advance(self) -> None:
        """Count one more piece as done."""
        self._done += 1

    def _columns(self) -> list[ProgressColumn]:
        from rich.progress import BarColumn, TextColumn

        return [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        ]


class Meter(_Bar):
    """How many bytes of a transfer have passed: called with their number so far.

    ``total`` is how many there will be; a function finds that out while the work goes on.
    """

    def __init__(self, title: str, total: int | Callable[[], int] | None) -> None:
        super().__init__(title, total if isinstance(total, int) else None)
        self._finding = total if callable(total) else None

    def __call__(self, count: int) -> None:
        if self._update(count) and self._finding is not None:
            # Nobody waits for it: an approximate end is only a comfort.
            threading.Thread(target=self._find, args=(self._finding,), daemon=True).start()

    def _find(self, total: Callable[[], int]) -> None:
        try:
            found = total()
        except OSError:
            return
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=found)

    def _columns(self) -> list[ProgressColumn]:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        return [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        ]
