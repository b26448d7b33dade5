"""A session whose requests are answered in the tap. Needs the C extensions to import."""

from __future__ import annotations

import pyfuse3
import trio

from volfs.fs.agreement import Connection
from volfs.fs.files import CachePolicy
from volfs.fs.native import _records  # noqa: F401  (all of them are needed)
from volfs.fs.requests import Later, Requests
from volfs.fs.wire import _tap, protocol
from volfs.fs.wire.attributes import AttributeOpcodes
from volfs.fs.wire.directories import DirectoryOpcodes
from volfs.fs.wire.entries import Entries
from volfs.fs.wire.files import FileOpcodes
from volfs.fs.wire.locks import LockOpcodes
from volfs.fs.wire.names import NameOpcodes
from volfs.fs.wire.negotiation import Wishes, negotiate
from volfs.fs.wire.protocol import Opcode, opcode_name
from volfs.fs.wire.wire import Wire
from volfs.linux import _calls  # noqa: F401

_GIVE_ENTRY = frozenset(
    (
        *(Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK),
        *(Opcode.CREATE, Opcode.TMPFILE),
    )
)
_ENTRY_SIZE = 128


class TappedSession:
    """Puts the tap into the session that pyfuse3 mounts next.

    What is agreed with the kernel, out of ``wishes``, becomes the connection's agreement. Raises
    RuntimeError, saying why, where there can be no tap.
    """

    def __init__(
        self, requests: Requests, cache: CachePolicy, connection: Connection, wishes: Wishes
    ) -> None:
        _tap.attach(pyfuse3.__file__)
        self._requests = requests
        self._connection = connection
        self._wishes = wishes
        entries = Entries(requests.inodes, cache)
        tables = (
            NameOpcodes(requests, entries),
            AttributeOpcodes(requests, entries, connection),
            FileOpcodes(requests, entries, connection),
            DirectoryOpcodes(requests, entries, cache, connection),
            LockOpcodes(requests),
        )
        methods = {opcode: m for table in tables for opcode, m in table.methods().items()}
        self._wire = Wire(methods, self._take_back, requests.threads.stall, connection)
        _tap.on_reply(Opcode.INIT, self._negotiate)

    @property
    def is_mounted(self) -> bool:
        """Whether a session was mounted through the tap, and not past it."""
        return _tap.session_fd() >= 0

    def begin(self, nursery: trio.Nursery) -> None:
        """Answer requests from now on; those that have to wait run in ``nursery``."""
        self._wire.begin(nursery)
        nursery.start_soon(self._requests.locks.serve)

    def statistics(self) -> dict[str, object]:
        """How many requests of each kind have been read, and how many are still to be answered."""
        counts = {opcode_name(opcode): count for opcode, count in sorted(_tap.counts().items())}
        return {"requests": counts, "waiting": self._wire.waiting}

    def close(self) -> None:
        """Let go of the session, before pyfuse3 closes it."""
        _tap.close()
        self._wire.close()

    def _negotiate(self, request: bytes, reply: bytes) -> bytes:
        reply, self._connection.agreement = negotiate(
            request, reply, self._wishes, device=_tap.session_fd()
        )
        return reply

    def _take_back(self, opcode: int, body: bytes) -> None:
        closing = take_back(self._requests, opcode, body)
        if closing is not None:
            self._wire.start(closing)


def take_back(requests: Requests, opcode: int, body: bytes) -> Later[None] | None:
    """Undo what a reply gave that its caller did not live to see: a look-up, an open.

    ``body`` is the reply's. What is returned is still to be waited for, by anybody.
    """
    if opcode in _GIVE_ENTRY:
        (node_id,) = protocol.U64.unpack_from(body)
        if node_id:
            requests.names.forget(((node_id, 1),))
        body = body[_ENTRY_SIZE:]
    if opcode in (Opcode.OPEN, Opcode.CREATE, Opcode.TMPFILE):
        return requests.files.release(protocol.OPEN_OUT.unpack_from(body)[0])
    if opcode == Opcode.OPENDIR:
        return requests.directories.releasedir(protocol.OPEN_OUT.unpack_from(body)[0])
    return None
