"""Stall: the event loop waiting in a change that does not come back.

On a frozen filesystem (fsfreeze(8)) every change waits until it is thawed, in the system call and
uninterruptibly, and nothing tells beforehand that it will. To make all changes in threads would
cost each of them a third of its time. So they are made on the event loop, and somebody watches it:
when a change takes long, that one serves the requests meanwhile (see volfs.fs.wire.relief).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from volfs.fs.inodes import Device

T = TypeVar("T")


class Stall:
    """What the event loop is in, for who watches it.

    ``changes``: how many it has begun. ``device``: where the change is that it is in, None if it
    is in none. ``relieved``: another thread answers requests in its place; who does takes ``baton``
    for each, once it has seen that the change still goes on. ``asleep``: nobody watches, until
    ``woken`` is set.
    """

    def __init__(self) -> None:
        self.changes = 0
        self.device: Device | None = None
        self.relieved = False
        self.baton = threading.Lock()
        self.asleep = True
        self.woken = threading.Event()

    def run(self, call: Callable[[], T], device: Device) -> T:
        """``call``, which changes something on ``device``, on the event loop."""
        self.changes += 1
        self.device = device
        if self.asleep:
            self.asleep = False
            self.woken.set()
        try:
            return call()
        finally:
            self.device = None
            if self.relieved:
                with self.baton:  # whatever is being answered is answered first
                    self.relieved = False

    def goes_on(self, change: int) -> bool:
        """Whether the event loop is still in the change that was the ``change``-th."""
        return self.changes == change and self.device is not None
