"""Sides: a file and two processes that lock it, each reaching it in its own way."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.mount.locker import Locker

READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
SHARED, EXCLUSIVE, UNLOCK = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN

KINDS = ("native", "tree", "out", "in")
"""Who is where: both in a plain directory, both in the tree, one in the tree and the other on the
real path, and the reverse."""

everywhere = pytest.mark.parametrize("sides", [*KINDS, "nested", "nested-out"], indirect=True)
"""Also in the tree that has its scope in another."""


@dataclass
class Sides:
    """One file, as two processes reach it."""

    one: Locker
    other: Locker
    one_path: Path
    other_path: Path
    kind: str

    def gets(self, attempt: Callable[[], object]) -> None:
        """What was dropped by closing can be had: at once, or from outside a moment later."""
        if self.kind in ("native", "tree", "in"):
            assert attempt() is None
        else:
            wait_for(lambda: attempt() is None, "the lock to be dropped")


def begin_to_wait(locker: Locker, what: str, fd: int) -> None:
    """Have it wait for an exclusive lock; returns when it does."""
    if what == "flock":
        locker.begin("flock", fd, EXCLUSIVE, True)
    else:
        locker.begin("wait", fd, WRITE)
    wait_for(lambda: locker.waits_for_a_lock, "the process to wait for the lock")


def take(locker: Locker, what: str, fd: int, kind: int = WRITE) -> None:
    """Have it take a lock, or drop it, which must succeed at once."""
    if what == "flock":
        flocks = {WRITE: EXCLUSIVE, READ: SHARED, NONE: UNLOCK}
        assert locker("flock", fd, flocks[kind]) is None
    else:
        assert locker("set", fd, kind) is None
