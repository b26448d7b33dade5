"""The opcodes about attributes of an inode, and of the filesystem it is on."""

from __future__ import annotations

import errno
import stat

from volfs.fs.agreement import Connection
from volfs.fs.files import Changes
from volfs.fs.inodes import ROOT_ID
from volfs.fs.native import Status
from volfs.fs.native._records import Status as WireStatus
from volfs.fs.native._records import fstat, statx_out
from volfs.fs.requests import Later, Requests
from volfs.fs.wire import protocol
from volfs.fs.wire.entries import Entries
from volfs.fs.wire.protocol import Opcode, Who
from volfs.fs.wire.wire import Answer, Method
from volfs.linux import syscalls
from volfs.linux.syscalls import os_error

_NS = 10**9
_SUID_OR_SGID = stat.S_ISUID | stat.S_ISGID


class AttributeOpcodes:
    """Decodes the requests, encodes the replies."""

    def __init__(self, requests: Requests, entries: Entries, connection: Connection) -> None:
        self._inodes = requests.inodes
        self._attributes = requests.attributes
        self._threads = requests.threads
        self._entries = entries
        self._connection = connection

    def methods(self) -> dict[Opcode, Method]:
        return {
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.STATX: self._statx,
            Opcode.STATFS: self._statfs,
            Opcode.ACCESS: self._access,
            Opcode.SETXATTR: self._setxattr,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.REMOVEXATTR: self._removexattr,
        }

    def _getattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        fd = self._inodes.at_hand(node_id)
        if fd >= 0:  # by far the most frequent request
            status = fstat(fd)
            timeout = self._entries.timeout
            if timeout and status.st_mode & _SUID_OR_SGID:
                timeout = self._entries.attribute_timeout(status.st_mode)
            return status.attr_out(node_id, timeout)
        return self._described(node_id, self._attributes.getattr(node_id))

    def _described(self, node_id: int, status: Status | Later[Status]) -> Answer:
        number = self._inodes.number(node_id)
        if isinstance(status, WireStatus):
            return status.attr_out(number, self._entries.attribute_timeout(status.st_mode))
        if isinstance(status, Later):
            return status.then(lambda late: self._entries.attributes(number, late))
        return self._entries.attributes(number, status)

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
            clears=bool(valid & protocol.FATTR_KILL_SUIDGID)
            or not self._connection.agreement.says_when_to_clear,
        )
        handle = fh if valid & protocol.FATTR_FH else None
        return self._described(node_id, self._attributes.setattr(node_id, changes, handle, who))

    def _statx(self, node_id: int, body: bytes, who: Who) -> Answer:
        if node_id == ROOT_ID:
            status = self._attributes.getattr(node_id)
            if isinstance(status, Later):
                return status.then(lambda late: protocol.statx_out(late, node_id))
            return protocol.statx_out(status, node_id)
        _, flags, mask = protocol.STATX_IN.unpack_from(body)
        inode = self._inodes[node_id]

        def answer() -> bytes:
            timeout = self._entries.timeout
            fd = self._inodes.reach(inode)
            return statx_out(fd, flags, mask, inode.number, timeout)

        return self._threads.elsewhere(answer, inode) if inode.device.slow else answer()

    def _access(self, node_id: int, body: bytes, who: Who) -> Answer:
        # default_permissions: the kernel decides from mode, owner and ACL and does not ask again.
        raise os_error(errno.ENOSYS)

    def _statfs(self, node_id: int, body: bytes, who: Who) -> Answer:
        status = self._attributes.statfs(node_id)
        if isinstance(status, Later):
            return status.then(protocol.statfs_out)
        return protocol.statfs_out(status)

    # -- extended attributes

    def _setxattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        size, flags = protocol.SETXATTR_IN.unpack_from(body)
        end = body.index(b"\0", 8)
        value = body[end + 1 : end + 1 + size]
        return self._attributes.setxattr(node_id, body[8:end], value, flags, who)

    def _getxattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        size, _ = protocol.U32_PAIR.unpack_from(body)
        value = self._attributes.getxattr(node_id, body[8:-1])
        if isinstance(value, Later):
            return value.then(lambda late: _sized(late, size))
        return _sized(value, size)

    def _listxattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        size, _ = protocol.U32_PAIR.unpack_from(body)

        def joined(names: list[bytes]) -> bytes | int:
            return _sized(b"".join(name + b"\0" for name in names), size)

        names = self._attributes.listxattr(node_id, who)
        return names.then(joined) if isinstance(names, Later) else joined(names)

    def _removexattr(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._attributes.removexattr(node_id, body[:-1], who)


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if valid & now:
        return syscalls.NOW
    return seconds * _NS + nanoseconds if valid & given else None


def _sized(value: bytes | None, size: int) -> bytes | int:
    """The reply to a request for a value of at most ``size`` bytes, or, with 0, for its length."""
    if value is None:
        return errno.ENODATA  # not raised: it is what most are told
    if size == 0:
        return protocol.U32_PAIR.pack(len(value), 0)
    if len(value) > size:
        raise os_error(errno.ERANGE)
    return value
