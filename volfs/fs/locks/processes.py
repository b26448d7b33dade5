"""Processes that lock: when they end, and which kind of lock they ask for."""

from __future__ import annotations

import fcntl
import logging
import os
import select
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

log = logging.getLogger(__name__)

T = TypeVar("T")

_BY_DESCRIPTION = (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW)
# F_SETLK and F_SETLKW, and what 32-bit programs call them with 64-bit offsets (fcntl.h).
_BY_PROCESS = (6, 7, 13, 14)
_LOOKS = 100


class ProcessEnds(Generic[T]):
    """Tells of things that are tied to a process when that process has ended.

    ``told`` is then called once with each of them, on the event loop; it may tie and untie
    others.
    """

    def __init__(self, told: Callable[[T], object]) -> None:
        self._told = told
        self._ends = select.epoll()
        self._pidfds: dict[int, int] = {}
        self._pids: dict[int, int] = {}
        self._tied: dict[int, set[T]] = {}

    def tie(self, thing: T, pid: int) -> None:
        """Tie ``thing`` to a process that is alive.

        Nothing is done where its end cannot be seen: it is not in the daemon's pid namespace (pid
        0), or no descriptor can be had.
        """
        if self.ended(pid):  # one that had the number before
            self._end(pid)
        if pid not in self._tied:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                return
            # Readable once all threads of the process have ended (pidfd_open(2)).
            self._ends.register(pidfd, select.EPOLLIN)
            self._pidfds[pid] = pidfd
            self._pids[pidfd] = pid
            self._tied[pid] = set()
        self._tied[pid].add(thing)

    def untie(self, thing: T, pid: int) -> None:
        """Untie ``thing``, if it is tied to this process."""
        things = self._tied.get(pid)
        if things is not None:
            things.discard(thing)
            if not things:
                self._forget(pid)

    def ended(self, pid: int) -> bool:
        """Whether something is tied to a process of this number, and that process has ended."""
        pidfd = self._pidfds.get(pid)
        if pidfd is None:
            return False
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))

    async def serve(self) -> None:
        """Tell of ends, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._ends.fileno())
            for pidfd, _ in self._ends.poll(0):
                pid = self._pids.get(pidfd)
                if pid is not None:
                    self._end(pid)

    def close(self) -> None:
        """Forget all."""
        for pid in list(self._tied):
            self._forget(pid)
        self._ends.close()

    def _end(self, pid: int) -> None:
        for thing in self._forget(pid):
            try:
                self._told(thing)
            except Exception:
                log.exception("handling the end of process %d failed", pid)

    def _forget(self, pid: int) -> set[T]:
        pidfd = self._pidfds.pop(pid)
        del self._pids[pidfd]
        os.close(pidfd)  # which takes it out of the epoll set
        return self._tied.pop(pid)


def locks_by_description(thread: int) -> bool | None:
    """Whether the fcntl(2) for which ``thread`` waits is about a lock of its open file
    description (F_OFD_SETLK), not of its process; None if that cannot be told.

    The request does not say (struct fuse_lk_in in linux/fuse.h), but /proc shows the arguments
    of a system call to those who may trace the process (proc_pid_syscall(5)).
    """
    for _ in range(_LOOKS):
        try:
            with open(f"/proc/{thread}/syscall") as file:  # noqa: PTH123  (in half the time)
                fields = file.read().split()
        except OSError:
            return None
        if fields == ["running"]:
            os.sched_yield()  # it has sent its request, and is just about to wait
            continue
        command = int(fields[2], 16) & 0xFFFFFFFF if len(fields) > 3 else -1
        if command in _BY_DESCRIPTION or command in _BY_PROCESS:
            return command in _BY_DESCRIPTION
        break
    return None
