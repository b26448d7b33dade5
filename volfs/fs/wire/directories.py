"""The opcodes about open directories, and their listings."""

from __future__ import annotations

import errno
import os
import stat

from volfs.fs.agreement import Connection
from volfs.fs.files import CachePolicy
from volfs.fs.inodes import ROOT_ID, DirectoryHandle, Inode, RootHandle
from volfs.fs.native import fstatat
from volfs.fs.native._records import direntplus, list_bare, read_entries
from volfs.fs.requests import Later, Requests
from volfs.fs.wire import protocol
from volfs.fs.wire.entries import Entries
from volfs.fs.wire.protocol import Opcode, Who
from volfs.fs.wire.wire import Answer, Method
from volfs.linux.syscalls import os_error

_BARE = bytes(128)
"""An entry of a listing that does not count as looked up: its node id is 0."""

_RECORD = 128 + 24
"""Bytes of an entry of READDIRPLUS, without the name."""

_DIRECTORY = stat.S_IFDIR >> 12  # as d_type


class DirectoryOpcodes:
    """Decodes the requests, encodes the replies.

    Offsets below the root are the backing directory's own, so a listing goes on correctly whatever
    happened to the handle. Where directories are listed by inode there is no handle, and the kernel
    keeps a listing as long as the directory's times stay the same.
    """

    def __init__(
        self, requests: Requests, entries: Entries, cache: CachePolicy, connection: Connection
    ) -> None:
        self._directories = requests.directories
        self._inodes = requests.inodes
        self._handles = requests.handles
        self._listings = requests.listings
        self._root = requests.root
        self._threads = requests.threads
        self._entries = entries
        self._caches = cache is not CachePolicy.NEVER
        self._connection = connection
        self._root_handle = RootHandle()

    def methods(self) -> dict[Opcode, Method]:
        return {
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
        }

    def _opendir(self, node_id: int, body: bytes, who: Who) -> Answer:
        if self._connection.agreement.lists_by_inode:
            # The kernel does not ask again, and caches what is listed.
            raise os_error(errno.ENOSYS)
        flags, _ = protocol.U32_PAIR.unpack_from(body)
        handle = self._directories.opendir(node_id, who, flags)
        return handle.then(self._opened) if isinstance(handle, Later) else self._opened(handle)

    def _opened(self, handle: DirectoryHandle | RootHandle) -> bytes:
        flags = 0
        if self._caches and isinstance(handle, DirectoryHandle):
            # What is cached counts as right only if the directory is as it was when it was opened
            # last.
            flags = protocol.FOPEN_CACHE_DIR
            if handle.keeps_cache:
                flags |= protocol.FOPEN_KEEP_CACHE
        return protocol.OPEN_OUT.pack(handle.number, flags, 0)

    def _releasedir(self, node_id: int, body: bytes, who: Who) -> Answer:
        (fh,) = protocol.U64.unpack_from(body)
        return self._directories.releasedir(fh)

    def _fsyncdir(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, flags = protocol.FSYNC_IN.unpack_from(body)
        datasync = bool(flags & protocol.FUSE_FSYNC_FDATASYNC)
        if self._connection.agreement.lists_by_inode:
            return self._directories.fsync_unopened(node_id, datasync)
        return self._directories.fsyncdir(fh, datasync)

    # -- listing

    def _readdir(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._list(node_id, body, plus=False)

    def _readdirplus(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._list(node_id, body, plus=True)

    def _list(self, node_id: int, body: bytes, *, plus: bool) -> Answer:
        fh, offset, room = protocol.READ_IN.unpack_from(body)
        lists_by_inode = self._connection.agreement.lists_by_inode
        if node_id == ROOT_ID:
            handle = self._root_handle if lists_by_inode else None
            root_handle = handle or self._handles.directory(fh)
            assert isinstance(root_handle, RootHandle)
            return self._threads.elsewhere(
                lambda: self._list_root(root_handle, offset, room, plus=plus), on="listing"
            )
        inode = self._inodes[node_id]
        fd = -1
        if not lists_by_inode:
            directory = self._handles.directory(fh)
            assert isinstance(directory, DirectoryHandle)
            fd = directory.fd

        def call() -> bytes:
            if fd >= 0:
                return self._list_directory(inode, fd, offset, room, plus=plus)
            own = self._directories.open_for_once(inode)
            try:
                return self._list_directory(inode, own, offset, room, plus=plus)
            finally:
                os.close(own)

        return self._threads.elsewhere(call, inode) if inode.device.slow else call()

    def _list_directory(
        self, inode: Inode, fd: int, offset: int, room: int, *, plus: bool
    ) -> bytes:
        def count(most: int) -> int:
            return len(read_entries(fd, 0, most))

        first = offset == 0
        attributes = plus and self._listings.want_attributes(inode, first=first, count=count)
        if plus:
            self._listings.replied(inode, first=first, attributes=attributes)
        if not attributes:
            parent = (inode.parent or inode).number
            return list_bare(fd, offset, room, plus, inode.device.base, inode.number, parent)
        reply: list[bytes] = []
        told = True
        while room > _RECORD:
            try:
                found = read_entries(fd, offset, room // (_RECORD + 8) + 1)
            except OSError:
                if reply:
                    break  # what was replied counts as looked up; the next request meets the error
                raise
            if not found:
                break
            for name, ino, kind, after in found:
                record, child = self._full(inode, fd, name, ino, kind, after, told=told)
                room -= len(record)
                if room < 0:
                    if child is not None:
                        self._inodes.discard(child)
                    break
                if child is not None:
                    child.lookups += 1
                    self._listings.told(child, told)
                    told = False
                reply.append(record)
                offset = after
            else:
                continue
            break
        return b"".join(reply)

    def _full(
        self, inode: Inode, fd: int, name: bytes, ino: int, kind: int, after: int, *, told: bool
    ) -> tuple[bytes, Inode | None]:
        """A record with attributes, and the inode that counts as looked up once it is replied.

        ``told``: the kernel shall not keep the attributes, so that it asks again if they matter.
        """
        if name in (b".", b".."):
            number = inode.number if name == b"." else (inode.parent or inode).number
            return direntplus(_BARE, number, after, _DIRECTORY, name), None
        try:
            status = fstatat(fd, name)
            child = self._inodes.remember(status, inode, name, -1, lookups=0)
        except OSError:
            # Deleted since it was read, or not to be looked at: a look-up tells.
            return direntplus(_BARE, inode.device.node_id(ino), after, kind, name), None
        entry = self._entries.entry((child, status), keep=not told)
        return direntplus(entry, child.number, after, status.st_mode >> 12, name), child

    def _list_root(self, handle: RootHandle, start: int, room: int, *, plus: bool) -> bytes:
        reply: list[bytes] = []
        for offset, dot in ((1, b"."), (2, b"..")):
            if start < offset:
                reply.append(self._record(_BARE, ROOT_ID, offset, _DIRECTORY, dot, plus=plus))
        room -= sum(map(len, reply))
        for offset, name, found in self._root.entries(handle, start):
            inode, status = found
            entry = self._entries.entry(found) if plus else _BARE
            kind = status.st_mode >> 12
            record = self._record(entry, inode.number, offset, kind, name, plus=plus)
            room -= len(record)
            if room < 0 or not plus:
                self._inodes.forget(inode.node_id, 1)
            if room < 0:
                break
            reply.append(record)
        return b"".join(reply)

    @staticmethod
    def _record(
        entry: bytes, ino: int, offset: int, kind: int, name: bytes, *, plus: bool
    ) -> bytes:
        record = direntplus(entry, ino, offset, kind, name)
        return record if plus else record[len(_BARE) :]
