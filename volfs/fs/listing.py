"""Listings: when the entries of a directory are replied with their attributes."""

from __future__ import annotations

from volfs.fs.inode import Inode

_REGRET = 8
"""Replies with attributes that follow when a directory was listed without, and then searched."""


class Listings:
    """Decides for each reply, and learns from what is asked for afterwards.

    An entry replied with its attributes counts as looked up, as the kernel remembers it. That
    costs several times a bare entry, and pays only where somebody asks for the attributes (ls -l,
    find): so a listing begins with them and goes on with them while its entries are asked for,
    or while those of the directories listed before were.

    ``keeps``: whether the kernel may keep attributes at all.
    """

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._paying = 0

    def with_attributes(self, directory: Inode, *, first: bool) -> bool:
        """Whether the next reply (the ``first`` of a listing?) carries attributes."""
        full = self._keeps and (first or directory.searched or self._paying > 0)
        directory.searched = False
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
            inode.parent.searched = True

    def regret(self, directory: Inode) -> None:
        """Note that a directory listed without attributes is searched."""
        directory.bare = False
        self._attributes_pay(_REGRET)

    def _attributes_pay(self, change: int) -> None:
        self._paying = min(max(self._paying + change, 0), _REGRET * 8)
