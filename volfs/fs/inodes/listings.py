"""Listings: when the entries of a directory are replied with their attributes."""

from __future__ import annotations

import time
from collections.abc import Callable

from volfs.fs.inodes.inode import Inode, Listed

_REGRET = 8
"""Replies with attributes that follow when a directory was listed without, and then searched."""

_UNKNOWN = 8
"""The kernel counts as knowing a directory while it lacks at most one entry in this many."""


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

    def want_attributes(
        self, directory: Inode, *, first: bool, count: Callable[[int], int]
    ) -> bool:
        """Whether the next reply (the ``first`` of a listing?) should carry attributes.

        ``count(most)`` tells how many entries the directory has, at most ``most``.
        """
        listed = directory.listed
        if listed is not None and first and self._kernel_knows(listed, count):
            return False
        searched = listed is not None and listed.searched > 0
        return self._timeout > 0 and (first or searched or self._paying > 0)

    def replied(self, directory: Inode, *, first: bool, attributes: bool) -> None:
        """Note that a reply was sent, with ``attributes`` or without."""
        listed = _listed(directory)
        listed.searched = 0
        if first:
            return  # with attributes, or without since the kernel has them
        if attributes:
            self._attributes_pay(-1)
        else:
            listed.bare = True

    def told(self, inode: Inode, told: bool) -> None:
        """Note whether an entry was replied so that the kernel has to ask for its attributes."""
        if told or inode.listed is not None:
            _listed(inode).told = told

    def asked_for(self, inode: Inode) -> None:
        """Note that the kernel asks for the attributes of ``inode``, as its listing makes it do."""
        _listed(inode).told = False
        self._attributes_pay(2)
        if inode.parent is not None:
            parent = _listed(inode.parent)
            parent.searched = max(parent.searched, 1)

    def searched(self, directory: Inode) -> None:
        """Note that an entry of ``directory`` was looked up."""
        listed = directory.listed
        if listed is None:
            listed = directory.listed = Listed()
        now = time.monotonic()
        recent = now - listed.searched_at < self._timeout
        listed.searched = listed.searched + 1 if recent else 1
        listed.searched_at = now
        if listed.bare:
            listed.bare = False
            self._attributes_pay(_REGRET)

    def _kernel_knows(self, listed: Listed, count: Callable[[int], int]) -> bool:
        """Whether nearly all entries were looked up so lately that the kernel still has them."""
        known = listed.searched
        if known == 0 or time.monotonic() - listed.searched_at >= self._timeout:
            return False
        enough = known + known // _UNKNOWN + 2  # with the dots
        return count(enough + 1) <= enough

    def _attributes_pay(self, change: int) -> None:
        self._paying = min(max(self._paying + change, 0), _REGRET * 8)


def _listed(inode: Inode) -> Listed:
    if inode.listed is None:
        inode.listed = Listed()
    return inode.listed
