"""LockTable: all locks set through the tree."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from volfs.fs.inodes import Device, FileHandle, Inode
from volfs.fs.locks.held import Held, Lock, LockedFile, LockOwner, LockRequest, conflicting
from volfs.fs.locks.processes import ProcessEnds, locks_by_description
from volfs.fs.locks.waiting import LockQueues, Tried
from volfs.linux.syscalls import os_error

_FLOCKS = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX}
_NOT_FOR_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY)


class LockTable:
    """All locks set through the tree, and who waits for one.

    ``open_again(inode, flags)`` opens the backing file once more, with an access mode and with
    O_APPEND for those that allow no other writing; ``descriptor(handle)`` is that of an open
    file, and ``note_flock(handle, has)`` hears whether a flock is set on that; ``run(call, inode)``
    runs a call in a worker thread.

    ``try_get``, ``try_set``, ``flushed`` and ``released`` do not wait on local filesystems, and
    are to be called on the event loop; on slow ones (Device.slow) in a worker thread.
    """

    def __init__(
        self,
        open_again: Callable[[Inode, int], int],
        descriptor: Callable[[FileHandle], int],
        note_flock: Callable[[FileHandle, bool], None],
        run: Callable[[Callable[[], Any], Inode], Awaitable[Any]],
    ) -> None:
        self._open_again = open_again
        self._descriptor = descriptor
        self._note_flock = note_flock
        self._run = run
        self._files: dict[Inode, LockedFile] = {}
        self._queues = LockQueues(self._try, run)
        self._ends: ProcessEnds[tuple[Inode, int]] = ProcessEnds(lambda tied: self.flushed(*tied))
        self._exclusions: dict[Device, threading.Lock] = {}

    async def serve(self) -> None:
        """Drop the locks of processes that end, until cancelled."""
        await self._ends.serve()

    def close(self) -> None:
        """Drop all record locks. (Closing the open files drops their flocks.)"""
        for file in self._files.values():
            for owner in file.owners.values():
                owner.close()
        self._files.clear()
        self._ends.close()

    @property
    def waiting(self) -> int:
        """How many wait for a lock."""
        return len(self._queues)

    # -- asking and setting

    def try_get(self, handle: FileHandle, owner: int, lock: Lock) -> Lock:
        """The lock that keeps ``owner`` from setting this record lock; F_UNLCK if none does.

        Of several it is that of the owner who has had locks on the file for longest, and of that
        owner's the first in the file: as the kernel has it (posix_test_lock in fs/locks.c).

        With F_UNLCK as its kind, one of the owner's own in that range, as F_OFD_GETLK has it.
        """
        inode = handle.inode
        with self._exclusion(inode.device):
            file = self._files.get(inode)
            if file is not None and lock.kind != fcntl.F_UNLCK:
                for _, other in file.against(owner, lock):
                    return other
            own = file.owners.get(owner) if file is not None else None
            # Without locks of its own any description will do: there are none on those of handles.
            fd = own.fd if own is not None and own.fd >= 0 else self._descriptor(handle)
            return conflicting(fd, lock)

    async def get(self, handle: FileHandle, owner: int, lock: Lock) -> Lock:
        """``try_get``, on the thread it needs."""
        answer: Lock = await self._on_its_thread(
            lambda: self.try_get(handle, owner, lock), handle.inode
        )
        return answer

    def try_set(
        self, handle: FileHandle, owner: int, lock: Lock, *, thread: int = 0, flock: bool = False
    ) -> bool:
        """Set or, with F_UNLCK, drop a lock; False if it is held by another.

        ``thread`` is the caller's, as the head of the request has it. With ``flock`` only the
        lock's kind counts. Raises OSError: ENOLCK where no descriptor can be had for it (there
        are too many, or the file may no longer be opened as the caller has it open), and what
        the backing filesystem says.
        """
        return self._try(LockRequest(handle, owner, lock, thread, flock)) is Tried.SET

    async def set(
        self,
        handle: FileHandle,
        owner: int,
        lock: Lock,
        *,
        thread: int = 0,
        flock: bool = False,
        wait: bool = False,
    ) -> None:
        """``try_set``, on the thread it needs, and waiting for the lock if asked to.

        Raises OSError: EAGAIN if the lock is held by another and was not to be waited for;
        EDEADLK if somebody it would wait for waits for its owner (in the tree; as in the kernel
        neither F_OFD locks nor flock are looked at). When cancelled, the lock is not set, unless
        it just was: then this returns.
        """
        request = LockRequest(handle, owner, lock, thread, flock)
        tried: Tried = await self._on_its_thread(lambda: self._try(request), handle.inode)
        if tried is Tried.SET:
            return
        if not wait:
            raise os_error(errno.EAGAIN)
        if not flock and self._is_deadlock(request) and not locks_by_description(thread):
            raise os_error(errno.EDEADLK)
        await self._queues.wait(request, tried)

    # -- dropping

    def flushed(self, inode: Inode, owner: int) -> None:
        """Note that a process has closed a descriptor of the file: FLUSH, with its owner."""
        with self._exclusion(inode.device):
            file = self._files.get(inode)
            known = file.owners.get(owner) if file is not None else None
            if file is None or known is None:
                return
            known.close()
            self._forget(file, owner)
            self._tidy(file)
        self._queues.wake(inode)

    def released(self, handle: FileHandle) -> None:
        """Note that nobody has an open file any more (RELEASE) and its descriptor is closed."""
        inode = handle.inode
        if inode not in self._files:
            return  # nearly always
        with self._exclusion(inode.device):
            file = self._files.get(inode)
            if file is None:
                return
            file.flocks.pop(handle, None)
            file.unflushed.discard(handle)
            for number, owner in list(file.owners.items()):
                owner.through.discard(handle)
                owner.drop(handle)
                if owner.idle:
                    self._forget(file, number)
            self._tidy(file)
        self._queues.wake(inode)

    # -- one try

    def _try(self, request: LockRequest) -> Tried:
        inode = request.handle.inode
        with self._exclusion(inode.device):
            file = self._files.get(inode)
            if file is None:
                if request.lock.kind == fcntl.F_UNLCK:
                    return Tried.SET
                file = self._files[inode] = LockedFile(inode)
            try:
                attempt = self._try_flock if request.flock else self._try_record
                tried, freed = attempt(file, request)
            finally:
                self._tidy(file)
        if freed:
            self._queues.wake(inode)
        return tried

    def _try_flock(self, file: LockedFile, request: LockRequest) -> tuple[Tried, bool]:
        """What came of it, and whether others may get now what they could not before."""
        handle, kind = request.handle, request.lock.kind
        had = file.flocks.get(handle)
        if kind == fcntl.F_UNLCK:
            if had is not None:
                fcntl.flock(self._descriptor(handle), fcntl.LOCK_UN)
                del file.flocks[handle]
                self._note_flock(handle, False)
            return Tried.SET, had is not None
        inside = file.flocked_against(handle, kind)
        if inside and had is None:
            return Tried.HELD_INSIDE, False
        try:
            fcntl.flock(self._descriptor(handle), _FLOCKS[kind] | fcntl.LOCK_NB)
        except BlockingIOError:
            # Converting a lock drops it first, and so for good when it fails (flock(2)).
            if file.flocks.pop(handle, None) is not None:
                self._note_flock(handle, False)
            return Tried.HELD_INSIDE if inside else Tried.HELD_OUTSIDE, had is not None
        file.flocks[handle] = kind
        self._note_flock(handle, True)
        return Tried.SET, had is not None

    def _try_record(self, file: LockedFile, request: LockRequest) -> tuple[Tried, bool]:
        number, lock = request.owner, request.lock
        freed = False
        owner = file.owners.get(number)
        if owner is not None and lock.pid not in (0, owner.pid) and self._ends.ended(owner.pid):
            # Another process was given the same number before the end of the first was seen.
            owner.close()
            self._forget(file, number)
            owner, freed = None, True
        if owner is None:
            owner = LockOwner(lock.pid)
        new = Held(lock.start, lock.end, lock.kind, request.handle)
        if lock.kind == fcntl.F_UNLCK:
            if owner.held:
                owner.set(new)
                freed = True
                if owner.idle:
                    self._forget(file, number)
            return Tried.SET, freed
        if file.against(number, lock):
            return Tried.HELD_INSIDE, freed
        had = bool(owner.held)
        try:
            if owner.fd < 0:
                owner.fd = self._open(file.inode, lock.kind)
            owner.set(new)
        except BlockingIOError:
            return Tried.HELD_OUTSIDE, freed
        except OSError as error:
            # EBADF: the file could not be opened for writing when its owner set the first lock.
            # To open it anew for this one would drop that.
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.EBADF):
                raise os_error(errno.ENOLCK) from None
            raise
        finally:
            if not owner.held:
                owner.close()
        if not had:
            file.owners.pop(number, None)  # it comes last now
        file.owners[number] = owner
        self._watch(file, owner, request)
        return Tried.SET, freed or (had and lock.kind == fcntl.F_RDLCK)

    def _watch(self, file: LockedFile, owner: LockOwner, request: LockRequest) -> None:
        """See to it that the lock just set is dropped when it should be."""
        inode, handle = file.inode, request.handle
        if not inode.wants_flush:
            # All that is open now was opened without having each close reported.
            file.unflushed.update(
                opened for opened in inode.opens or () if isinstance(opened, FileHandle)
            )
            inode.locked = True
        if handle in file.unflushed and handle not in owner.through:
            # A description's locks stay for whoever still has it. Where the kind of lock cannot be
            # told, they stay until RELEASE too: dropping one too early is worse.
            if not owner.through and locks_by_description(request.thread) is False:
                self._ends.tie((inode, request.owner), owner.pid)
            owner.through.add(handle)

    # -- inside

    def _open(self, inode: Inode, kind: int) -> int:
        try:
            return self._open_again(inode, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            if error.errno not in _NOT_FOR_WRITING:
                raise
        least = os.O_RDONLY if kind == fcntl.F_RDLCK else os.O_WRONLY | os.O_APPEND
        try:
            return self._open_again(inode, least)
        except OSError as error:
            if error.errno in _NOT_FOR_WRITING:  # EACCES would say that another has the lock
                raise os_error(errno.ENOLCK) from None
            raise

    def _forget(self, file: LockedFile, number: int) -> None:
        owner = file.owners.pop(number, None)
        if owner is not None:
            self._ends.untie((file.inode, number), owner.pid)

    def _tidy(self, file: LockedFile) -> None:
        if file.idle:
            self._files.pop(file.inode, None)

    def _exclusion(self, device: Device) -> AbstractContextManager[object]:
        # Only slow devices have calls on threads other than the event loop's.
        if not device.slow:
            return nullcontext()
        return self._exclusions.setdefault(device, threading.Lock())

    async def _on_its_thread(self, call: Callable[[], Any], inode: Inode) -> Any:
        return await self._run(call, inode) if inode.device.slow else call()

    def _is_deadlock(self, request: LockRequest) -> bool:
        """Whether the request would wait for its own owner, directly or through others."""
        seen: set[int] = set()
        to_see = [request]
        while to_see:
            waiting = to_see.pop()
            file = self._files.get(waiting.handle.inode)
            found = file.against(waiting.owner, waiting.lock) if file is not None else []
            for number, _ in found:
                if number == request.owner:
                    return True
                if number not in seen:
                    seen.add(number)
                    to_see += [r for r in self._queues if r.owner == number and not r.flock]
        return False
