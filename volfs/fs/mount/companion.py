"""Companion: something else that a process serves beside a tree, such as the volume plugin.

It is never a client of that tree: whoever waits for itself in the kernel cannot be killed. What it
wants to know of the tree, a View tells.
"""

from __future__ import annotations

from typing import Protocol

import trio

from volfs.fs.inodes import InodeTable

_SHARE = 16
"""One descriptor in so many is for the service."""


class View:
    """What a tree shows, as the process that serves it knows. Safe to use from any thread."""

    def __init__(self) -> None:
        self._inodes: InodeTable | None = None

    def begin(self, inodes: InodeTable) -> None:
        """Tell of the tree with this table from now on."""
        self._inodes = inodes

    def is_stale(self, name: str, number: int) -> bool:
        """Whether the kernel may answer a look-up of the volume ``name`` from memory with one
        that had the name before, and not with the one whose inode number is ``number``.

        That is so while it has not been told of the latter and still knows the former. (Absent
        volumes it does not remember.)
        """
        if self._inodes is None:
            return False
        encoded = name.encode()
        earlier = False
        for inode in self._inodes:
            if inode.parent is self._inodes.root and inode.name == encoded and inode.lookups:
                if inode.ino == number and not inode.gone:
                    return False
                earlier = True
        return earlier


def share(limit: int) -> int:
    """Return how many descriptors a service may have open, in a process that may have ``limit``.

    The tree does without those.
    """
    return limit // _SHARE


class Service(Protocol):
    """Serves until ``stop`` is set. Raises, before it has started, what keeps it from starting."""

    async def __call__(
        self, stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None: ...


class Companion:
    """Begun once the tree answers, and ended before it is unmounted."""

    def __init__(self, service: Service | None) -> None:
        """Without a service there is nothing to begin or to end."""
        self._service = service
        self._stop = trio.Event()
        self._ended = trio.Event()

    async def begin(self, nursery: trio.Nursery) -> None:
        """Return once the service has started. Raises what kept it from starting."""
        if self._service is None or self._stop.is_set():
            self._ended.set()
        else:
            await nursery.start(self._run, self._service)

    async def end(self) -> None:
        """Tell the service to stop, and wait until it has."""
        self._stop.set()
        if self._service is not None:
            await self._ended.wait()

    async def _run(self, service: Service, task_status: trio.TaskStatus[None]) -> None:
        try:
            await service(self._stop, task_status=task_status)
        finally:
            self._ended.set()
