"""Files of all kinds, and descriptors of them."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.fs.native.records")

from tests.fs.native.records import LONGEST, SECOND, Opened  # noqa: E402


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens descriptors that last as long as the test."""
    with ExitStack() as stack:

        def descriptor(path: Path, flags: int = os.O_RDONLY) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        yield descriptor


@pytest.fixture
def zoo(workspace: Path) -> Path:
    """A directory with a file of each type, and some with unusual attributes."""
    zoo = workspace / "zoo"
    zoo.mkdir()
    (zoo / "file").write_bytes(b"x" * 5000)
    (zoo / "directory").mkdir(mode=0o1777)
    (zoo / "symlink").symlink_to("nowhere")
    os.link(zoo / "file", zoo / "hard link")
    os.mkfifo(zoo / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(zoo / "socket"))
    if os.geteuid() == 0:
        # More than 8 bits of the minor number, and all 12 of the major.
        os.mknod(zoo / "character", stat.S_IFCHR | 0o600, os.makedev(0xABC, 0xDEF12))
        os.mknod(zoo / "block", stat.S_IFBLK | 0o600, os.makedev(259, 300))
    (zoo / "sparse").touch()
    os.truncate(zoo / "sparse", 5 << 32)
    (zoo / "old").touch()
    os.utime(zoo / "old", ns=(-3 * SECOND + 123_456_789, -1))
    (zoo / "setuid").touch()
    if os.geteuid() == 0:
        os.chown(zoo / "setuid", 4_000_000_000, 3_000_000_000)
    (zoo / "setuid").chmod(0o6755)
    (zoo / os.fsdecode(LONGEST)).touch()
    return zoo
