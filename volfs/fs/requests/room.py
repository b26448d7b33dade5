"""Room for what is to be opened: descriptors given up for it, and whom there is none for."""

from __future__ import annotations

import errno
import logging
import time
from typing import NamedTuple

from volfs.fs.inodes import Descriptors, HandleTable
from volfs.linux.identity import UNKNOWN, Requester, process
from volfs.linux.syscalls import os_error

log = logging.getLogger(__name__)

_OPENS = 8
"""After so many opens room is made for as many."""

_SHARE = (3, 4)
"""How much of what there is for open files one user can have, as a fraction."""

_NOBODYS = 16
"""One in so many is given without asking who it is for."""

_WARN_EVERY = 60.0
"""Seconds."""


class _Known(NamedTuple):
    """A Requester whose uid the request did not say."""

    uid: int
    gid: int
    pid: int
    umask: int


class Room:
    """Descriptors of the daemon that open files and directories may take.

    A part is in reserve, so that look-ups, listings and removals go on when files have the rest,
    and a part is for others than the user who takes most.
    """

    def __init__(self, descriptors: Descriptors, handles: HandleTable) -> None:
        self._descriptors = descriptors
        self._handles = handles
        self._opened = _OPENS - 1
        self._most_of_one = descriptors.most_opens * _SHARE[0] // _SHARE[1]
        self._plenty = descriptors.most_opens // _NOBODYS
        self._warned = -_WARN_EVERY
        self._users: dict[int, int] = {}
        self._forgotten_at = 0.0

    def make(self, who: Requester) -> Requester:
        """Note that a file or directory is about to be opened by somebody; return who that is,
        with the uid where the request did not say it, once it matters.

        Raises OSError(ENFILE) if there is to be no descriptor for it.
        """
        handles = self._handles
        used = handles.used
        self._opened += 1
        if self._opened % _OPENS == 0:  # for those to come too
            self._descriptors.make_room(_OPENS + used)
        if used < self._plenty:
            return who
        uid = who.uid
        if uid == UNKNOWN:
            uid = self._user_of(who.pid)
            who = _Known(uid, who.gid, who.pid, who.umask)
        own = handles.taken.get(uid, 0)
        if own >= self._most_of_one or used >= self._descriptors.most_opens:
            self._warn(uid, own)
            # As natively when the system has no more: it is none of the caller's own limits.
            raise os_error(errno.ENFILE)
        return who

    def _user_of(self, pid: int) -> int:
        """The user of a process, as it was within the last second: one that opens, opens more."""
        now = time.monotonic()
        if now >= self._forgotten_at:
            self._users.clear()
            self._forgotten_at = now + 1.0
        uid = self._users.get(pid)
        if uid is None:
            uid = self._users[pid] = process(pid).uid
        return uid

    def _warn(self, uid: int, own: int) -> None:
        now = time.monotonic()
        if now - self._warned < _WARN_EVERY:
            return
        self._warned = now
        log.warning(
            "too many open files: refused one to uid %d, whose take %d of the %d descriptors that "
            "the daemon has for open files; raise its limit (LimitNOFILE= of the unit, ulimit -n)",
            uid,
            own,
            self._descriptors.most_opens,
        )
