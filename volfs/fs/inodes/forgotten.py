"""Forgotten: where inodes were that the kernel does not know any more.

It can ask for one all the same, by its node id: in the name of who kept a file handle of it
(open_by_handle_at(2), NFS clients).
"""

from __future__ import annotations

_MOST = 1 << 16
"""How many are known at least, if there were as many; twice that at most. Some 130 bytes each."""


class Forgotten:
    """The directory that each of the inodes forgotten last was in, by the numbers of both."""

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._older: dict[int, int] = {}

    def note(self, number: int, directory: int) -> None:
        """Note that an inode which was in ``directory`` is forgotten."""
        self._recent[number] = directory
        if len(self._recent) > _MOST:
            self._older, self._recent = self._recent, {}

    def directory_of(self, number: int) -> int | None:
        """The directory that an inode was in; None where that is not known any more."""
        found = self._recent.get(number)
        return self._older.get(number) if found is None else found
