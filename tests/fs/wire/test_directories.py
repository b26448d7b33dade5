"""Listings on the wire."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from tests.fs.conftest import Filesystem
from volfs.fs.files import CachePolicy
from volfs.fs.native._records import read_entries
from volfs.fs.wire import directories
from volfs.fs.wire.entries import Entries
from volfs.fs.wire.names import NameOpcodes
from volfs.fs.wire.protocol import READ_IN, U64, Opcode, Who
from volfs.fs.wire.wire import Method

ROOM = 1 << 16


def opcodes(fs: Filesystem) -> dict[Opcode, Method]:
    entries = Entries(fs.inodes, CachePolicy.AUTO)
    connection = fs.parts.connection
    listing = directories.DirectoryOpcodes(fs.requests, entries, CachePolicy.AUTO, connection)
    return {**NameOpcodes(fs.requests, entries).methods(), **listing.methods()}


def test_an_error_after_some_entries_loses_no_count_and_is_told(
    fs: Filesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was replied before the error counts; the request after it meets the error."""
    top, data = fs.volume()
    for number in range(10):
        (data / f"f{number}").touch()
    methods = opcodes(fs)
    who = Who(0, 0, os.getpid())
    opened = methods[Opcode.OPENDIR](top, bytes(8), who)
    assert isinstance(opened, bytes)
    handle = U64.unpack_from(opened)[0]
    calls = 0

    def read(*arguments: Any) -> list[tuple[bytes, int, int, int]]:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.EIO, "disk trouble")
        return read_entries(arguments[0], arguments[1], 5)

    monkeypatch.setattr(directories, "read_entries", read)
    before = fs.statistics()["lookups"]
    reply = methods[Opcode.READDIRPLUS](top, READ_IN.pack(handle, 0, ROOM), who)
    assert isinstance(reply, bytes)
    counted = at = 0
    while at < len(reply):
        counted += U64.unpack_from(reply, at)[0] != 0
        length = int.from_bytes(reply[at + 144 : at + 148], "little")
        at += 128 + (24 + length + 7) // 8 * 8
    assert 0 < counted <= 5
    assert fs.statistics()["lookups"] - before == counted
    fs.requests.listings.searched(fs.inode(top))  # so that attributes are replied again
    with pytest.raises(OSError, match="disk trouble"):
        methods[Opcode.READDIRPLUS](top, READ_IN.pack(handle, 1, ROOM), who)


@pytest.mark.parametrize("looked_up", [1.0, 0.2])
def test_entries_that_the_kernel_knows_are_listed_without_attributes(
    fs: Filesystem, looked_up: float
) -> None:
    """As git status does it: all files are looked up, and then the directory is listed."""
    names = [b"f%d" % number for number in range(100)]
    top, data = fs.volume()
    for name in names:
        (data / name.decode()).touch()
    methods = opcodes(fs)
    who = Who(0, 0, os.getpid())
    known = names[: int(len(names) * looked_up)]
    for name in known:
        methods[Opcode.LOOKUP](top, name + b"\0", who)
    before = fs.statistics()["lookups"]
    for again in (False, True):
        opened = methods[Opcode.OPENDIR](top, bytes(8), who)
        assert isinstance(opened, bytes)
        handle = U64.unpack_from(opened)[0]
        reply = methods[Opcode.READDIRPLUS](top, READ_IN.pack(handle, 0, ROOM), who)
        assert isinstance(reply, bytes)
        counted = fs.statistics()["lookups"] - before
        # What was looked up before the last listing says nothing about the next one.
        assert counted == (0 if looked_up == 1.0 and not again else len(names)), again
        before += counted
        assert all(name in reply for name in names)
