"""Relief: requests answered while the event loop waits in a change that does not come back.

A thread watches the event loop (volfs.fs.requests.stall). While that is in one change for long, as
it is when the filesystem is frozen, the thread reads the requests and answers those that read, in
the same way and with the same tables; the event loop cannot be in them meanwhile. Those that
change something are answered in threads, or wait on the filesystem that all this is about; what
takes the event loop waits for it too.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from struct import Struct
from typing import TypeVar

import trio

from volfs.fs.agreement import Connection
from volfs.fs.requests import WAITING, Stall

T = TypeVar("T")

log = logging.getLogger(__name__)

Taker = Callable[[int, int, int, int, int, int, bytes], None]
"""Takes opcode, unique, node id, uid, gid, pid and body of a request, and sees to its answer."""

_LOOK = 0.05
"""Seconds from one look at the event loop to the next; in a change for that long, it is relieved,
within twice the time."""

_IDLE_LOOKS = 20
"""After so many at which there was no change the thread sleeps until there is one."""

_PAUSE_MS = 5
"""Milliseconds at most from the event loop's return to its being noticed here."""

_COMPLAIN = 10.0
"""Seconds after which the log says so."""

_HEADER = Struct("=IIQQIIIHH")  # struct fuse_in_header
_HEAD = 4096
"""Bytes for the head of the largest request, which is a write. Whoever reads with less than that
and what was agreed for writes gets EINVAL."""


class Relief:
    """Watches the event loop, and hands requests to ``take`` in its place while it waits; then has
    it call ``on_return``."""

    def __init__(
        self, stall: Stall, connection: Connection, take: Taker, on_return: Callable[[], object]
    ) -> None:
        self._stall = stall
        self._connection = connection
        self._take = take
        self._on_return = on_return
        self._ending = threading.Event()
        self._loop = trio.lowlevel.current_trio_token()
        self._pools: dict[object, ThreadPoolExecutor] = {}
        self._delivering = threading.Lock()
        self._serving = False
        self._done: deque[Callable[[], object]] = deque()
        self._any_done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._buffer = bytearray()
        self._thread = threading.Thread(target=self._watch, name="relief", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End watching."""
        self._ending.set()
        self._stall.woken.set()
        self._thread.join()
        os.close(self._any_done)

    def elsewhere(
        self, call: Callable[[], T], on: object, done: Callable[[Callable[[], T]], object]
    ) -> None:
        """Have ``call``, which may have to wait for ``on``, run in a thread, and ``done`` be given
        its outcome as a function that returns or raises it, here or on the event loop. To be
        called in ``take``."""
        pool = self._pools.get(on)
        if pool is None:
            pool = self._pools[on] = ThreadPoolExecutor(WAITING, "meanwhile")
        future = pool.submit(call)
        future.add_done_callback(lambda future: self._deliver(lambda: done(future.result)))

    def _deliver(self, done: Callable[[], object]) -> None:
        with self._delivering:
            if self._serving:
                self._done.append(done)
                os.eventfd_write(self._any_done, 1)
                return
        with suppress(trio.RunFinishedError):
            self._loop.run_sync_soon(done)

    def _watch(self) -> None:
        stall = self._stall
        idle, last = 0, 0
        while not self._ending.wait(_LOOK):
            change = stall.changes
            if change == last and stall.goes_on(change):
                self._serve(change)
            idle = 0 if change != last or stall.device is not None else idle + 1
            last = change
            if idle > _IDLE_LOOKS:
                stall.woken.clear()
                stall.asleep = True
                # One may have begun just before it could see that.
                if stall.changes == last and not self._ending.is_set():
                    stall.woken.wait()
                stall.asleep = False
                idle = 0

    def _serve(self, change: int) -> None:
        """Serve while the event loop is in that change."""
        stall = self._stall
        agreement = self._connection.agreement
        poll = select.poll()
        poll.register(agreement.device, select.POLLIN)
        poll.register(self._any_done, select.POLLIN)
        self._buffer = bytearray(agreement.max_write + _HEAD)
        begun, complained = time.monotonic(), False
        with stall.baton:
            self._serving = stall.relieved = stall.goes_on(change)
        try:
            while stall.relieved:
                ready = dict(poll.poll(_PAUSE_MS))
                with stall.baton:
                    if not stall.goes_on(change):
                        break
                    if self._any_done in ready:
                        os.eventfd_read(self._any_done)
                        while self._done:
                            self._done.popleft()()
                    if agreement.device in ready and not self._next(agreement.device):
                        break
                if not complained and time.monotonic() - begun > _COMPLAIN:
                    complained = True
                    log.warning(
                        "a filesystem has kept a change waiting for %.0f s (is it frozen?): "
                        "further ones wait too; reading goes on",
                        _COMPLAIN,
                    )
        finally:
            with stall.baton:
                stall.relieved = False
            with self._delivering:
                self._serving = False
            for done in (*self._done, self._on_return):
                self._deliver(done)
            self._done.clear()
            self._buffer = bytearray()
            for pool in self._pools.values():
                pool.shutdown(wait=False)
            self._pools.clear()

    def _next(self, device: int) -> bool:
        """Take the next request, if there is one; False if there will be none any more."""
        try:
            length = os.readv(device, [self._buffer])
        except OSError as error:
            # Given up meanwhile, or somebody else's; or else the event loop meets it too.
            return error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT)
        _, opcode, unique, node_id, uid, gid, pid, extensions, _ = _HEADER.unpack_from(self._buffer)
        body = bytes(memoryview(self._buffer)[_HEADER.size : length - 8 * extensions])
        self._take(opcode, unique, node_id, uid, gid, pid, body)
        return True
