"""Worker threads: where calls run that may block, so that the event loop does not."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakValueDictionary

import trio

from volfs.fs.agreement import Connection
from volfs.fs.inodes import Closing, Inode
from volfs.fs.requests.later import Later, interrupted
from volfs.fs.requests.stall import Stall
from volfs.linux.identity import Identity

T = TypeVar("T")

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

WAITING = 32
"""How many calls may wait in threads at once for one filesystem: one that hangs must not keep
the others from getting a thread."""


_LEASE_PAUSE = 0.002
_LEASE_PAUSE_MOST = 0.1
"""Seconds from one look whether a lease was given back to the next: doubled each time."""


class WorkerThreads:
    """Runs calls in worker threads, a bounded number for each thing they may have to wait for."""

    def __init__(self, identity: Identity, connection: Connection, closing: Closing) -> None:
        self.stall = Stall()
        self._identity = identity
        self._connection = connection
        self._closing = closing
        self._limiters: WeakValueDictionary[object, trio.CapacityLimiter] = WeakValueDictionary()
        self._running = 0
        self._pinning = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return self._running > 0

    async def run(self, call: Callable[[], T], *inodes: Inode, on: object = None) -> T:
        """Run ``call`` in a worker thread, its inodes' descriptors kept open meanwhile.

        ``on`` is what it may have to wait for, when that is not the inodes' device (without
        inodes: the scope).
        """
        key = _waited_for(inodes, on)
        limiter = self._limiters.get(key)
        if limiter is None:
            limiter = self._limiters[key] = trio.CapacityLimiter(WAITING)
        self._running += 1
        try:
            with self._pinned(inodes):
                return await trio.to_thread.run_sync(self._separately, call, limiter=limiter)
        finally:
            self._running -= 1

    def _here(self, call: Callable[[], T], inodes: tuple[Inode, ...]) -> T:
        """As ``run``, in this thread."""
        with self._pinned(inodes):
            return self._separately(call)

    def _separately(self, call: Callable[[], T]) -> T:
        self._identity.separate_umask()
        return call()

    @contextmanager
    def _pinned(self, inodes: tuple[Inode, ...]) -> Iterator[None]:
        with self._pinning:
            for inode in inodes:
                inode.pins += 1
        try:
            yield
        finally:
            with self._pinning:
                for inode in inodes:
                    inode.pins -= 1

    def elsewhere(self, call: Callable[[], T], *inodes: Inode, on: object = None) -> Later[T]:
        """``call`` in a worker thread: see ``run``."""
        return Later(
            lambda: self.run(call, *inodes, on=on),
            call=lambda: self._here(call, inodes),
            on=_waited_for(inodes, on),
        )

    def changing(self, call: Callable[[], T], *inodes: Inode, twice: bool = True) -> T | Later[T]:
        """``call``, which changes something on the filesystem of the inodes, at once if somebody
        can serve meanwhile in case that is frozen; else in a worker thread.

        ``twice``: where there is no room, it is called again when what was deleted has been let go
        of.
        """
        for inode in inodes:
            if not self.can_change(inode):
                break
        else:
            try:
                return self.stall.run(call, inodes[0].device)
            except OSError as error:
                if not twice or error.errno not in _NO_ROOM or not len(self._closing):
                    raise
        with_room = (lambda: self._with_room(call)) if twice else call
        return self._unless_stalled(self.elsewhere(with_room, *inodes), inodes[0])

    def _with_room(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except OSError as error:
            if error.errno not in _NO_ROOM or not len(self._closing):
                raise
        self._closing.settle()
        return call()

    def _unless_stalled(self, later: Later[T], inode: Inode) -> Later[T]:
        """No thread waits beside the event loop for what that waits for: it sees to it itself,
        when it goes on."""
        if inode.device is self.stall.device:
            later.call = None
        return later

    def can_change(self, inode: Inode) -> bool:
        """Whether a change on the filesystem of an inode can be made at once at present."""
        at_once = self._connection.agreement.tapped and not self.stall.relieved
        return at_once and not inode.device.slow

    def finish(self, inode: Inode) -> None:
        """Close the last descriptors of deleted files that are due. Freeing them is a change, here
        on the filesystem of ``inode`` most likely."""
        closing = self._closing
        if closing.due:
            if self.can_change(inode):
                self.stall.run(closing.finish, inode.device)
            else:
                closing.later(closing.finish)

    def where_needed(self, call: Callable[[], T], *inodes: Inode) -> T | Later[T]:
        """``call``, which changes nothing, at once, or in a worker thread where the filesystem of
        an inode is slow."""
        for inode in inodes:
            if inode.device.slow:
                return self.elsewhere(call, *inodes)
        return call()

    def past_leases(self, call: Callable[[], T], *inodes: Inode) -> Later[T]:
        """``call`` in a worker thread, again until no lease keeps it from its work (which it says
        by BlockingIOError), or its caller is interrupted.

        A lease is given back, or taken away after 45 s (/proc/sys/fs/lease-break-time). So long
        no thread waits: there are only so many.
        """
        given_up = trio.Event()

        async def wait() -> T:
            pause = _LEASE_PAUSE
            while True:
                try:
                    return await self.run(call, *inodes)
                except BlockingIOError:
                    with trio.move_on_after(pause):
                        await given_up.wait()
                if given_up.is_set():
                    raise interrupted()
                pause = min(pause * 2, _LEASE_PAUSE_MOST)

        def here() -> T:
            while True:
                try:
                    return self._here(call, inodes)
                except BlockingIOError:
                    time.sleep(_LEASE_PAUSE_MOST)

        later = Later(wait, interrupt=given_up.set, call=here, on=inodes[0].device)
        return self._unless_stalled(later, inodes[0])

    def stoppable(self, call: Callable[[Callable[[], bool]], T], *inodes: Inode) -> Later[T]:
        """``call(stopping)`` in a worker thread; when its caller is interrupted, or the daemon is
        to end, ``stopping()`` turns true, and the result is what was done until then."""

        stop = threading.Event()

        def stopping() -> bool:
            if stop.is_set():
                return True
            try:
                trio.from_thread.check_cancelled()
            except trio.Cancelled:
                return True
            return False

        return Later(lambda: self.run(lambda: call(stopping), *inodes), interrupt=stop.set)

    def syncing(self, fd: int, datasync: bool, inode: Inode) -> Later[None]:
        """fsync(2) or fdatasync(2) of an open file or directory."""

        return self.quick(lambda: (os.fdatasync if datasync else os.fsync)(fd), inode)

    def quick(self, call: Callable[[], None], inode: Inode) -> Later[None]:
        """``call`` in a worker thread that answers by itself, as far as that can be had: databases
        wait for nothing but their fsyncs, so the shortest way counts.

        The inode's descriptors may be closed meanwhile.
        """
        later = self.elsewhere(call, inode)
        later.alone = not inode.device.slow
        return later


def _waited_for(inodes: tuple[Inode, ...], on: object) -> object:
    return on or (inodes[0].device if inodes else "scope")
