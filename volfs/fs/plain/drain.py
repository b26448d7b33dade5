"""Drain: take the next request straight from the kernel while there is one.

pyfuse3 waits for each request in trio, which costs several times what a small request itself
does. While requests keep coming, asking the descriptor directly is enough, as long as the event
loop gets its turn in between.
"""

from __future__ import annotations

import inspect
import logging
import os
import select
from collections.abc import Callable

import pyfuse3
import trio

log = logging.getLogger(__name__)

_HOOK = "_wait_fuse_readable"
_TURN = 32
"""Requests taken before the event loop gets its turn."""

_SPIN = 64
"""How many times the descriptor is looked at before the process goes to sleep, as long as that
finds requests: about 100 µs, a little more than it takes to wake a client on another processor,
and saves being woken oneself. (KVM polls before it halts for the same reason.)"""

_PATIENCE = 4
"""Vain spins in a row that end it, and _RETRY waits later it is tried once more."""

_RETRY = 64

_LINGER_MS = 5
"""How long to wait for a next request outside the event loop when nothing else is going on."""


class Drain:
    """Replaces how pyfuse3's tasks wait for the descriptor ``fd`` of the FUSE device.

    One task at a time waits, the others are parked. A task that is told "readable" reads before
    anything else runs, so a read never finds nothing.
    ``others_work`` says whether something waits for the event loop, such as worker threads.
    """

    def __init__(self, fd: int, others_work: Callable[[], bool]) -> None:
        self._fd = fd
        self._others_work = others_work
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        self._poll = poller.poll
        self._parked: list[trio.lowlevel.Task] = []
        self._waiting = False
        self._relieved = False
        self._closed = False
        self._taken = 0
        self._vain = 0

    @classmethod
    def install(cls, fd: int, others_work: Callable[[], bool]) -> Drain | None:
        """Put a drain into pyfuse3 and return it; None, once logged, where that cannot be.

        The function replaced is private to pyfuse3, so it is checked to be what is expected.
        """
        hook = getattr(pyfuse3, _HOOK, None)
        if not inspect.iscoroutinefunction(hook):
            log.info("pyfuse3 waits in another way than expected: requests are not drained")
            return None
        drain = cls(fd, others_work)
        setattr(pyfuse3, _HOOK, drain.wait)
        return drain

    async def wait(self) -> bool:
        """Wait until a request can be read: True, or False when the session ends."""
        while self._waiting and not self._closed:
            await self._park()
        if self._closed:
            return False
        self._taken += 1
        if self._taken >= _TURN or not self._ready():
            self._waiting = True
            try:
                await self._readable()
            except trio.ClosedResourceError:
                self.close()
            finally:
                self._waiting = False
        if self._parked and not self._relieved:
            # It takes over if this task's request has to wait for something.
            self._relieved = True
            trio.lowlevel.reschedule(self._parked.pop())
        return not self._closed

    def _ready(self) -> bool:
        """Whether there is a request now, or soon if nothing else is going on."""
        if self._poll(0):
            return True
        if self._others_work():
            return False
        if self._vain < _PATIENCE:
            for _ in range(_SPIN):
                os.sched_yield()  # the client may be on this processor
                if self._poll(0):
                    self._vain = 0
                    return True
            self._vain += 1
        else:
            self._vain = self._vain + 1 if self._vain < _PATIENCE + _RETRY else _PATIENCE - 1
        return bool(self._poll(_LINGER_MS))

    async def _readable(self) -> None:
        if self._taken >= _TURN:
            await trio.lowlevel.checkpoint()
        self._taken = 0
        while not self._poll(0):
            await trio.lowlevel.wait_readable(self._fd)
            # Readable when the event loop looked; only a look now is to be relied upon.

    async def _park(self) -> None:
        task = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        self._parked.append(task)
        await trio.lowlevel.wait_task_rescheduled(abort)
        self._relieved = False

    def close(self) -> None:
        """Tell all waiting tasks that the session ends."""
        self._closed = True
        while self._parked:
            trio.lowlevel.reschedule(self._parked.pop())
