"""The requests that name an inode or are about one: names, attributes, extended attributes."""

from __future__ import annotations

import errno
import os
import stat

from volfs.fs.files import filesystem
from volfs.fs.files.cache import CachePolicy
from volfs.fs.files.tree import Changes, Found
from volfs.fs.inodes.inode import ROOT_ID, Inode
from volfs.fs.native._records import Status as WireStatus
from volfs.fs.native._records import fstat, statx_out
from volfs.fs.native.status import Status
from volfs.fs.requests.requests import Later, Requests
from volfs.fs.root.directory import can_exist
from volfs.fs.wire import protocol
from volfs.fs.wire.protocol import Opcode, Who
from volfs.fs.wire.wire import Answer, Method
from volfs.linux import syscalls

_NS = 10**9
_SUID_OR_SGID = stat.S_ISUID | stat.S_ISGID


class NodeRequests:
    """Decodes the requests, encodes the replies."""

    def __init__(self, requests: Requests, cache: CachePolicy) -> None:
        self._requests = requests
        self._timeout = int(cache.timeout * _NS)
        self._root_timeout = int(cache.root_timeout * _NS)
        self._absent = self._no_entry(self._timeout)
        self._never_there = self._no_entry(self._root_timeout)
        # Asked for again each time: who makes a volume beside the mount wants to see it at once.
        self._no_volume = self._no_entry(0)
        root = requests.inodes.root
        assert root is not None
        self._root: Inode = root

    def methods(self) -> dict[Opcode, Method]:
        return {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._batch_forget,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.STATX: self._statx,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
            Opcode.STATFS: self._statfs,
            Opcode.ACCESS: self._access,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
        }

    # -- what replies consist of

    def entry(self, found: Found, *, keep: bool = True) -> bytes:
        """struct fuse_entry_out of a file that was looked up; ``keep``: its attributes, too."""
        inode, status = found
        assert isinstance(status, WireStatus)
        return status.entry_out(
            inode.node_id,
            inode.number,
            self._root_timeout if inode.parent is self._root else self._timeout,
            self.attribute_timeout(status.st_mode) if keep else 0,
        )

    def attribute_timeout(self, mode: int) -> int:
        """How long the kernel may keep attributes, in nanoseconds: see CachePolicy."""
        return 0 if mode & _SUID_OR_SGID and stat.S_ISREG(mode) else self._timeout

    def _attributes(self, number: int, status: Status) -> bytes:
        if isinstance(status, WireStatus):
            return status.attr_out(number, self.attribute_timeout(status.st_mode))
        return protocol.attr_out(status, number, self._root_timeout)

    @staticmethod
    def _no_entry(timeout: int) -> bytes:
        # Node id 0 is ENOENT to the kernel (fuse_lookup_name in fs/fuse/dir.c), with a timeout.
        return (
            bytes(16)
            + protocol.U64.pack(timeout // _NS)
            + bytes(8)
            + (timeout % _NS).to_bytes(4, "little")
            + bytes(92)
        )

    # -- names

    def _lookup(self, node_id: int, body: bytes, who: Who) -> Answer:
        name = body[:-1]
        found = self._requests.lookup(node_id, name)
        if found is None:
            return self._absent if node_id != ROOT_ID else self._absent_in_root(name)
        if found.__class__ is Later:
            absent = self._absent if node_id != ROOT_ID else self._absent_in_root(name)
            return found.then(lambda late: absent if late is None else self.entry(late))
        return self.entry(found)  # type: ignore[arg-type]

    def _absent_in_root(self, name: bytes) -> bytes:
        return self._no_volume if can_exist(name) else self._never_there

    def _entry(self, found: Found | Later[Found]) -> Answer:
        return found.then(self.entry) if isinstance(found, Later) else self.entry(found)

    def _forget(self, node_id: int, body: bytes, who: Who) -> Answer:
        (lookups,) = protocol.U64.unpack_from(body)
        self._requests.forget(((node_id, lookups),))
        return None

    def _batch_forget(self, node_id: int, body: bytes, who: Who) -> Answer:
        self._requests.forget(protocol.FORGET_ONE.iter_unpack(body[8:]))
        return None

    def _symlink(self, node_id: int, body: bytes, who: Who) -> Answer:
        name, target = body[:-1].split(b"\0")
        return self._entry(self._requests.symlink(node_id, name, target, who))

    def _mknod(self, node_id: int, body: bytes, who: Who) -> Answer:
        mode, rdev, umask = protocol.MKNOD_IN.unpack_from(body)
        name = body[16:-1]
        who = Who(who.uid, who.gid, who.pid, umask)
        return self._entry(self._requests.mknod(node_id, name, mode, rdev, who))

    def _mkdir(self, node_id: int, body: bytes, who: Who) -> Answer:
        mode, umask = protocol.U32_PAIR.unpack_from(body)
        who = Who(who.uid, who.gid, who.pid, umask)
        return self._entry(self._requests.mkdir(node_id, body[8:-1], mode, who))

    def _unlink(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._requests.unlink(node_id, body[:-1])

    def _rmdir(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._requests.rmdir(node_id, body[:-1], who)

    def _rename(self, node_id: int, body: bytes, who: Who) -> Answer:
        (directory,) = protocol.U64.unpack_from(body)
        name, new_name = body[8:-1].split(b"\0")
        return self._requests.rename(node_id, name, directory, new_name, 0)

    def _rename2(self, node_id: int, body: bytes, who: Who) -> Answer:
        directory, flags = protocol.RENAME2_IN.unpack_from(body)
        name, new_name = body[16:-1].split(b"\0")
        return self._requests.rename(node_id, name, directory, new_name, flags)

    def _link(self, node_id: int, body: bytes, who: Who) -> Answer:
        (linked,) = protocol.U64.unpack_from(body)
        return self._entry(self._requests.link(linked, node_id, body[8:-1]))

    def _readlink(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._requests.readlink(node_id)

    # -- attributes

    def _getattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        fd = self._requests.inodes.at_hand(node_id)
        if fd >= 0:  # by far the most frequent request
            status = fstat(fd)
            timeout = self._timeout
            if timeout and status.st_mode & _SUID_OR_SGID:
                timeout = self.attribute_timeout(status.st_mode)
            return status.attr_out(node_id, timeout)
        return self._described(node_id, self._requests.getattr(node_id))

    def _described(self, node_id: int, status: Status | Later[Status]) -> Answer:
        number = self._requests.inodes.number(node_id)
        if isinstance(status, WireStatus):
            return status.attr_out(number, self.attribute_timeout(status.st_mode))
        if isinstance(status, Later):
            return status.then(lambda late: self._attributes(number, late))
        return self._attributes(number, status)

    def _setattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        valid, fh, size, atime, mtime, atime_ns, mtime_ns, mode, uid, gid = (
            protocol.SETATTR_IN.unpack_from(body)
        )
        changes = Changes(
            mode=mode if valid & protocol.FATTR_MODE else None,
            uid=uid if valid & protocol.FATTR_UID else None,
            gid=gid if valid & protocol.FATTR_GID else None,
            size=size if valid & protocol.FATTR_SIZE else None,
            atime=_time(valid, protocol.FATTR_ATIME, protocol.FATTR_ATIME_NOW, atime, atime_ns),
            mtime=_time(valid, protocol.FATTR_MTIME, protocol.FATTR_MTIME_NOW, mtime, mtime_ns),
        )
        handle = fh if valid & protocol.FATTR_FH else None
        return self._described(node_id, self._requests.setattr(node_id, changes, handle))

    def _statx(self, node_id: int, body: bytes, who: Who) -> Answer:
        if node_id == ROOT_ID:
            status = self._requests.getattr(node_id)
            if isinstance(status, Later):
                return status.then(lambda late: protocol.statx_out(late, node_id))
            return protocol.statx_out(status, node_id)
        _, flags, mask = protocol.STATX_IN.unpack_from(body)
        inode = self._requests.inodes[node_id]

        def answer() -> bytes:
            timeout = self._timeout
            fd = self._requests.inodes.reach(inode)
            return statx_out(fd, flags, mask, inode.number, timeout)

        return self._requests.elsewhere(answer, inode) if inode.device.slow else answer()

    def _access(self, node_id: int, body: bytes, who: Who) -> Answer:
        # default_permissions: the kernel decides from mode, owner and ACL and asks no more.
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def _statfs(self, node_id: int, body: bytes, who: Who) -> Answer:
        status = self._requests.statfs(node_id)
        if isinstance(status, Later):
            return status.then(filesystem.packed)
        return filesystem.packed(status)

    # -- extended attributes

    def _setxattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        size, flags = protocol.SETXATTR_IN.unpack_from(body)
        end = body.index(b"\0", 8)
        value = body[end + 1 : end + 1 + size]
        return self._requests.setxattr(node_id, body[8:end], value, flags, who)

    def _getxattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        size, _ = protocol.U32_PAIR.unpack_from(body)
        value = self._requests.getxattr(node_id, body[8:-1])
        if isinstance(value, Later):
            return value.then(lambda late: _sized(late, size))
        return _sized(value, size)

    def _listxattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        size, _ = protocol.U32_PAIR.unpack_from(body)

        def joined(names: list[bytes]) -> bytes | int:
            return _sized(b"".join(name + b"\0" for name in names), size)

        names = self._requests.listxattr(node_id, who)
        return names.then(joined) if isinstance(names, Later) else joined(names)

    def _removexattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._requests.removexattr(node_id, body[:-1])


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if valid & now:
        return syscalls.NOW
    return seconds * _NS + nanoseconds if valid & given else None


def _sized(value: bytes | None, size: int) -> bytes | int:
    """The reply to who asked for an attribute of at most ``size`` bytes, or, at 0, for how many
    there are."""
    if value is None:
        return errno.ENODATA  # not raised: it is what most are told
    if size == 0:
        return protocol.U32_PAIR.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value
