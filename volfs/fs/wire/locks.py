"""The opcodes about locks on open files."""

from __future__ import annotations

import errno

import trio

from volfs.fs.locks import Lock
from volfs.fs.requests import Later, Requests, interrupted
from volfs.fs.wire import protocol
from volfs.fs.wire.protocol import Opcode, Who
from volfs.fs.wire.wire import Answer, Method
from volfs.linux.syscalls import os_error


class LockOpcodes:
    """Decodes the requests, encodes the replies."""

    def __init__(self, requests: Requests) -> None:
        self._handles = requests.handles
        self._locks = requests.locks

    def methods(self) -> dict[Opcode, Method]:
        return {
            Opcode.GETLK: self._getlk,
            Opcode.SETLK: self._setlk,
            Opcode.SETLKW: self._setlkw,
        }

    def _getlk(self, node_id: int, body: bytes, who: Who) -> Answer:
        fh, owner, start, end, kind, pid, _ = protocol.LK_IN.unpack_from(body)
        handle = self._handles.file(fh)
        lock = Lock(start, end, kind, pid)
        if handle.inode.device.slow:
            return Later(lambda: self._locks.get(handle, owner, lock)).then(_packed)
        return _packed(self._locks.try_get(handle, owner, lock))

    def _setlk(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._set(body, who, wait=False)

    def _setlkw(self, node_id: int, body: bytes, who: Who) -> Answer:
        return self._set(body, who, wait=True)

    def _set(self, body: bytes, who: Who, *, wait: bool) -> Answer:
        fh, owner, start, end, kind, pid, flags = protocol.LK_IN.unpack_from(body)
        handle = self._handles.file(fh)
        lock = Lock(start, end, kind, pid)
        flock = bool(flags & protocol.FUSE_LK_FLOCK)
        locks = self._locks
        if not handle.inode.device.slow:
            if locks.try_set(handle, owner, lock, thread=who.pid, flock=flock):
                return None
            if not wait:
                raise os_error(errno.EAGAIN)
        scope = trio.CancelScope()

        async def setting() -> None:
            with scope:
                await locks.set(handle, owner, lock, thread=who.pid, flock=flock, wait=wait)
                return
            raise interrupted()

        return Later(setting, interrupt=scope.cancel)


def _packed(lock: Lock) -> bytes:
    return protocol.LK_OUT.pack(*lock)
