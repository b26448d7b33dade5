"""The root directory: entries are volumes.

Synchronous functions; those that may block say so.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from pathlib import Path

import pyfuse3
from pyfuse3 import EntryAttributes, ReaddirToken, RequestContext

from volfs import syscalls
from volfs.errors import InvalidNameError, VolumeNotFoundError
from volfs.fs.handles import DirectoryHandle, FileHandle, HandleTable, RootHandle
from volfs.fs.inode import Inode
from volfs.fs.inodes import InodeTable
from volfs.fs.options import MountOptions
from volfs.fs.tree import Tree
from volfs.store import VolumeStore
from volfs.usage import Holder
from volfs.volume import Owner, Volume, check_name

XATTR_PREFIX = b"volfs."
_PATH_PARTS = 256
"""How many names of a path are shown at most."""

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
        self._timeout = options.cache.root_timeout
        self._changed_ns = time.time_ns()
        self._local: set[bytes] = set()
        self._owner = options.root_owner or (os.geteuid(), os.getegid())
        store.add_holder_source(self._open_holders)

    # -- the directory itself

    def getattr(self) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = pyfuse3.ROOT_INODE
        entry.attr_timeout = self._timeout
        entry.entry_timeout = self._timeout
        entry.st_mode = stat.S_IFDIR | self._options.root_mode
        # As btrfs does: one link, since counting the volumes is not worth a listing.
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = self._owner
        entry.st_size = 4096
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._changed_ns
        return entry

    def lookup(self, root: Inode, name: bytes) -> EntryAttributes:
        """The volume ``name``. May block, unless ``is_quick`` says no."""
        try:
            volume = self._store.get(name.decode())
            fd = _open_top(volume)
        except (VolumeNotFoundError, UnicodeDecodeError, FileNotFoundError):
            self._local.discard(name)
            return self._limited(self._tree.missing())
        entry = self._limited(self._tree.found(root, name, fd))
        if not root.device.slow and not self._inodes[entry.st_ino].device.slow:
            self._local.add(name)
        return entry

    def is_quick(self, name: bytes) -> bool:
        """Whether looking up ``name`` is known not to block: a volume seen on a local
        filesystem before, or no volume name at all."""
        if name in self._local:
            return True
        try:
            _volume_name(name)
        except InvalidNameError:
            return True
        return False

    def _limited(self, entry: EntryAttributes) -> EntryAttributes:
        entry.entry_timeout = self._timeout
        return entry

    def opendir(self) -> int:
        return self._handles.add_directory(RootHandle())

    def begin_listing(self, handle: RootHandle) -> None:
        """Take the listing that ``readdir`` replies from. May block."""
        handle.names = self._store.names()

    def readdir(self, root: Inode, handle: RootHandle, start: int, token: ReaddirToken) -> None:
        """Reply with entries from offset ``start`` on until the reply is full. May block."""
        reply = pyfuse3.readdir_reply
        position = start
        for dot in (b".", b"..")[start:2]:
            position += 1
            if not reply(token, dot, self.getattr(), position):
                return
        for name in (handle.names or [])[position - 2 :]:
            position += 1
            try:
                fd = _open_top(self._store.get(name))
            except (VolumeNotFoundError, OSError):
                continue  # removed since the listing, or broken: a look-up tells how
            entry = self._limited(self._tree.found(root, name.encode(), fd))
            if not reply(token, name.encode(), entry, position):
                self._inodes.forget(entry.st_ino, 1)
                return

    # -- volumes coming and going; all of these may block

    def mkdir(self, root: Inode, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """Make a volume that is the caller's."""
        text = _volume_name(name)
        # As mkdir(2): of the mode, only permission bits and the sticky bit count.
        owner = Owner(ctx.uid, ctx.gid, mode & ~ctx.umask & 0o1777)
        volume = self._store.create(text, owner=owner, exclusive=True)
        self._changed_ns = time.time_ns()
        return self._limited(self._tree.found(root, name, _open_top(volume)))

    def rmdir(self, root: Inode, name: bytes, ctx: RequestContext) -> None:
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

    def setxattr(self, inode: Inode, name: bytes, value: bytes | None) -> None:
        """Set a label, or remove it (None). The other attributes are read-only. May block."""
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
        volume = self._volume_of(inode)
        labels = dict(volume.labels)
        if content is not None:
            labels[text] = content
        elif labels.pop(text, None) is None:
            raise _no_attribute()
        self._store.set_labels(volume.name, labels)

    def _volume_of(self, inode: Inode) -> Volume:
        if inode.parent is not self._inodes.root:
            raise _no_attribute()  # below its top directory a volume has no such attributes
        return self._store.get(inode.name.decode())

    def statistics(self) -> dict[str, int]:
        """Counters for finding leaks: what is known and what is open."""
        return {
            "inodes": len(self._inodes),
            "lookups": self._inodes.lookups,
            "descriptors": self._inodes.descriptors,
            "open_files": self._handles.open_files,
            "open_directories": self._handles.open_directories,
        }


def _identity(inode: Inode) -> tuple[int, int]:
    return inode.device.dev, inode.ino


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


def _who(ctx: RequestContext) -> str:
    return f"uid {ctx.uid}, {_command(ctx.pid) or 'process'} ({ctx.pid})"


def _path(inode: Inode) -> str:
    parts: list[str] = []
    here: Inode | None = inode
    while here is not None and here.parent is not None and len(parts) < _PATH_PARTS:
        parts.append(os.fsdecode(here.name))
        here = here.parent
    return "/".join(reversed(parts))
