"""What one known inode costs: at most 1 KB, however the kernel came to know it."""

from __future__ import annotations

import gc
import os
import resource
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from tests.fs.conftest import Filesystem, FilesystemFactory

MANY = 100_000
FEWER = 20_000
LIMIT = 1024
"""Bytes."""
FIRST = 1 << 40


def grown_by(fill: Callable[[], None]) -> int:
    """Bytes that are in use after ``fill`` and were not before."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    fill()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return after - before


def remember(fs: Filesystem, count: int, path: Path | None = None) -> None:
    """Make so many inodes known, by a descriptor of ``path`` or, without one, only seen."""
    parent = fs.inode(fs.volume()[0])
    dev = fs.root_inode.device.dev
    for number in range(FIRST, FIRST + count):
        status = os.stat_result((stat.S_IFREG, number, dev, 1, 0, 0, 0, 0, 0, 0))
        fd = -1 if path is None else os.open(path, os.O_PATH)
        # About as long as names are.
        fs.inodes.remember(status, parent, b"a-name-of-%d.txt" % number, fd)


def test_inodes_only_listed(fs: Filesystem) -> None:
    assert grown_by(lambda: remember(fs, MANY)) <= MANY * LIMIT
    assert len(fs.inodes) == MANY + 2


def test_inodes_looked_up_and_evicted(filesystem: FilesystemFactory, workspace: Path) -> None:
    fs = filesystem(descriptors=64)
    path = workspace / "f"
    path.touch()
    assert grown_by(lambda: remember(fs, MANY, path)) <= MANY * LIMIT
    assert len(fs.descriptors) <= 48
    # Evicted with what finds them again.
    assert fs.inode(FIRST).file_handle is not None


def test_inodes_with_descriptors(filesystem: FilesystemFactory, workspace: Path) -> None:
    fs = filesystem(descriptors=FEWER)
    path = workspace / "f"
    path.touch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        count = FEWER // 2
        assert grown_by(lambda: remember(fs, count, path)) <= count * LIMIT
        assert len(fs.descriptors) == count + 1
    finally:
        fs.inodes.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_forgetting_gives_memory_back(fs: Filesystem) -> None:
    def remember_and_forget() -> None:
        remember(fs, FEWER)
        for number in range(FIRST, FIRST + FEWER):
            fs.inodes.forget(number, 1)

    # An emptied dict keeps its table, of about 100 bytes an entry.
    assert grown_by(remember_and_forget) <= FEWER * 128
    assert len(fs.inodes) == 2
