"""Listings: when the entries of a directory are replied with their attributes."""

from __future__ import annotations

import time
from collections.abc import Callable

from volfs.fs.inodes.inode import Inode

_REGRET = 8
"""Replies with attributes that follow when a directory was listed without, and then searched."""

_UNKNOWN = 8
"""One entry in so many may be unknown to the kernel for it to know the directory's entries."""


class Listings:
    """Decides for each reply, and learns from what is asked for afterwards.

    An entry replied with its attributes counts as looked up, as the kernel remembers it. That
    costs several times a bare entry, and pays only where somebody asks for the attributes (ls -l,
    find): so a listing begins with them and goes on with them while its entries are asked for,
    or while those of the directories listed before were. Nor are they needed when the kernel has
    them: git status looks all files up, and then lists the directories.

    ``timeout``: how long the kernel keeps attributes, in seconds; 0 if it may not.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._paying = 0

    def with_attributes(
        self, directory: Inode, *, first: bool, count: Callable[[int], int] | None = None
    ) -> bool:
        """Whether the next reply (the ``first`` of a listing?) carries attributes.

        ``count`` tells how many entries the directory has, up to as many as it is asked for; None
        where that takes as long as to list it.
        """
        if first and count is not None and self._knows(directory, count):
            directory.searched = 0
            return False
        full = self._timeout > 0 and (first or directory.searched > 0 or self._paying > 0)
        directory.searched = 0
        if not full:
            directory.bare = True
        elif not first:
            self._attributes_pay(-1)
        return full

    def asked_for(self, inode: Inode) -> None:
        """Note that the attributes of ``inode``, listed so that we are told, are asked for."""
        inode.listed = False
        self._attributes_pay(2)
        if inode.parent is not None:
            inode.parent.searched = max(inode.parent.searched, 1)

    def searched(self, directory: Inode) -> None:
        """Note that an entry of ``directory`` was looked up."""
        now = time.monotonic()
        recent = now - directory.searched_at < self._timeout
        directory.searched = directory.searched + 1 if recent else 1
        directory.searched_at = now
        if directory.bare:
            directory.bare = False
            self._attributes_pay(_REGRET)

    def _knows(self, directory: Inode, count: Callable[[int], int]) -> bool:
        """Whether about all entries were looked up so lately that the kernel has them still."""
        known = directory.searched
        if known == 0 or time.monotonic() - directory.searched_at >= self._timeout:
            return False
        enough = known + known // _UNKNOWN + 2  # with the dots
        return count(enough + 1) <= enough

    def _attributes_pay(self, change: int) -> None:
        self._paying = min(max(self._paying + change, 0), _REGRET * 8)
