"""The generator's calls that lock open files."""

from __future__ import annotations

import fcntl
import os
from functools import partial

from tests.mount.likeness.choosing import DIR, REG, Chooser, Draft
from tests.mount.likeness.locking import F_OFD_GETLK, F_OFD_SETLK
from tests.mount.likeness.world import Opened


class LockCalls:
    """Each public method drafts a call of a user, or None if there is nothing to do it on."""

    def __init__(self, chooser: Chooser) -> None:
        self._choose = chooser
        self._world = chooser.world

    def flock(self, user: int) -> Draft | None:
        choose = self._choose
        found = choose.slot(user, lambda opened: not opened.only_path and opened.kind in (REG, DIR))
        if found is None:
            return None
        slot, opened = found
        operation = choose.one((fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN))

        def noted() -> None:
            opened.locked = True

        return Draft(user, ("flock", slot, operation), opened=opened, at_once=noted)

    def lock(self, user: int) -> Draft | None:
        """Set or drop a record lock, or ask for what would keep one from being set."""
        choose = self._choose
        command = choose.one(
            (fcntl.F_SETLK, fcntl.F_SETLK, F_OFD_SETLK, fcntl.F_GETLK, F_OFD_GETLK)
        )
        sets = command in (fcntl.F_SETLK, F_OFD_SETLK)
        kind = choose.one((fcntl.F_RDLCK, fcntl.F_WRLCK))
        if sets and choose.chance(0.33):
            kind = fcntl.F_UNLCK

        def like(opened: Opened) -> bool:
            if opened.only_path or opened.kind not in (REG, DIR):
                return False
            if not sets or kind == fcntl.F_UNLCK:
                return True
            return opened.reads if kind == fcntl.F_RDLCK else opened.writes

        found = choose.slot(user, like)
        if found is None:
            return None
        slot, opened = found
        whence = choose.one((os.SEEK_SET, os.SEEK_SET, os.SEEK_CUR, os.SEEK_END))
        if opened.kind == DIR:
            whence = os.SEEK_SET
        start, length = choose.one((0, 0, 5, 10, 100, -5)), choose.one((0, 1, 10, 50, -3))
        if whence == os.SEEK_SET and choose.chance(0.9):
            start, length = abs(start) + 5, abs(length)
        call = ("lock", slot, command, kind, whence, start, length)
        if not sets or kind == fcntl.F_UNLCK:
            return Draft(user, call, opened=opened)
        by_process = command == fcntl.F_SETLK
        noted = partial(self._world.lock, user, opened, by_process=by_process)
        return Draft(user, call, opened=opened, effect=noted)

    def unlock(self, user: int, slot: int, opened: Opened) -> Draft:
        """Drop all record locks of a process on a file."""
        call = ("lock", slot, fcntl.F_SETLK, fcntl.F_UNLCK, os.SEEK_SET, 0, 0)
        forget = partial(self._world.people[user].locked.pop, opened.inode, None)
        return Draft(user, call, opened=opened, effect=forget)
