"""Ways of changing a file, all of which concern its set-id bits and capabilities."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from tests.children import MEMBERS, USER

# -- through a descriptor


def write(fd: int, source: int) -> None:
    assert os.pwrite(fd, os.pread(source, 1 << 20, 0), 0)


def write_direct(fd: int, source: int) -> None:
    block = mmap.mmap(-1, 4096)
    block[:] = os.pread(source, 4096, 0).ljust(4096, b"\0")
    direct = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT)
    os.pwritev(direct, [block], 0)
    os.close(direct)
    os.pwrite(fd, os.pread(source, 1 << 20, 4096), 4096)


def append(fd: int, source: int) -> None:
    appender = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND)
    os.write(appender, b"more")
    os.close(appender)


def send(fd: int, source: int) -> None:
    os.sendfile(fd, source, 0, 1 << 20)


def splice(fd: int, source: int) -> None:
    out, into = os.pipe()
    while moved := os.splice(source, into, 1 << 16):
        os.splice(out, fd, moved)
    os.close(out)
    os.close(into)


def copy_range(fd: int, source: int) -> None:
    while os.copy_file_range(source, fd, 1 << 20):
        pass


def truncate_to_nothing(fd: int, source: int) -> None:
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC))
    write(fd, source)


def shrink(fd: int, source: int) -> None:
    os.ftruncate(fd, 10)


def shrink_by_name(fd: int, source: int) -> None:
    os.truncate(f"/proc/self/fd/{fd}", 10)


CHANGES: dict[str, Callable[[int, int], None]] = {
    function.__name__: function
    for function in (
        write,
        write_direct,
        append,
        send,
        splice,
        copy_range,
        truncate_to_nothing,
        shrink,
        shrink_by_name,
    )
}
"""Each changes an open file, given its descriptor and one of a file with content for it."""


def change(path: Path, source: Path, how: Callable[[int, int], None]) -> None:
    """Open a file and one with content for it, and change it in one of the ways of CHANGES."""
    with path.open("r+b", buffering=0) as file, source.open("rb", buffering=0) as reader:
        how(file.fileno(), reader.fileno())


# -- by name


def append_to(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def truncate_open(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1)


def overwrite_direct(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_SYNC)
    os.pwrite(fd, b"x", 0)
    os.close(fd)


CHANGES_BY_NAME: dict[str, Callable[[Path], object]] = {
    "write": append_to,
    "write synchronously": overwrite_direct,
    "truncate": lambda path: os.truncate(path, 1),
    "truncate an open file": truncate_open,
    "O_TRUNC": lambda path: path.open("wb").close(),
    "chown to its group": lambda path: os.chown(path, -1, MEMBERS),
    "chown to itself": lambda path: os.chown(path, USER, USER),
    "open for writing": lambda path: path.open("r+b").close(),
    "touch": os.utime,
    "chmod": lambda path: path.chmod(0o6751),
    "chmod setgid": lambda path: path.chmod(0o2775),
}
"""What may change a file or leave it as it is, given its path."""
