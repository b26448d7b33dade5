"""A session whose requests are answered in the tap. Needs the C extensions to import."""

from __future__ import annotations

from collections.abc import Callable

import pyfuse3
import trio

from volfs.fs.files.cache import CachePolicy
from volfs.fs.native import _records  # noqa: F401  (all of them are needed)
from volfs.fs.requests.requests import Later, Requests
from volfs.fs.wire import _tap, protocol
from volfs.fs.wire.directories import DirectoryRequests
from volfs.fs.wire.files import FileRequests
from volfs.fs.wire.locks import LockRequests
from volfs.fs.wire.names import NodeRequests
from volfs.fs.wire.protocol import Opcode, opcode_name
from volfs.fs.wire.wire import Wire
from volfs.linux import _calls  # noqa: F401
from volfs.linux.identity import Caller

_GIVE_ENTRY = frozenset(
    (
        *(Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK),
        *(Opcode.CREATE, Opcode.TMPFILE),
    )
)
_ENTRY_SIZE = 128


class TappedSession:
    """Puts the tap into the session that pyfuse3 mounts next.

    ``negotiate(request, reply)`` returns the reply to INIT. Raises RuntimeError, saying why,
    where there can be no tap.
    """

    def __init__(
        self,
        requests: Requests,
        caller: Caller,
        cache: CachePolicy,
        negotiate: Callable[[bytes, bytes], bytes],
    ) -> None:
        _tap.attach(pyfuse3.__file__)
        self._requests = requests
        nodes = NodeRequests(requests, cache)
        self._files = FileRequests(requests, nodes, caller)
        self._directories = DirectoryRequests(requests, nodes, cache)
        tables = (nodes, self._files, self._directories, LockRequests(requests, requests.locks))
        methods = {opcode: m for table in tables for opcode, m in table.methods().items()}
        self._wire = Wire(methods, self._take_back)
        _tap.on_reply(Opcode.INIT, negotiate)

    @property
    def descriptor(self) -> int:
        """The descriptor of the FUSE device; -1 when the session was mounted without the tap."""
        return _tap.session_fd()

    def begin(self, nursery: trio.Nursery) -> None:
        """Answer requests from now on; those that have to wait run in ``nursery``."""
        self._wire.nursery = nursery
        self._wire.begin()
        nursery.start_soon(self._requests.locks.serve)

    def list_by_inode(self) -> None:
        """List directories without their having been opened."""
        self._directories.lists_by_inode = True
        self._requests.lists_by_inode = True

    def append_directly(self, directly: bool) -> None:
        """Let appends go past the kernel's page cache, or not: see FileRequests."""
        self._files.appends_directly = directly

    @property
    def waiting(self) -> int:
        """How many requests are still to be answered."""
        return self._wire.waiting

    @staticmethod
    def counts() -> dict[str, int]:
        """How many requests of each kind have been read so far."""
        return {opcode_name(opcode): count for opcode, count in sorted(_tap.counts().items())}

    def close(self) -> None:
        """Let go of the session, before pyfuse3 closes it."""
        _tap.close()
        self._wire.close()

    def _take_back(self, opcode: int, body: bytes) -> None:
        """Undo a reply that its caller did not live to see: a look-up, an open."""
        if opcode in _GIVE_ENTRY:
            (node_id,) = protocol.U64.unpack_from(body)
            if node_id:
                self._requests.forget(((node_id, 1),))
            body = body[_ENTRY_SIZE:]
        closing: Later[None] | None = None
        if opcode in (Opcode.OPEN, Opcode.CREATE, Opcode.TMPFILE):
            closing = self._requests.release(protocol.OPEN_OUT.unpack_from(body)[0])
        elif opcode == Opcode.OPENDIR:
            closing = self._requests.releasedir(protocol.OPEN_OUT.unpack_from(body)[0])
        if closing is not None and self._wire.nursery is not None:
            self._wire.nursery.start_soon(closing)
