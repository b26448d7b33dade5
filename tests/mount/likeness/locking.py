"""Calls that lock open files; none of them waits."""

from __future__ import annotations

import fcntl
import os
from struct import Struct

from tests.mount.likeness.slots import Slots

F_OFD_GETLK, F_OFD_SETLK = 36, 37

_FLOCK = Struct("@hhqqi4x")


class Locking:
    """Each public method is a call."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def flock(self, slot: int, operation: int) -> None:
        fcntl.flock(self._slots.fd(slot), operation | fcntl.LOCK_NB)

    def lock(
        self, slot: int, command: int, kind: int, whence: int, start: int, length: int
    ) -> tuple[int, ...]:
        """A record lock; of F_GETLK and F_OFD_GETLK type, whence, start, length and pid."""
        asked = _FLOCK.pack(kind, whence, start, length, 0)
        told: tuple[int, ...]
        told = _FLOCK.unpack(fcntl.fcntl(self._slots.fd(slot), command, asked))
        if command not in (fcntl.F_GETLK, F_OFD_GETLK):
            return ()
        # Of no lock the rest is what was asked.
        return told[:1] if told[0] == fcntl.F_UNLCK else told

    def getfl(self, slot: int) -> int:
        return fcntl.fcntl(self._slots.fd(slot), fcntl.F_GETFL)

    def setfl(self, slot: int, flags: int) -> None:
        fcntl.fcntl(self._slots.fd(slot), fcntl.F_SETFL, flags | os.O_NONBLOCK)
