"""What is mounted where, as /proc/PID/mountinfo tells it (proc_pid_mountinfo(5)).

Nothing here touches the mounted filesystems: a dead one cannot make the reader wait.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")
_PIECE = 1 << 16
DELETED = "//deleted"
"""Ends the root of a mount whose directory was removed (seq_dentry in the kernel)."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted filesystem, or a part of one.

    ``device`` is the superblock's "major:minor" (on btrfs not what stat(2) tells), ``root``
    the path inside that filesystem which shows at ``point``.
    """

    id: int
    parent: int
    device: str
    root: str
    point: str
    fstype: str
    source: str
    options: str


@dataclass(frozen=True, slots=True)
class Place:
    """A directory named by its filesystem and its path therein, the same in every namespace."""

    device: str
    path: str


class MountTable:
    """The mounts one mount namespace shows to one process."""

    def __init__(self, mounts: Iterable[Mount]) -> None:
        self._by_id = {mount.id: mount for mount in mounts}
        self._children: dict[int, list[Mount]] = {}
        for mount in self:
            self._children.setdefault(mount.parent, []).append(mount)

    @classmethod
    def of_process(cls, pid: int | str = "self") -> MountTable:
        """Read the table of a process. Raises OSError when it is gone or may not be looked at."""
        return cls(parse(Path(f"/proc/{pid}/mountinfo").read_bytes()))

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Mount]:
        return iter(self._by_id.values())

    def get(self, mount_id: int) -> Mount | None:
        """Return the mount of that id (as ``mnt_id`` in fdinfo), None when not in the table."""
        return self._by_id.get(mount_id)

    def attached_to(self, mount: Mount) -> Place | None:
        """Return the directory the mount covers; None for the namespace's root."""
        parent = self._by_id.get(mount.parent)
        if parent is None or parent is mount:
            return None
        return _place(parent, mount.point)

    def way_to(self, path: str) -> list[Mount]:
        """Return the mounts crossed on the way to an absolute real path, its own mount last.

        Follows parents rather than taking the longest mount point, which another mount may
        have covered since. Empty when the table does not show it: after chroot(2) into a
        directory that is no mount point, the mount of "/" is not listed.
        """
        tops = [
            mount
            for mount in self
            if (mount.parent not in self._by_id or mount.parent == mount.id)
            and is_inside(path, mount.point)
        ]
        way = tops[:1]
        while way:
            crossed = [
                child
                for child in self._children.get(way[-1].id, ())
                if is_inside(path, child.point) and child is not way[-1]
            ]
            if not crossed:
                break
            way.append(min(crossed, key=lambda child: len(child.point)))
        return way

    def place_of(self, path: str) -> Place | None:
        """Return where an absolute real path lies in its filesystem."""
        way = self.way_to(path)
        return _place(way[-1], path) if way else None


def _place(mount: Mount, path: str) -> Place:
    rest = path if mount.point == "/" else path[len(mount.point) :]
    return Place(mount.device, (mount.root.rstrip("/") + rest).rstrip("/") or "/")


def is_inside(path: str, directory: str) -> bool:
    """Tell, component by component, whether ``path`` is ``directory`` or below it."""
    return path == directory or directory == "/" or path.startswith(directory + "/")


def parse(text: bytes) -> list[Mount]:
    """Parse the content of a mountinfo file."""
    return [mount for line in text.split(b"\n") if (mount := _parse_line(line))]


def mounts_of(pid: int, limit: int | None = None) -> Iterator[Mount]:
    """Yield the mounts that a process sees, one at a time as the kernel tells them.

    They need not come in the order in which they are mounted on each other. ``limit`` is how many
    bytes are read at most: how long it takes and how much it is, is up to whoever mounts, and a
    path can be of any length. Raises OSError when the process is gone or not ours to see.
    """
    with Path(f"/proc/{pid}/mountinfo").open("rb", buffering=0) as file:
        rest = b""
        while limit is None or limit > 0:
            piece = file.read(_PIECE)
            if not piece:
                break
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if mount := _parse_line(line):
                    yield mount
            if limit is not None:
                limit -= len(piece)


def _parse_line(line: bytes) -> Mount | None:
    # Optional fields stand between the sixth and the lone dash, in any number.
    head, _, tail = line.decode("utf-8", "surrogateescape").partition(" - ")
    fields, kind = head.split(" "), tail.split(" ")
    if len(fields) < 6 or len(kind) < 3:
        return None
    return Mount(
        id=int(fields[0]),
        parent=int(fields[1]),
        device=fields[2],
        root=_unescape(fields[3]),
        point=_unescape(fields[4]),
        fstype=kind[0],
        source=_unescape(kind[1]),
        options=kind[2],
    )


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)
