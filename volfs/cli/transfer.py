"""How long transfers of bytes look to whoever waits for them, and how they are broken off."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from volfs.cli.progress import DELAY

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Meter:
    """A bar on standard error, if that is a terminal, once the transfer takes long.

    Called with the number of bytes so far.
    """

    def __init__(self, title: str, total: int | Callable[[], int] | None) -> None:
        """``total`` is how many bytes there will be; a function may find out beside the work."""
        self._title = title
        self._total = total
        self._begun = time.monotonic()
        self._watched = sys.stderr is not None and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, count: int) -> None:
        if not self._watched or time.monotonic() - self._begun < DELAY:
            return
        if self._progress is None:
            self._start()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=count)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._progress is not None:
            self._progress.stop()

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = Console(stderr=True)
        if console.is_dumb_terminal:
            self._watched = False
            return
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        total = self._total if isinstance(self._total, int) else None
        self._task = self._progress.add_task(self._title, total=total)
        self._progress.start()
        if callable(self._total):
            # Nobody waits for it: an approximate end is only a comfort.
            threading.Thread(target=self._find_total, args=(self._total,), daemon=True).start()

    def _find_total(self, total: Callable[[], int]) -> None:
        try:
            found = total()
        except OSError:
            return
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=found)


@contextmanager
def metered(title: str, total: int | Callable[[], int] | None = None) -> Iterator[Meter]:
    """A meter, taken away when the work ends."""
    meter = Meter(title, total)
    try:
        yield meter
    finally:
        meter.close()


@contextmanager
def cleaning_up() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the work as Ctrl-C does, so that nothing of it is left.

    The exit code is then that of a program which the signal ended, as a shell shows it.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup(1) ignores the second
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
