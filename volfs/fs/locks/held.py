"""What locks are held on a file, by whom."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from typing import NamedTuple

from volfs.fs.inodes import FileHandle, Inode

END = (1 << 63) - 1
"""``Lock.end`` of a lock to the end of the file, wherever that will be (OFFSET_MAX)."""

_FLOCK = struct.Struct("hhqqi4x")  # struct flock, with 64-bit offsets
_UNLOCK = _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)


class Lock(NamedTuple):
    """The bytes ``start`` to ``end``, both included, locked as ``kind``: F_RDLCK, F_WRLCK, or
    F_UNLCK for no lock; ``pid`` is who did it, in the daemon's namespace, 0 if not known.

    In the order of struct fuse_file_lock (linux/fuse.h).
    """

    start: int
    end: int
    kind: int
    pid: int = 0


class LockRequest(NamedTuple):
    """A lock to be set or dropped through ``handle`` for the record locks' ``owner``, or
    (``flock``) for the handle itself. ``thread`` is the caller's."""

    handle: FileHandle
    owner: int
    lock: Lock
    thread: int = 0
    flock: bool = False

    def excludes(self, other: LockRequest) -> bool:
        """Whether the two locks cannot be held at once."""
        mine, theirs = self.lock, other.lock
        if self.flock != other.flock:
            return False
        if self.flock:
            return self.handle is not other.handle and fcntl.F_WRLCK in (mine.kind, theirs.kind)
        return self.owner != other.owner and _conflict(mine, theirs)

    def includes(self, other: LockRequest) -> bool:
        """Whether a lock held outside that keeps ``other`` waiting keeps this waiting too."""
        mine, theirs = self.lock, other.lock
        return (
            self.flock == other.flock
            and mine.kind in (theirs.kind, fcntl.F_WRLCK)
            and mine.start <= theirs.start
            and mine.end >= theirs.end
        )


class Held(NamedTuple):
    """A record lock, with the handle that it was set through last."""

    start: int
    end: int
    kind: int
    handle: FileHandle


class LockOwner:
    """Who has record locks on a file, none of which overlaps another.

    ``fd``: the open file description they are set on, -1 while there are none. ``pid``: the
    process that set the first. ``through``: the handles used whose close is reported only at
    RELEASE.
    """

    __slots__ = ("fd", "held", "pid", "through")

    def __init__(self, pid: int) -> None:
        self.fd = -1
        self.held: list[Held] = []
        self.pid = pid
        self.through: set[FileHandle] = set()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember."""
        return not self.held and not self.through

    def set(self, new: Held) -> None:
        """Set or drop a lock on ``fd``, which is closed with the last.

        Raises BlockingIOError when the lock is held by another.
        """
        rest = _after(self.held, new)
        if not rest:
            if self.fd >= 0:
                # Where closing is told later, as in a scope that is itself on FUSE, others would
                # find the lock held for a moment longer.
                with suppress(OSError):
                    fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _UNLOCK)
            self.close()
            return
        order = _FLOCK.pack(new.kind, os.SEEK_SET, new.start, _length(new), 0)
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, order)
        except PermissionError:  # EACCES means the same here (fcntl(2))
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        self.held = rest

    def drop(self, handle: FileHandle) -> None:
        """Drop what was set through ``handle``."""
        rest = [held for held in self.held if held.handle is not handle]
        if not rest:
            self.close()
            return
        try:
            for held in self.held:
                if held.handle is handle:
                    self.set(held._replace(kind=fcntl.F_UNLCK))
        finally:
            self.held = rest

    def close(self) -> None:
        """Drop all locks."""
        fd, self.fd = self.fd, -1
        self.held = []
        if fd >= 0:
            with suppress(OSError):  # nothing was written through it that could be lost
                os.close(fd)


class LockedFile:
    """The locks on one file. ``owners``, who has had locks for longest first. ``flocks``: the kind
    by open file. ``unflushed``: open files whose close is reported only at RELEASE, when nobody has
    them open any more."""

    __slots__ = ("flocks", "inode", "owners", "unflushed")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.owners: dict[int, LockOwner] = {}
        self.flocks: dict[FileHandle, int] = {}
        self.unflushed: set[FileHandle] = set()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember."""
        return not (self.owners or self.flocks or self.unflushed)

    def against(self, number: int, lock: Lock) -> list[tuple[int, Lock]]:
        """What keeps owner ``number`` from this record lock: the first lock of each other owner."""
        found = []
        for other, owner in list(self.owners.items()):
            if other != number:
                for held in owner.held:
                    if _conflict(held, lock):
                        found.append((other, Lock(held.start, held.end, held.kind, owner.pid)))
                        break
        return found

    def flocked_against(self, handle: FileHandle, kind: int) -> bool:
        """Whether another open file has a flock that conflicts with one of this kind."""
        return any(
            fcntl.F_WRLCK in (kind, other_kind)
            for other, other_kind in self.flocks.items()
            if other is not handle
        )


def conflicting(fd: int, lock: Lock) -> Lock:
    """What keeps the open file description ``fd`` from ``lock``: see F_OFD_GETLK in fcntl(2).

    Its kind is F_UNLCK if nothing does; its pid 0 if it belongs to no process.
    """
    order = _FLOCK.pack(lock.kind, os.SEEK_SET, lock.start, _length(lock), 0)
    kind, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, order))
    if kind == fcntl.F_UNLCK:
        return lock._replace(kind=kind, pid=0)
    return Lock(start, start + length - 1 if length else END, kind, max(pid, 0))


def _conflict(one: Lock | Held, other: Lock | Held) -> bool:
    return (
        one.start <= other.end
        and one.end >= other.start
        and fcntl.F_WRLCK in (one.kind, other.kind)
    )


def _length(lock: Lock | Held) -> int:
    return 0 if lock.end == END else lock.end - lock.start + 1


def _after(before: list[Held], new: Held) -> list[Held]:
    """What is held once ``new`` is set over what was held ``before``."""
    rest = []
    for old in before:
        alike = old.kind == new.kind and old.handle is new.handle
        if alike and old.start <= new.end + 1 and old.end >= new.start - 1:
            new = new._replace(start=min(old.start, new.start), end=max(old.end, new.end))
        elif old.end < new.start or old.start > new.end:
            rest.append(old)
        else:
            if old.start < new.start:
                rest.append(old._replace(end=new.start - 1))
            if old.end > new.end:
                rest.append(old._replace(start=new.end + 1))
    if new.kind != fcntl.F_UNLCK:
        rest.append(new)
    return sorted(rest, key=lambda held: held.start)
