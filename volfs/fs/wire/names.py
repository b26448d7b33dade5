"""The opcodes about names: look up, make, move, remove, forget."""

from __future__ import annotations

from volfs.fs.files import Found
from volfs.fs.inodes import ROOT_ID
from volfs.fs.requests import Later, Requests
from volfs.fs.root import can_exist
from volfs.fs.wire import protocol
from volfs.fs.wire.entries import Entries, no_entry
from volfs.fs.wire.protocol import Opcode, Who
from volfs.fs.wire.wire import Answer, Method


class NameOpcodes:
    """Decodes the requests, encodes the replies."""

    def __init__(self, requests: Requests, entries: Entries) -> None:
        self._names = requests.names
        self._entries = entries
        self._absent = no_entry(entries.timeout)
        self._never_there = no_entry(entries.root_timeout)
        # Asked for again each time: a volume made beside the mount is to be seen at once.
        self._no_volume = no_entry(0)

    def methods(self) -> dict[Opcode, Method]:
        return {
            Opcode.LOOKUP: self._lookup,
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._batch_forget,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._rmdir,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename2,
            Opcode.LINK: self._link,
        }

    def _lookup(self, node_id: int, body: bytes, who: Who) -> Answer:
        name = body[:-1]
        found = self._names.lookup(node_id, name)
        if found is None:
            return self._absent if node_id != ROOT_ID else self._absent_in_root(name)
        if found.__class__ is Later:
            absent = self._absent if node_id != ROOT_ID else self._absent_in_root(name)
            return found.then(lambda late: absent if late is None else self._entries.entry(late))
        return self._entries.entry(found)  # type: ignore[arg-type]

    def _absent_in_root(self, name: bytes) -> bytes:
        return self._no_volume if can_exist(name) else self._never_there

    def _entry(self, found: Found | Later[Found]) -> Answer:
        return (
            found.then(self._entries.entry)
            if isinstance(found, Later)
            else self._entries.entry(found)
        )

    def _forget(self, node_id: int, body: bytes, who: Who) -> Answer:
        (lookups,) = protocol.U64.unpack_from(body)
        self._names.forget(((node_id, lookups),))
        return None

    def _batch_forget(self, node_id: int, body: bytes, who: Who) -> Answer:
        self._names.forget(protocol.FORGET_ONE.iter_unpack(body[8:]))
        return None

    def _symlink(self, node_id: int, body: bytes, who: Who) -> Answer:
        name, target = body[:-1].split(b"\0")
        return self._entry(self._names.symlink(node_id, name, target, who))

    def _mknod(self, node_id: int, body: bytes, who: Who) -> Answer:
        mode, rdev, umask = protocol.MKNOD_IN.unpack_from(body)
        name = body[16:-1]
        who = Who(who.uid, who.gid, who.pid, umask)
        return self._entry(self._names.mknod(node_id, name, mode, rdev, who))

    def _mkdir(self, node_id: int, body: bytes, who: Who) -> Answer:
        mode, umask = protocol.U32_PAIR.unpack_from(body)
        who = Who(who.uid, who.gid, who.pid, umask)
        return self._entry(self._names.mkdir(node_id, body[8:-1], mode, who))

    def _unlink(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._names.unlink(node_id, body[:-1])

    def _rmdir(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._names.rmdir(node_id, body[:-1], who)

    def _rename(self, node_id: int, body: bytes, who: Who) -> Answer:
        (directory,) = protocol.U64.unpack_from(body)
        name, new_name = body[8:-1].split(b"\0")
        return self._names.rename(node_id, name, directory, new_name, 0, who)

    def _rename2(self, node_id: int, body: bytes, who: Who) -> Answer:
        directory, flags = protocol.RENAME2_IN.unpack_from(body)
        name, new_name = body[16:-1].split(b"\0")
        return self._names.rename(node_id, name, directory, new_name, flags, who)

    def _link(self, node_id: int, body: bytes, who: Who) -> Answer:
        (linked,) = protocol.U64.unpack_from(body)
        return self._entry(self._names.link(linked, node_id, body[8:-1]))

    def _readlink(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._names.readlink(node_id)
