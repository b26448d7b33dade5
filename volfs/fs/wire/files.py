"""The opcodes about open files."""

from __future__ import annotations

import os

from volfs.fs.agreement import Connection
from volfs.fs.files import Found, Opened
from volfs.fs.requests import Later, Requests
from volfs.fs.wire import protocol
from volfs.fs.wire.entries import Entries
from volfs.fs.wire.protocol import Opcode, Who
from volfs.fs.wire.wire import Answer, Method


class FileOpcodes:
    """Decodes the requests, encodes the replies."""

    def __init__(self, requests: Requests, entries: Entries, connection: Connection) -> None:
        self._files = requests.files
        self._entries = entries
        self._connection = connection

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
        flags, open_flags = protocol.U32_PAIR.unpack_from(body)
        clears = self._clears(open_flags & protocol.FUSE_OPEN_KILL_SUIDGID)
        opened = self._files.open(node_id, flags, who, clears=clears)
        return opened.then(_open_out) if isinstance(opened, Later) else _open_out(opened)

    def _create(self, node_id: int, body: bytes, who: Who) -> Answer:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(body)
        name = body[16 : body.index(b"\0", 16)]
        who = Who(who.uid, who.gid, who.pid, umask)
        return self._created(self._files.create(node_id, name, mode, flags, who))

    def _tmpfile(self, node_id: int, body: bytes, who: Who) -> Answer:
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(body)
        who = Who(who.uid, who.gid, who.pid, umask)
        return self._created(self._files.tmpfile(node_id, mode, flags, who))

    def _created(self, made: tuple[Opened, Found] | Later[tuple[Opened, Found]]) -> Answer:
        def reply(late: tuple[Opened, Found]) -> bytes:
            opened, found = late
            return self._entries.entry(found) + _open_out(opened)

        return made.then(reply) if isinstance(made, Later) else reply(made)

    def _release(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, _, _, _ = protocol.RELEASE_IN.unpack_from(body)
        return self._files.release(fh)

    def _flush(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._files.flush(*protocol.FLUSH_IN.unpack_from(body))

    def _clears(self, flag: int) -> bool:
        """Whether a change takes set-user-ID and set-group-ID bits away: if the request says so
        by ``flag``, or comes of a kernel that does not say."""
        return bool(flag) or not self._connection.agreement.says_when_to_clear

    # -- data

    def _read(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._files.read(*protocol.READ_IN.unpack_from(body))

    def _write(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, offset, size, write_flags, open_flags = protocol.WRITE_IN.unpack_from(body)
        append = bool(open_flags & os.O_APPEND and not write_flags & protocol.FUSE_WRITE_CACHE)
        data = memoryview(body)[protocol.WRITE_IN.size :][:size]
        # Pages of mappings come without a word about their writer.
        clears = self._clears(
            write_flags & (protocol.FUSE_WRITE_KILL_SUIDGID | protocol.FUSE_WRITE_CACHE)
        )
        written = self._files.write(fh, offset, data, append, clears=clears)
        if isinstance(written, Later):
            return written.then(protocol.WRITE_OUT.pack)
        return protocol.WRITE_OUT.pack(written)

    def _fsync(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, flags = protocol.FSYNC_IN.unpack_from(body)
        return self._files.fsync(fh, bool(flags & protocol.FUSE_FSYNC_FDATASYNC))

    # -- ranges and flags

    def _fallocate(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, offset, length, mode = protocol.FALLOCATE_IN.unpack_from(body)
        return self._files.fallocate(fh, offset, length, mode, who)

    def _lseek(self, node_id: int, body: bytes, who: Who) -> Answer:
        offset = self._files.lseek(*protocol.LSEEK_IN.unpack_from(body))
        packed = protocol.U64.pack
        return offset.then(packed) if isinstance(offset, Later) else packed(offset)

    def _copy_file_range(self, node_id: int, body: bytes, who: Who) -> Answer:
        copied = self._copy(body, who)
        packed = protocol.WRITE_OUT.pack
        return copied.then(packed) if isinstance(copied, Later) else packed(copied)

    def _copy_file_range_64(self, node_id: int, body: bytes, who: Who) -> Answer:
        copied = self._copy(body, who)
        packed = protocol.U64.pack
        return copied.then(packed) if isinstance(copied, Later) else packed(copied)

    def _copy(self, body: bytes, who: Who) -> int | Later[int]:
        fh, offset, _, target_fh, target_offset, length, flags = protocol.COPY_IN.unpack_from(body)
        return self._files.copy(fh, offset, target_fh, target_offset, length, flags, who)

    def _ioctl(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, flags, command, argument, size_in, size_out = protocol.IOCTL_IN.unpack_from(body)
        data = body[protocol.IOCTL_IN.size :][:size_in]
        of_directory = bool(flags & protocol.FUSE_IOCTL_DIR)
        answer = self._files.ioctl(node_id, fh, of_directory, command, argument, data, size_out)
        return answer.then(_ioctl_out) if isinstance(answer, Later) else _ioctl_out(answer)


def _open_out(opened: Opened) -> bytes:
    """struct fuse_open_out."""
    flags = 0
    if opened.backing:
        flags = protocol.FOPEN_PASSTHROUGH
    elif opened.handle.keeps_cache:
        flags = protocol.FOPEN_KEEP_CACHE
    if opened.direct:
        flags |= protocol.FOPEN_DIRECT_IO
    if not opened.flush:
        flags |= protocol.FOPEN_NOFLUSH
    return protocol.OPEN_OUT.pack(opened.handle.number, flags, opened.backing)


def _ioctl_out(answer: bytes) -> bytes:
    return protocol.IOCTL_OUT.pack(0, 0, 0, 0) + answer
