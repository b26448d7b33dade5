"""Telling whether anything in a tree has changed since it was looked at.

Each inode gets a mark made of its change time, modification time and size, which for a directory
tell of the names in it too. If in a later walk all marks are the same, nothing has changed from the
end of the one walk to the beginning of the other.

A change can hide in the granularity of change times, which were those of the clock's ticks
before Linux 6.13: a mark taken within that time of a change is not trusted. Also not seen: writes
through mappings to pages that were dirty already (see file.settle), where a filesystem never writes
back (tmpfs); changes by other hosts on network filesystems whose clocks or caches differ; direct
writes that take longer than a tick. When the clock is set back, a time can recur.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from volfs.linux.deletion import never
from volfs.linux.syscalls import syncfs
from volfs.linux.walking import LostError, Step, Walk

ROUNDS = 6
"""Walks through a tree at most, while others go on changing it."""
_TOLD = 10
_TICK = 20_000_000
"""Nanoseconds between two change times that may be the same: twice the slowest clock's tick."""
_WHOLE_SECONDS = 2_000_000_000
"""The same, for filesystems that keep no fractions."""


class Differences:
    """What one walk found changed."""

    def __init__(self) -> None:
        self.count = 0
        self.examples: list[str] = []
        self.uncertain = False
        """Whether something was changed so lately that one more change might not show."""
        self.lost = False
        """Whether the walk was given up."""

    def add(self, walk: Walk, name: str) -> None:
        """Count the entry ``name`` of the directory that ``walk`` is in."""
        self.count += 1
        if len(self.examples) < _TOLD:
            self.examples.append(walk.place(name))


class MarkedWalk(Walk):
    """A walk that tells what has changed since the last one.

    ``_known`` has for each inode of the source what its mark was, None when that was uncertain.
    """

    def __init__(self, stopping: Callable[[], bool]) -> None:
        super().__init__(stopping)
        self.changes = Differences()
        self._known: dict[int, int | None] = {}

    def look(self, top: int) -> Differences:
        """Walk once more; return what has changed since the last time."""
        self.changes = Differences()
        try:
            self.walk(top)
        except LostError:
            self.changes.lost = True
            self.changes.add(self, ".")
        return self.changes

    def is_known(self, status: os.stat_result, copy: int) -> bool:
        """Return whether an inode is as it was, and its copy is still the inode ``copy``."""
        return self._known.get(_key(status)) == _mark(status, copy)

    def know(self, status: os.stat_result, taken: int, copy: int) -> None:
        """Note how an inode was before it was copied; ``taken`` is when it was so."""
        age = abs(taken - status.st_ctime_ns)
        if age < (_TICK if status.st_ctime_ns % 1_000_000_000 else _WHOLE_SECONDS):
            self.changes.uncertain = True
            self._known[_key(status)] = None
        else:
            self._known[_key(status)] = _mark(status, copy)


class Watch:
    """Notices what changes in a tree from ``begin`` to ``end``."""

    def __init__(self, top: int, *, stopping: Callable[[], bool] = never) -> None:
        self._top = top
        self._watcher = _Watcher(stopping)

    def begin(self) -> None:
        """Look at the tree as it is. Raises OSError, InterruptedError."""
        syncfs(self._top)
        for _ in range(ROUNDS):
            if not self._watcher.look(self._top).uncertain:
                return
            wait_a_tick()

    def end(self) -> tuple[int, tuple[str, ...]]:
        """Return how many files and directories have changed, and some of their names."""
        changes = self._watcher.look(self._top)
        return changes.count, tuple(changes.examples)


class _Watcher(MarkedWalk):
    def arrive(self, parent: Step | None, step: Step) -> None:
        self._see(step.status, step.name)

    def meet(self, step: Step, entry: os.DirEntry[str]) -> None:
        try:
            self._see(entry.stat(follow_symlinks=False), entry.name)
        except FileNotFoundError:
            self.changes.add(self, entry.name)

    def leave(self, step: Step) -> None:
        pass

    def miss(self, step: Step, name: str, covered: bool) -> None:
        if not covered:
            self.changes.add(self, name)

    def _see(self, status: os.stat_result, name: str) -> None:
        if not self.is_known(status, 0):
            self.changes.add(self, name)
            self.know(status, time.time_ns(), 0)


def wait_a_tick() -> None:
    """Wait until what is changed from now on has another time."""
    time.sleep(_TICK / 1e9)


def _key(status: os.stat_result) -> int:
    return status.st_dev << 64 | status.st_ino


def _mark(status: os.stat_result, copy: int) -> int:
    return hash((status.st_ctime_ns, status.st_mtime_ns, status.st_size, copy))
