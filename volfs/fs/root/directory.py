"""The root directory: entries are volumes.

Synchronous functions; those that may block say so.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import time
from collections.abc import Iterator

from volfs.errors import VolfsError, VolumeNotFoundError
from volfs.fs.files import Found, Names
from volfs.fs.inodes import HandleTable, InodeTable, RootHandle
from volfs.fs.native import MadeStatus, Status, fstat
from volfs.fs.root.holders import OpenHolders, command_of, open_top
from volfs.fs.root.sticky import may_take
from volfs.linux import syscalls
from volfs.linux.identity import Requester, who
from volfs.linux.syscalls import os_error
from volfs.store import OpenFile, Permit, VolumeStore
from volfs.volume import NewVolume, Owner, Volume, can_name, check_name

_FIRST_OFFSET = 3
"""Offset of the first entry in a listing of the root; those before are the dots'."""


class Root:
    """The requests on the root directory.

    ``mode`` and ``owner`` (uid, gid) are its own; ``only_empty``: a volume that holds data is not
    removed.
    """

    def __init__(
        self,
        store: VolumeStore,
        inodes: InodeTable,
        handles: HandleTable,
        names: Names,
        *,
        mode: int,
        owner: tuple[int, int],
        only_empty: bool,
    ) -> None:
        self._store = store
        self._inodes = inodes
        self._handles = handles
        self._files = names
        self._mode = mode
        self._owner = owner
        self._only_empty = only_empty
        self._names: list[str] = store.names()
        self._numbers = itertools.count(_FIRST_OFFSET)
        self._offsets = {name: next(self._numbers) for name in self._names}
        self._listing = threading.Lock()
        self._changed_ns = time.time_ns()
        self._local: set[bytes] = set()
        self._holders = OpenHolders(handles)
        store.add_holder_source(self._holders.of)

    def open_files(self, name: str) -> list[OpenFile]:
        """What is open in this tree of the volume of that name. May block."""
        try:
            return self._holders.files_of(self._store.get(name))
        except VolumeNotFoundError:
            return []

    # -- the directory itself

    def getattr(self) -> Status:
        now = self._changed_ns
        # As btrfs does: one link, since counting the volumes is not worth a listing.
        mode = stat.S_IFDIR | self._mode
        return MadeStatus(mode, 1, *self._owner, 4096, now, now, now)

    def getattr_anew(self) -> Status:
        """As ``getattr``, with the time of changes made beside the mount too. May block."""
        self._list()
        return self.getattr()

    def lookup(self, name: bytes) -> Found | None:
        """The volume ``name``, None if there is none. May block, unless ``is_quick``."""
        try:
            volume = self._store.get(name.decode())
            fd = open_top(volume)
        except (VolumeNotFoundError, UnicodeDecodeError, FileNotFoundError):
            self._local.discard(name)
            return None
        inode, status = self._files.found(self._inodes.root, name, fd)
        if not self._inodes.root.device.slow and not inode.device.slow:
            self._local.add(name)
        return inode, status

    def is_quick(self, name: bytes) -> bool:
        """Whether looking up ``name`` is known not to block: a volume seen on a local
        filesystem before, or no volume name at all."""
        return name in self._local or not can_exist(name)

    def find(self, node_id: int) -> Found | None:
        """The volume whose top directory has this node id, as ``lookup`` does. May block."""
        for name in self._store.names():
            try:
                found = self.lookup(name.encode())
            except (VolfsError, OSError):
                continue  # broken: a look-up tells how
            if found is not None:
                if found[0].node_id == node_id:
                    return found
                self._inodes.forget(found[0].node_id, 1)
        return None

    def holding(self, path: bytes) -> tuple[bytes, bytes] | None:
        """The volume that the file at a real path is in, and its path there; None if in none.

        May block.
        """
        for name in self._store.names():
            try:
                fd = open_top(self._store.get(name))
            except (VolfsError, OSError):
                continue
            try:
                top = os.readlink(b"/proc/self/fd/%d" % fd)
            finally:
                os.close(fd)
            if path == top or path.startswith(top + b"/"):
                return name.encode(), path[len(top) + 1 :]
        return None

    def opendir(self) -> RootHandle:
        handle = RootHandle()
        self._handles.add_directory(handle)
        return handle

    def entries(self, handle: RootHandle, start: int) -> Iterator[tuple[int, bytes, Found]]:
        """Offset, name and volume of each entry after offset ``start``. May block.

        Offsets 1 and 2 are those of the dots; each name then has a number of its own, so that a
        listing goes on correctly whatever has come and gone. What is yielded counts as looked up.
        """
        if start == 0 or handle.entries is None:
            handle.entries = self._list()
        for offset, name in handle.entries:
            if offset <= start:
                continue
            try:
                fd = open_top(self._store.get(name))
            except (VolfsError, OSError):
                continue  # removed since the listing, or broken: a look-up tells how
            yield offset, name.encode(), self._files.found(self._inodes.root, name.encode(), fd)

    def _list(self) -> list[tuple[int, str]]:
        names = self._store.names()
        with self._listing:
            if names != self._names:
                self._names = names
                self._changed_ns = time.time_ns()
                known = self._offsets
                self._offsets = {name: known.get(name) or next(self._numbers) for name in names}
            return sorted((offset, name) for name, offset in self._offsets.items())

    # -- volumes coming and going; all of these may block

    def mkdir(self, name: bytes, mode: int, ctx: Requester) -> Found:
        """Make a volume that belongs to the caller."""
        text = _volume_name(name)
        # As mkdir(2): of the mode, only permission bits and the sticky bit count.
        owner = Owner(ctx.uid, ctx.gid, mode & ~ctx.umask & 0o1777)
        _, fd = self._store.make(NewVolume(text, owner=owner))
        self._changed_ns = time.time_ns()
        return self._files.found(self._inodes.root, name, fd, created=True)

    def rmdir(self, name: bytes, ctx: Requester) -> None:
        """Remove a volume with its data, into the trash."""
        try:
            text = name.decode()
            fd = open_top(self._store.get(text))
        except (VolumeNotFoundError, UnicodeDecodeError, FileNotFoundError):
            raise os_error(errno.ENOENT) from None
        # Found once more, so that it is known which inodes go with it.
        top = self._inodes.remember(fstat(fd), self._inodes.root, name, fd, lookups=0)
        self._holders.await_releases(top)
        try:
            self._store.remove(
                text, by=_who(ctx), only_empty=self._only_empty, permit=self._permit(ctx)
            )
            self._inodes.detach(top)
        finally:
            self._inodes.discard(top)
        self._changed_ns = time.time_ns()

    def rename(self, name: bytes, new_name: bytes, flags: int, ctx: Requester) -> None:
        """Rename a volume, or exchange two."""
        old, new = name.decode(), _volume_name(new_name)
        permit = self._permit(ctx)
        if flags & syscalls.RENAME_EXCHANGE:
            self._store.exchange(old, new, permit=permit)
            self._note(old)
        else:
            # Also without RENAME_NOREPLACE: replacing would remove a volume unasked.
            self._store.rename(old, new, permit=permit)
        self._note(new)
        self._changed_ns = time.time_ns()

    def _permit(self, ctx: Requester) -> Permit | None:
        """What refuses volumes that who sent a request may not take off their name."""
        if not self._mode & stat.S_ISVTX:
            return None

        def permit(volume: Volume) -> None:
            fd = open_top(volume)
            try:
                owner = os.fstat(fd).st_uid
            finally:
                os.close(fd)
            if not may_take(ctx, owner, self._owner[0]):
                raise os_error(errno.EPERM)  # as unlink(2) answers for the sticky bit

        return permit

    def _note(self, name: str) -> None:
        fd = open_top(self._store.get(name))
        try:
            self._inodes.moved(fstat(fd), self._inodes.root, name.encode())
        finally:
            os.close(fd)


def can_exist(name: bytes) -> bool:
    """Whether there can ever be a volume ``name``."""
    return can_name(os.fsdecode(name))


def _volume_name(name: bytes) -> str:
    return check_name(os.fsdecode(name))


def _who(ctx: Requester) -> str:
    return f"uid {who(ctx).uid}, {command_of(ctx.pid) or 'process'} ({ctx.pid})"
