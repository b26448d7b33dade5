"""What is done with open files, and how to tell that no more are open."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import Mounted, wait_for
from tests.mount.comparing import outcome

ACCESSES = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR}
"""The ways to open a file."""


def wait_until_idle(tree: Mounted) -> None:
    """Wait for the releases to arrive, and for the kernel to give all backing files back."""

    def held() -> dict[str, int]:
        tree.drop_caches()
        counted = tree.statistics()
        names = ("open_files", "open_directories", "backing_ids")
        return {name: counted[name] for name in names if counted.get(name)}

    wait_for(lambda: not held(), f"{tree.mnt} to hold nothing, which holds {held()}", 5.0)


def use(fd: int, letter: bytes) -> list[object]:
    """What comes of everything that can be done with an open file."""
    return [
        outcome(os.pread, fd, 50, 90),
        outcome(os.pwrite, fd, letter * 20, 100),
        outcome(os.pread, fd, 50, 90),
        outcome(os.pwrite, fd, letter, 4096 + ord(letter)),
        os.fstat(fd).st_size,
    ]


def descriptors_on(pid: int, numbers: set[int]) -> Iterator[int]:
    """A process's descriptors on files with one of these inode numbers."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            status = descriptor.stat()
        except FileNotFoundError:
            continue
        if status.st_ino in numbers and stat.S_ISREG(status.st_mode):
            yield int(descriptor.name)
