"""How much space directories take."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes allocated on disk, and how many files and directories there are."""

    size: int
    entries: int

    def __add__(self, other: Space) -> Space:
        return Space(self.size + other.size, self.entries + other.entries)


def measure(directory: str) -> Space:
    """Return what a directory and all below it take, each hard-linked file counted once.

    Links are not followed and other filesystems mounted below not entered; what vanishes or
    is forbidden meanwhile is passed over. Slow on large trees: it looks at every file.
    """
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return Space(0, 0)
    top = os.fstat(root)
    size, entries = top.st_blocks * 512, 1
    linked: set[int] = set()
    # Descriptors, so that no name in the tree can lead out of it while it is walked. A directory
    # is open while its own subdirectories are: as many as the tree is deep.
    stack = [(root, iter(_names(root)))]
    try:
        while stack:
            fd, names = stack[-1]
            name = next(names, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            try:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if found.st_dev != top.st_dev:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                    stack.append((below, iter(_names(below))))
                elif found.st_nlink > 1:
                    if found.st_ino in linked:
                        continue
                    linked.add(found.st_ino)
            except OSError:
                continue
            size += found.st_blocks * 512
            entries += 1
    finally:
        for fd, _ in stack:
            os.close(fd)
    return Space(size, entries)


def _names(fd: int) -> list[str]:
    try:
        return os.listdir(fd)
    except OSError:
        return []
