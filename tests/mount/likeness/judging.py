"""Judge: whether a step came to the same natively and in a tree.

What cannot be compared is said here, as far as it is not left out by Rules: device and inode
numbers, clocks and their granularity, block counts and sizes, free space.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Any

from tests.levels import Level
from tests.mount.likeness.calls import Outcome, Step
from tests.mount.likeness.looks import INODE, TIMES, Look
from volfs.linux import syscalls

_DAY_NS = 86400 * 10**9
_NAMES = ("mode", "links", "uid", "gid", "size", "device", "position")
_PRIVILEGES = stat.S_ISUID | stat.S_ISGID

Pair = tuple[int, int]
"""The inode numbers that a file has on the two sides."""


class Judge:
    """Remembers how files were seen before, to tell which of their times have moved since.

    ``pids`` are those of the users on each side, in the order of USERS.
    """

    def __init__(self, level: Level, pids: tuple[list[int], list[int]]) -> None:
        self._level = level
        self._pids = pids
        self._now = time.time_ns()
        self._last: dict[Pair, tuple[Look, Look]] = {}
        self._mapped: set[Pair] = set()
        self._served: set[Pair] = set()
        self._flagged = False

    def step(self, step: Step, native: Outcome, tree: Outcome) -> str | None:
        """What is different about what came of a step, or None."""
        if native[0] != tree[0]:
            # What is append-only or immutable the kernel does not know in a tree, so that of
            # several reasons to refuse something another comes first.
            if native[0] and tree[0] and self._flagged:
                return None
            return f"{_error(tree[0])}, not {_error(native[0])}"
        values = native[1], tree[1]
        if step.call[0] == "lock":
            values = self._locks(*values)
        if values[0] != values[1]:
            return f"{_short(values[1])}, not {_short(values[0])}"
        self._heed(step, native, tree)
        for one, other in zip(native[2], tree[2], strict=True):
            what = self.looks(one, other)
            if what is not None:
                return what
        return None

    def looks(self, one: Any, other: Any) -> str | None:
        """What is different about two looks, either of which can be an errno instead."""
        if not isinstance(one, tuple) or not isinstance(other, tuple):
            return None if one == other else f"{one!r}, not {other!r}"
        told = [
            f"{name} {b:o}, not {a:o}" if name == "mode" else f"{name} {b}, not {a}"
            for name, a, b in zip(_NAMES, one, other, strict=False)
            if a != b
        ]
        told += self._times(one, other)
        return ", ".join(told) or None

    def everything(self, native: list[Any], tree: list[Any]) -> str | None:
        """What is different about all files at the end: see looks.everything."""
        one = {path: facts for path, *facts in native}
        other = {path: facts for path, *facts in tree}
        if one.keys() != other.keys():
            return f"the names {sorted(other)}, not {sorted(one)}"
        for path, (look, *rest) in one.items():
            other_look, *other_rest = other[path]
            what = self.looks(look, other_look)
            if self._level == "plain":
                del rest[-1], other_rest[-1]  # there are no flags
            if what is None and rest != other_rest:
                what = next(
                    f"{_short(b)}, not {_short(a)}"
                    for a, b in zip(rest, other_rest, strict=True)
                    if a != b
                )
            if what is not None:
                return f"{path!r}: {what}"
        return None

    def _locks(self, native: Any, tree: Any) -> tuple[Any, Any]:
        """What F_GETLK told, with users for processes."""
        if not native or not tree or len(native) != len(tree) or len(native) == 1:
            return native, tree
        who, other = native[-1], tree[-1]
        if who == -1 or other == -1:
            # Locks of open file descriptions have no process natively. In a tree they have where
            # the daemon keeps them, and F_OFD_GETLK never tells of one.
            return native[:-1], tree[:-1]
        users = self._pids[0].index(who), self._pids[1].index(other)
        return (*native[:-1], users[0]), (*tree[:-1], users[1])

    def _heed(self, step: Step, native: Outcome, tree: Outcome) -> None:
        """Note what decides whether times can be compared from now on."""
        name, *arguments = step.call
        if name == "ioctl" and arguments[2]:
            self._flagged = True
        if name == "rename" and native[0] and arguments[2] & syscalls.RENAME_WHITEOUT:
            # ext4 has begun with it, and moved the times of a directory; the kernel keeps what
            # it was told of that before.
            self._last.clear()
        if name == "utimensat" and self._level == "plain":
            # pyfuse3 has a clock's time for now, which may be a tick before the last.
            self._last.clear()
        if not native[2] or not isinstance(native[2][0], tuple):
            return
        pair = native[2][0][INODE], tree[2][0][INODE]
        if name in ("mkdir", "mknod", "symlink") or (
            name == "open" and arguments[2] & (os.O_CREAT | os.O_TMPFILE)
        ):
            self._last.pop(pair, None)  # it may have got the number of another file
        if name == "mmap":
            self._mapped.add(pair)

    def _times(self, one: Look, other: Look) -> list[str]:
        pair = one[INODE], other[INODE]
        last = self._last.get(pair)
        self._last[pair] = one, other
        if one[0] & _PRIVILEGES:
            self._served.add(pair)
        # Of a FIFO and of a device they are each filesystem's own. (A whiteout is a device too,
        # and nothing tells of its making.)
        if stat.S_ISFIFO(one[0]) or stat.S_ISCHR(one[0]):
            return []
        told = []
        for index, name in enumerate(("atime", "mtime", "ctime"), TIMES):
            # When pages of a mapping change the times is up to chance.
            if self._has_atime(pair, one) if name == "atime" else pair not in self._mapped:
                told += self._time(name, index, (one, other), last)
        return told

    def _has_atime(self, pair: Pair, look: Look) -> bool:
        """Whether it tells of each reading: not where the kernel answers from memory what it has
        read before, as it does of directories, of links, and of what the daemon serves."""
        served = self._level != "passthrough" or pair in self._served
        return stat.S_ISREG(look[0]) and not served

    def _time(
        self, name: str, index: int, now: tuple[Look, Look], last: tuple[Look, Look] | None
    ) -> list[str]:
        one, other = (self._settled(look[index]) for look in now)
        if one != other:
            return [f"{name} {other}, not {one}"]
        # The time of access moves in steps of a clock's ticks, and so may stay where it was.
        if last is None or name == "atime":
            return []
        moved = [look[index] != before[index] for look, before in zip(now, last, strict=True)]
        if moved[0] == moved[1]:
            return []
        return [f"{name} {'has moved' if moved[1] else 'has not moved'} since {last}"]

    def _settled(self, moment: int) -> int | str:
        """A time that somebody has set, or that it is of now."""
        return "now" if abs(moment - self._now) < _DAY_NS else moment


def _error(number: int) -> str:
    return os.strerror(number) if number else "success"


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) < 200 else f"{said[:150]}... ({len(said)} characters)"
