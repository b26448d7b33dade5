"""How much space directories take."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

_TOLD_EVERY = 500
"""Entries between two reports: a few milliseconds, on a local filesystem."""


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes allocated on disk, and how many files and directories there are."""

    size: int
    entries: int

    def __add__(self, other: Space) -> Space:
        return Space(self.size + other.size, self.entries + other.entries)


def measure(directory: str, on_progress: Callable[[Space], None] | None = None) -> Space:
    """Return what a directory and all below it take, each hard-linked file counted once.

    Links are not followed and other filesystems mounted below not entered; what vanishes or
    is forbidden meanwhile is passed over. Extents that files share (reflinks) count for each
    of them, as the filesystem reports them. Slow on large trees: it looks at every file, and
    now and then tells ``on_progress`` what it has counted.

    Raises OSError when the directory itself is not there or cannot be opened, or the tree is
    deeper than this process can have files open.
    """
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
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
            except OSError:
                continue
            if found.st_dev != top.st_dev:
                continue
            if stat.S_ISDIR(found.st_mode):
                below = _open_below(name, fd)
                if below is not None:
                    stack.append((below, iter(_names(below))))
            elif found.st_nlink > 1:
                if found.st_ino in linked:
                    continue
                linked.add(found.st_ino)
            size += found.st_blocks * 512
            entries += 1
            if on_progress is not None and entries % _TOLD_EVERY == 0:
                on_progress(Space(size, entries))
    finally:
        for fd, _ in stack:
            os.close(fd)
    return Space(size, entries)


def _open_below(name: str, fd: int) -> int | None:
    """Open a directory, None when it is gone or forbidden."""
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    except OSError as error:
        _require_descriptors(error)
        return None


def _names(fd: int) -> list[str]:
    try:
        return os.listdir(fd)
    except OSError as error:
        _require_descriptors(error)
        return []


def _require_descriptors(error: OSError) -> None:
    # Without free descriptors, half of a tree would pass for the whole of it.
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise error
