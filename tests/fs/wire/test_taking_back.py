"""What a reply gave that nobody lived to receive is taken back."""

from __future__ import annotations

import os

import pytest

from tests.fs.conftest import Filesystem
from volfs.fs.agreement import Agreement
from volfs.fs.files import CachePolicy
from volfs.fs.requests import Later
from volfs.fs.wire import protocol
from volfs.fs.wire.directories import DirectoryOpcodes
from volfs.fs.wire.entries import Entries
from volfs.fs.wire.files import FileOpcodes
from volfs.fs.wire.names import NameOpcodes
from volfs.fs.wire.protocol import Opcode, Who
from volfs.fs.wire.session import take_back

WHO = Who(0, 0, 1, 0)
CREATE = protocol.CREATE_IN.pack(os.O_RDWR, 0o100644, 0, 0)
OPEN = protocol.U32_PAIR.pack(os.O_RDWR, 0)

REQUESTS = {
    Opcode.LOOKUP: b"f\0",
    Opcode.OPEN: OPEN,
    Opcode.OPENDIR: OPEN,
    Opcode.CREATE: CREATE + b"new\0",
    Opcode.TMPFILE: CREATE + b"\0",
    Opcode.SYMLINK: b"new\0target\0",
}


@pytest.mark.parametrize("opcode", REQUESTS, ids=lambda opcode: opcode.name)
async def test_nothing_is_left(fs: Filesystem, opcode: Opcode) -> None:
    fs.agree(Agreement(device=0))
    top, data = fs.volume()
    (data / "f").write_bytes(b"content")
    file = (await fs.lookup(top, b"f")).st_ino
    requests, entries = fs.requests, Entries(fs.inodes, CachePolicy.AUTO)
    methods = {
        **NameOpcodes(requests, entries).methods(),
        **FileOpcodes(requests, entries, fs.parts.connection).methods(),
        **DirectoryOpcodes(requests, entries, CachePolicy.AUTO, fs.parts.connection).methods(),
    }
    before, descriptors = fs.statistics(), len(os.listdir("/proc/self/fd"))
    node = file if opcode is Opcode.OPEN else top
    body = methods[opcode](node, REQUESTS[opcode], WHO)
    assert isinstance(body, bytes)
    assert fs.statistics() != before
    closing = take_back(requests, opcode, body)
    if isinstance(closing, Later):
        await closing()
    assert fs.statistics() == before
    assert requests.handles.descriptors == 0
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_an_absent_name_gave_nothing(fs: Filesystem) -> None:
    before = fs.statistics()
    assert take_back(fs.requests, Opcode.LOOKUP, bytes(128)) is None
    assert fs.statistics() == before
