"""The requests about open files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from volfs.fs.files import flags, ranges
from volfs.fs.files.tree import Found
from volfs.fs.inodes.handles import DirectoryHandle, FileHandle
from volfs.fs.inodes.inode import Inode
from volfs.fs.native.status import fstat
from volfs.fs.requests.requests import Later, Requests
from volfs.fs.wire import protocol
from volfs.fs.wire.names import NodeRequests
from volfs.fs.wire.protocol import Opcode, Who
from volfs.fs.wire.wire import Answer, Method
from volfs.linux.identity import Caller

_PRIVILEGES = stat.S_ISUID | stat.S_ISGID


class FileRequests:
    """Decodes the requests, encodes the replies.

    ``appends_directly``: files opened for appending go past the kernel's page cache, which would
    cut a write in two where it crosses a page; another process's record could come between.
    """

    def __init__(self, requests: Requests, nodes: NodeRequests, caller: Caller) -> None:
        self.appends_directly = False
        self._requests = requests
        self._nodes = nodes
        self._caller = caller

    def methods(self) -> dict[Opcode, Method]:
        return {
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.TMPFILE: self._tmpfile,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FLUSH: self._flush,
            Opcode.FSYNC: self._fsync,
            Opcode.RELEASE: self._release,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.COPY_FILE_RANGE: self._copy_file_range,
            Opcode.COPY_FILE_RANGE_64: self._copy_file_range_64,
            Opcode.IOCTL: self._ioctl,
        }

    # -- opening and closing

    def _open(self, node_id: int, body: bytes, who: Who) -> Answer:
        flags, _ = protocol.U32_PAIR.unpack_from(body)
        handle = self._requests.open(node_id, flags, who.pid)
        return handle.then(self._opened) if isinstance(handle, Later) else self._opened(handle)

    def _opened(self, handle: FileHandle, mode: int | None = None) -> bytes:
        """struct fuse_open_out: how the kernel is to treat the open file. ``mode`` is its st_mode
        if that is known."""
        inode = handle.inode
        flags = 0
        if inode.backing:
            flags = protocol.FOPEN_PASSTHROUGH
            if handle.fd >= 0:  # for writing
                mode = fstat(handle.fd).st_mode if mode is None else mode
                if mode & _PRIVILEGES:
                    # Writing takes them away, which the daemon has to see to.
                    flags |= protocol.FOPEN_DIRECT_IO
        else:
            if handle.keeps_cache:
                flags = protocol.FOPEN_KEEP_CACHE
            if handle.appending and self.appends_directly:
                flags |= protocol.FOPEN_DIRECT_IO
        if not self._requests.locks.wants_flush(inode):
            # Nothing to be told at close: local filesystems report no errors then.
            flags |= protocol.FOPEN_NOFLUSH
        return protocol.OPEN_OUT.pack(handle.number, flags, inode.backing)

    def _create(self, node_id: int, body: bytes, who: Who) -> Answer:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(body)
        name = body[16 : body.index(b"\0", 16)]
        who = Who(who.uid, who.gid, who.pid, umask)
        return self._created(self._requests.create(node_id, name, mode, flags, who))

    def _tmpfile(self, node_id: int, body: bytes, who: Who) -> Answer:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(body)
        who = Who(who.uid, who.gid, who.pid, umask)
        return self._created(self._requests.tmpfile(node_id, mode, flags, who))

    def _created(self, made: tuple[FileHandle, Found] | Later[tuple[FileHandle, Found]]) -> Answer:
        def reply(late: tuple[FileHandle, Found]) -> bytes:
            handle, found = late
            return self._nodes.entry(found) + self._opened(handle, found[1].st_mode)

        return made.then(reply) if isinstance(made, Later) else reply(made)

    def _release(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, _, _, _ = protocol.RELEASE_IN.unpack_from(body)
        return self._requests.release(fh)

    def _flush(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._requests.flush(*protocol.FLUSH_IN.unpack_from(body))

    # -- data

    def _read(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._requests.read(*protocol.READ_IN.unpack_from(body))

    def _write(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, offset, size, write_flags, open_flags = protocol.WRITE_IN.unpack_from(body)
        append = bool(open_flags & os.O_APPEND and not write_flags & protocol.FUSE_WRITE_CACHE)
        data = memoryview(body)[protocol.WRITE_IN.size :][:size]
        written = self._requests.write(fh, offset, data, append)
        if isinstance(written, Later):
            return written.then(protocol.WRITE_OUT.pack)
        return protocol.WRITE_OUT.pack(written)

    def _fsync(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, flags = protocol.FSYNC_IN.unpack_from(body)
        return self._requests.fsync(fh, bool(flags & protocol.FUSE_FSYNC_FDATASYNC))

    # -- ranges

    def _fallocate(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, offset, length, mode = protocol.FALLOCATE_IN.unpack_from(body)
        handle = self._requests.handles.file(fh)
        fd = self._requests.tree.descriptor(handle)

        def call() -> None:
            # As the caller, who may not use what the filesystem reserves for root.
            with self._caller.acting(who.uid, who.gid, 0):
                ranges.allocate(fd, mode, offset, length)

        if _quick(handle) and ranges.allocation_is_quick(mode, length):
            call()
            return None
        return self._requests.elsewhere(call, handle.inode)

    def _lseek(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, offset, whence = protocol.LSEEK_IN.unpack_from(body)
        handle = self._requests.handles.file(fh)
        inode = handle.inode
        # Mappings of a file that the kernel serves itself are the backing file's.
        mapped = not inode.backing and any(
            isinstance(other, FileHandle) and other.writes_maps for other in inode.opens or ()
        )

        def call() -> bytes:
            fd = self._requests.tree.descriptor(handle)
            return protocol.U64.pack(ranges.seek(fd, offset, whence, whole=mapped))

        return self._requests.elsewhere(call, inode) if inode.device.slow else call()

    def _copy_file_range(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._copy(body, who, protocol.WRITE_OUT.pack)

    def _copy_file_range_64(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._copy(body, who, protocol.U64.pack)

    def _copy(self, body: bytes, who: Who, packed: Callable[[int], bytes]) -> Answer:
        fh, offset, _, target_fh, target_offset, length, flags = protocol.COPY_IN.unpack_from(body)
        source = self._requests.handles.file(fh)
        target = self._requests.handles.file(target_fh)
        source_fd = self._requests.tree.descriptor(source)
        target_fd = self._requests.tree.descriptor(target)

        def copy(stopping: Callable[[], bool]) -> bytes:
            with self._caller.acting(who.uid, who.gid, 0):
                copied = ranges.copy(
                    source_fd, offset, target_fd, target_offset, length, flags, stopping
                )
            return packed(copied)

        if length <= ranges.QUICK_COPY and _quick(target) and not source.inode.device.slow:
            return copy(bool)
        return self._requests.stoppable(copy, source.inode, target.inode)

    # -- flags

    def _ioctl(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, ioctl_flags, command, argument, size_in, size_out = protocol.IOCTL_IN.unpack_from(body)
        data = body[protocol.IOCTL_IN.size :][:size_in]
        flags.check(command, data, size_out, argument)
        handles = self._requests.handles
        inode: Inode
        if ioctl_flags & protocol.FUSE_IOCTL_DIR:
            directory = handles.directory(fh)
            if not isinstance(directory, DirectoryHandle):
                raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))  # the root has none
            fd, inode = directory.fd, directory.inode
        else:
            file = handles.file(fh)
            fd, inode = self._requests.tree.descriptor(file), file.inode

        def call() -> bytes:
            answer = flags.answer(fd, command, data, size_out)
            return protocol.IOCTL_OUT.pack(0, 0, 0, 0) + answer

        return self._requests.elsewhere(call, inode) if inode.device.slow else call()


def _quick(handle: FileHandle) -> bool:
    return not handle.inode.device.slow and not handle.synchronous
