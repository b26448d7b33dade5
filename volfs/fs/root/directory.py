"""The root directory: entries are volumes.

Synchronous functions; those that may block say so.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from volfs.errors import VolumeNotFoundError
from volfs.fs.files.tree import Found, Tree
from volfs.fs.inodes.handles import DirectoryHandle, FileHandle, HandleTable, RootHandle
from volfs.fs.inodes.inode import Inode
from volfs.fs.inodes.table import InodeTable
from volfs.fs.mount.options import MountOptions
from volfs.fs.native.status import MadeStatus, Status
from volfs.holder import Holder
from volfs.linux import syscalls
from volfs.linux.identity import Requester
from volfs.store import VolumeStore
from volfs.volume import NewVolume, Owner, Volume, can_name, check_name

XATTR_PREFIX = b"volfs."
_PATH_PARTS = 256
"""How many names of a path are shown at most."""

_FIRST_OFFSET = 3
"""Offset of the first entry in a listing of the root; those before are the dots'."""

_RELEASE_TIME = 0.03
_PATIENCE = 3
"""A file is taken to be in use when this many times this many seconds brought no release."""

_LABEL_PREFIX = b"volfs.label."


class Root:
    """The requests on the root directory and on what makes its entries volumes."""

    def __init__(
        self,
        store: VolumeStore,
        inodes: InodeTable,
        handles: HandleTable,
        tree: Tree,
        options: MountOptions,
    ) -> None:
        self._store = store
        self._inodes = inodes
        self._handles = handles
        self._tree = tree
        self._options = options
        self._names: list[str] = store.names()
        self._numbers = itertools.count(_FIRST_OFFSET)
        self._offsets = {name: next(self._numbers) for name in self._names}
        self._listing = threading.Lock()
        self._changed_ns = time.time_ns()
        self._local: set[bytes] = set()
        self._owner = options.root_owner or (os.geteuid(), os.getegid())
        self.more_statistics: Callable[[], dict[str, object]] = dict
        store.add_holder_source(self._open_holders)

    # -- the directory itself

    def getattr(self) -> Status:
        now = self._changed_ns
        # As btrfs does: one link, since counting the volumes is not worth a listing.
        mode = stat.S_IFDIR | self._options.root_mode
        return MadeStatus(mode, 1, *self._owner, 4096, now, now, now)

    def getattr_anew(self) -> Status:
        """As ``getattr``, with the time of changes made beside the mount too. May block."""
        self._list()
        return self.getattr()

    def lookup(self, root: Inode, name: bytes) -> Found | None:
        """The volume ``name``, None if there is none. May block, unless ``is_quick`` says no."""
        try:
            volume = self._store.get(name.decode())
            fd = _open_top(volume)
        except (VolumeNotFoundError, UnicodeDecodeError, FileNotFoundError):
            self._local.discard(name)
            return None
        inode, status = self._tree.found(root, name, fd)
        if not root.device.slow and not inode.device.slow:
            self._local.add(name)
        return inode, status

    def is_quick(self, name: bytes) -> bool:
        """Whether looking up ``name`` is known not to block: a volume seen on a local
        filesystem before, or no volume name at all."""
        return name in self._local or not can_exist(name)

    def opendir(self) -> RootHandle:
        handle = RootHandle()
        self._handles.add_directory(handle)
        return handle

    def entries(self, handle: RootHandle, start: int) -> Iterator[tuple[int, bytes, Found]]:
        """Offset, name and volume of each entry after offset ``start``. May block.

        Offsets 1 and 2 are those of the dots; each name then has a number of its own, so that a
        listing goes on right whatever has come and gone. What is yielded is counted as looked up.
        """
        root = self._inodes.root
        assert root is not None
        if start == 0 or handle.entries is None:
            handle.entries = self._list()
        for offset, name in handle.entries:
            if offset <= start:
                continue
            try:
                fd = _open_top(self._store.get(name))
            except (VolumeNotFoundError, OSError):
                continue  # removed since the listing, or broken: a look-up tells how
            yield offset, name.encode(), self._tree.found(root, name.encode(), fd)

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

    def mkdir(self, root: Inode, name: bytes, mode: int, ctx: Requester) -> Found:
        """Make a volume that is the caller's."""
        text = _volume_name(name)
        # As mkdir(2): of the mode, only permission bits and the sticky bit count.
        owner = Owner(ctx.uid, ctx.gid, mode & ~ctx.umask & 0o1777)
        _, fd = self._store.make(NewVolume(text, owner=owner))
        self._changed_ns = time.time_ns()
        return self._tree.found(root, name, fd)

    def rmdir(self, root: Inode, name: bytes, ctx: Requester) -> None:
        """Remove a volume with its data, into the trash."""
        try:
            text = name.decode()
            fd = _open_top(self._store.get(text))
        except (VolumeNotFoundError, UnicodeDecodeError, FileNotFoundError):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        # Found once more, so that it is known which inodes go with it.
        top = self._inodes.remember(os.fstat(fd), root, name, fd, lookups=0)
        self._await_releases(top)
        try:
            self._store.remove(text, by=_who(ctx), only_empty=self._options.rmdir == "empty")
            self._inodes.detach(top)
        finally:
            self._inodes.discard(top)
        self._changed_ns = time.time_ns()

    def rename(self, root: Inode, name: bytes, new_name: bytes, flags: int) -> None:
        """Rename a volume, or exchange two."""
        old, new = name.decode(), _volume_name(new_name)
        if flags & syscalls.RENAME_EXCHANGE:
            self._store.exchange(old, new)
            self._note(root, old)
        else:
            # Also without RENAME_NOREPLACE: replacing would remove a volume unasked.
            self._store.rename(old, new)
        self._note(root, new)
        self._changed_ns = time.time_ns()

    def _note(self, root: Inode, name: str) -> None:
        fd = _open_top(self._store.get(name))
        try:
            self._inodes.moved(os.fstat(fd), root, name.encode())
        finally:
            os.close(fd)

    # -- who uses what

    def _open_in(self, volume: tuple[int, int]) -> list[FileHandle | DirectoryHandle]:
        """What is open in the volume whose top directory is this (device number, inode)."""
        return [handle for handle in self._handles if _identity(handle.inode.volume_top) == volume]

    def _await_releases(self, top: Inode) -> None:
        """Let files that were closed be released.

        The kernel has a dozen RELEASE requests under way at a time and keeps others back, so a
        removal can come before those of files closed earlier.
        """
        volume = _identity(top)
        left, patience = len(self._open_in(volume)), _PATIENCE
        while left and patience:
            time.sleep(_RELEASE_TIME)
            before, left = left, len(self._open_in(volume))
            patience = _PATIENCE if left < before else patience - 1

    def _open_holders(self, volume: Volume) -> list[Holder]:
        """Open files and directories of a volume, one holder for each process and file."""
        try:
            fd = _open_top(volume)
        except FileNotFoundError:
            return []
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return [
            Holder("open", _path(handle.inode), handle.pid, _command(handle.pid))
            for handle in self._open_in((status.st_dev, status.st_ino))
        ]

    # -- extended attributes that volfs answers itself

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        """A ``volfs.*`` attribute of a volume's top directory or of the root. May block."""
        if inode is self._inodes.root:
            if name == b"volfs.stats":
                return json.dumps(self.statistics()).encode()
            raise _no_attribute()
        volume = self._volume_of(inode)
        if name == b"volfs.name":
            return volume.name.encode()
        if name == b"volfs.driver":
            return volume.driver_name.encode()
        if name == b"volfs.created_at" and volume.created_at is not None:
            return volume.created_at.isoformat().encode()
        if name == b"volfs.users":
            return "\n".join(map(str, self._store.holders(volume.name))).encode()
        if name.startswith(_LABEL_PREFIX):
            value = volume.labels.get(name[len(_LABEL_PREFIX) :].decode(errors="replace"))
            if value is not None:
                return value.encode()
        raise _no_attribute()

    def setxattr(self, inode: Inode, name: bytes, value: bytes | None, flags: int = 0) -> None:
        """Set a label (``flags`` as for setxattr(2)), or remove it (None). May block.

        The other attributes are read-only.
        """
        if inode is self._inodes.root or not name.startswith(_LABEL_PREFIX):
            # As for other attributes that a filesystem only shows (trusted.overlay, ceph.*).
            raise OSError(errno.EPERM, "only volfs.label.KEY can be set")
        key = name[len(_LABEL_PREFIX) :]
        try:
            text = key.decode()
            content = None if value is None else value.decode()
        except UnicodeDecodeError:
            raise OSError(errno.EINVAL, "labels are UTF-8 text") from None
        if not text:
            raise OSError(errno.EINVAL, "a label needs a key")

        def change(labels: Mapping[str, str]) -> Mapping[str, str]:
            if content is None:
                if text not in labels:
                    raise _no_attribute()
                return {key: value for key, value in labels.items() if key != text}
            if flags & os.XATTR_CREATE and text in labels:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            if flags & os.XATTR_REPLACE and text not in labels:
                raise _no_attribute()
            return {**labels, text: content}

        self._store.change_labels(self._volume_of(inode).name, change)

    def _volume_of(self, inode: Inode) -> Volume:
        if inode.parent is not self._inodes.root:
            raise _no_attribute()  # below its top directory a volume has no such attributes
        return self._store.get(inode.name.decode())

    def statistics(self) -> dict[str, Any]:
        """Counters for finding leaks (what is known and what is open), and what
        ``more_statistics`` adds."""
        return {
            **self.more_statistics(),
            "inodes": len(self._inodes),
            "lookups": self._inodes.lookups,
            "descriptors": self._inodes.descriptors,
            "open_files": self._handles.open_files,
            "open_directories": self._handles.open_directories,
        }


def _identity(inode: Inode) -> tuple[int, int]:
    return inode.device.dev, inode.ino


def can_exist(name: bytes) -> bool:
    """Whether there can ever be a volume ``name``."""
    return can_name(os.fsdecode(name))


def _volume_name(name: bytes) -> str:
    return check_name(os.fsdecode(name))


def _open_top(volume: Volume) -> int:
    # The one path taken as given: an administrator may have made the data path a link.
    return os.open(volume.mount(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _no_attribute() -> OSError:
    return OSError(errno.ENODATA, os.strerror(errno.ENODATA))


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def _who(ctx: Requester) -> str:
    return f"uid {ctx.uid}, {_command(ctx.pid) or 'process'} ({ctx.pid})"


def _path(inode: Inode) -> str:
    parts: list[str] = []
    here: Inode | None = inode
    while here is not None and here.parent is not None and len(parts) < _PATH_PARTS:
        parts.append(os.fsdecode(here.name))
        here = here.parent
    return "/".join(reversed(parts))
