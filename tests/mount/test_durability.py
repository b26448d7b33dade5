"""What fsync and O_SYNC promise: the backing file is on disk before the caller goes on.

Told by the system calls of the daemon, as strace sees them.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import levels
from tests.conftest import Mounted, MountFactory
from tests.filesystems import program

WATCHED = "fsync,fdatasync,syncfs,sync_file_range,openat,write,pwrite64,pwritev,pwritev2"


class Trace:
    """The system calls of a daemon, each with the paths of its descriptors."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def calls(self, pattern: str) -> list[str]:
        """The calls so far that match; a call is written there before it returns to the daemon."""
        return re.findall(rf"^\d+ +({pattern}.*)$", self._path.read_text(), re.MULTILINE)


@contextmanager
def traced(tree: Mounted, workspace: Path) -> Iterator[Trace]:
    path = workspace / "trace"
    path.touch()
    command = [program("strace", "strace"), "-f", "-y", "-o", str(path), "-e", f"trace={WATCHED}"]
    tracer = subprocess.Popen(
        [*command, "-p", str(tree.pid)], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert tracer.stderr is not None
    try:
        while b"attached" not in (line := tracer.stderr.readline()):
            assert line, "strace did not attach"
        yield Trace(path)
    finally:
        tracer.terminate()
        tracer.wait()
        tracer.stderr.close()


@pytest.fixture(params=["never", "auto", "always"])
def tree(request: pytest.FixtureRequest, mount: MountFactory) -> Mounted:
    return mount(cache=request.param)


def test_fsync_reaches_the_backing_file(tree: Mounted, workspace: Path) -> None:
    (tree.mnt / "vol" / "dir").mkdir(parents=True)
    data = tree.data("vol")
    with traced(tree, workspace) as trace:
        fd = os.open(tree.mnt / "vol" / "file", os.O_CREAT | os.O_RDWR)
        os.write(fd, b"content")
        for name, call in (("fsync", os.fsync), ("fdatasync", os.fdatasync)):
            before = trace.calls(rf"{name}\(\d+<{data}/file>\)")
            call(fd)
            assert len(trace.calls(rf"{name}\(\d+<{data}/file>\)")) == len(before) + 1, name
        os.close(fd)
        read_only = os.open(tree.mnt / "vol" / "file", os.O_RDONLY)
        os.fsync(read_only)
        assert len(trace.calls(rf"fsync\(\d+<{data}/file>\)")) == 2
        os.close(read_only)
        for name, call in (("fsync", os.fsync), ("fdatasync", os.fdatasync)):
            directory = os.open(tree.mnt / "vol" / "dir", os.O_RDONLY)
            call(directory)
            assert trace.calls(rf"{name}\(\d+<{data}/dir>\)"), f"{name} of a directory"
            os.close(directory)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC], ids=["O_SYNC", "O_DSYNC"])
@pytest.mark.parametrize("append", [0, os.O_APPEND], ids=["", "O_APPEND"])
def test_synchronous_writes_write_through(
    mount: MountFactory, workspace: Path, flag: int, append: int
) -> None:
    """Where the daemon writes, by a descriptor with the same flag; else the kernel does."""
    tree = mount()
    (tree.mnt / "vol").mkdir()
    (tree.data("vol") / "file").write_bytes(b"before")
    word = "O_SYNC" if flag == os.O_SYNC else "O_DSYNC"
    backing = f"{tree.data('vol')}/file"
    with traced(tree, workspace) as trace:
        fd = os.open(tree.mnt / "vol" / "file", os.O_WRONLY | flag | append)
        written = os.write(fd, b"content")
        assert written == 7
        if not levels.reaches("passthrough"):
            opened = trace.calls(rf"openat\(.*{word}.*= \d+<{backing}>")
            assert opened, "the backing file is not open for synchronous writing"
            number = re.findall(r"= (\d+)<", opened[-1])[0]
            assert trace.calls(rf"p?write\w*\({number}<{backing}>")
        os.close(fd)
    assert (tree.data("vol") / "file").read_bytes() == (b"beforecontent" if append else b"content")
