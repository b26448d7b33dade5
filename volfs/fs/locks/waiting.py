"""Waiting for locks."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum, auto

import trio

from volfs.fs.inodes import Inode
from volfs.fs.locks.held import LockRequest

SOONEST = 0.001
LATEST = 0.064
"""Seconds between two tries for a lock that somebody outside the tree holds: SOONEST at first, each
time doubled, LATEST at most. To wait in the system call would take a thread for each waiter, and
could not be interrupted."""


class Tried(Enum):
    """What came of a try."""

    SET = auto()
    HELD_INSIDE = auto()
    """Held by somebody in the tree, so that it is known here when it is dropped."""
    HELD_OUTSIDE = auto()


class LockQueues:
    """Who waits for locks, a queue for each file.

    The first waiter of a queue tries for all of them, in their order: when a lock was dropped in
    the tree, and from time to time while one of them waits for what is held outside.

    ``attempt`` tries once to set a lock, and ``run`` runs a call in a worker thread.
    """

    def __init__(
        self,
        attempt: Callable[[LockRequest], Tried],
        run: Callable[[Callable[[], None], Inode], Awaitable[None]],
    ) -> None:
        self._attempt = attempt
        self._run = run
        self._queues: dict[Inode, _Queue] = {}
        self._token: trio.lowlevel.TrioToken | None = None

    def __iter__(self) -> Iterator[LockRequest]:
        """What is waited for."""
        for queue in self._queues.values():
            for waiter in queue.waiters:
                yield waiter.request

    def __len__(self) -> int:
        return sum(len(queue.waiters) for queue in self._queues.values())

    def wake(self, inode: Inode) -> None:
        """Have those waiting for locks on a file try, as one was dropped. From any thread."""
        if inode not in self._queues:
            return
        if self._token is not None and not trio.lowlevel.in_trio_task():
            self._token.run_sync_soon(self._wake_first, inode)
        else:
            self._wake_first(inode)

    async def wait(self, request: LockRequest, tried: Tried) -> None:
        """Wait until a lock is set that could not be at first.

        Raises the OSError of a try. When cancelled the lock is not set, unless it just was:
        then this returns as if nothing had happened.
        """
        inode = request.handle.inode
        self._token = trio.lowlevel.current_trio_token()
        queue = self._queues.setdefault(inode, _Queue())
        waiter = _Waiter(request, tried)
        queue.waiters.append(waiter)
        if inode.device.slow or tried is Tried.HELD_OUTSIDE:
            # It may have been dropped on the way back from the thread; or the first is to look more
            # often from now on.
            queue.waiters[0].woken.set()
        pause = SOONEST
        try:
            while not waiter.settled:
                first = queue.waiters[0] is waiter
                looks = first and any(w.tried is Tried.HELD_OUTSIDE for w in queue.waiters)
                with trio.move_on_after(pause if looks else math.inf) as scope:
                    await waiter.woken.wait()
                if scope.cancelled_caught:
                    pause = min(2 * pause, LATEST)
                waiter.woken = trio.Event()
                if queue.waiters[0] is waiter and not waiter.settled:
                    await self._try_all(inode, queue)
        except trio.Cancelled:
            if queue.trying is not None:  # in a thread, and maybe for this one
                with trio.CancelScope(shield=True):
                    await queue.trying.wait()
            if not waiter.settled:
                raise
        finally:
            queue.waiters.remove(waiter)
            if queue.waiters:
                queue.waiters[0].woken.set()
            else:
                del self._queues[inode]
        if waiter.error is not None:
            raise waiter.error

    def _wake_first(self, inode: Inode) -> None:
        queue = self._queues.get(inode)
        if queue is not None:
            queue.waiters[0].woken.set()

    async def _try_all(self, inode: Inode, queue: _Queue) -> None:
        waiters = [w for w in queue.waiters if not w.settled]
        if inode.device.slow:
            queue.trying = trio.Event()
            try:
                await self._run(lambda: self._try_each(waiters), inode)
            finally:
                queue.trying.set()
                queue.trying = None
        else:
            self._try_each(waiters)
        for waiter in waiters:
            if waiter.settled:
                waiter.woken.set()

    def _try_each(self, waiters: list[_Waiter]) -> None:
        got: list[LockRequest] = []
        outside: list[LockRequest] = []
        for waiter in waiters:
            request = waiter.request
            # What those before it met decides for most, without a system call.
            if any(request.excludes(other) for other in got):
                waiter.tried = Tried.HELD_INSIDE
                continue
            if any(request.includes(other) for other in outside):
                waiter.tried = Tried.HELD_OUTSIDE
                continue
            try:
                waiter.tried = self._attempt(request)
            except OSError as error:
                waiter.error = error
                continue
            if waiter.tried is Tried.SET:
                got.append(request)
            elif waiter.tried is Tried.HELD_OUTSIDE:
                outside.append(request)


class _Waiter:
    __slots__ = ("error", "request", "tried", "woken")

    def __init__(self, request: LockRequest, tried: Tried) -> None:
        self.request = request
        self.tried = tried
        self.error: OSError | None = None
        self.woken = trio.Event()

    @property
    def settled(self) -> bool:
        return self.tried is Tried.SET or self.error is not None


class _Queue:
    """``trying``: while a thread tries, the event that it sets when it has done so."""

    __slots__ = ("trying", "waiters")

    def __init__(self) -> None:
        self.waiters: list[_Waiter] = []
        self.trying: trio.Event | None = None
