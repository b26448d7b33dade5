"""World: what the generator knows to be there, so that most of what it has done can succeed.

It need not be right: what comes of a call is compared, not predicted. Now and then it is read
anew from the native side.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests import acls
from tests.mount.likeness.calls import USERS

READ, WRITE, SEARCH = 4, 2, 1

_GONE = b"\0gone"
"""A path at which nothing is."""


@dataclass
class Node:
    """What stands at a path."""

    mode: int
    uid: int
    gid: int
    inode: int = 0
    size: int = 0
    links: int = 1
    target: bytes = b""
    acl: bytes = b""
    rights: dict[int, int] = field(default_factory=dict)
    """What users may do, as far as it was asked."""

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)


@dataclass
class Opened:
    """An open file, which several slots can stand for.

    ``inode`` is 0 where it is not known yet, ``mode`` what it was when the file was opened.
    """

    path: bytes
    flags: int
    kind: int
    inode: int = 0
    mode: int = 0

    listed: bool = False
    """Whether a directory was read to its end."""
    locked: bool = False
    """Whether it had a flock or a record lock of its own."""

    def __post_init__(self) -> None:
        self.first_flags = self.flags

    @property
    def only_path(self) -> bool:
        return bool(self.flags & os.O_PATH)

    @property
    def reads(self) -> bool:
        return not self.only_path and self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writes(self) -> bool:
        return not self.only_path and self.flags & os.O_ACCMODE != os.O_RDONLY


@dataclass
class Mapping:
    opened: Opened
    how: int
    flags: int
    length: int


@dataclass
class Person:
    """What a user has: where it is, what it has open, what was sent to it."""

    directory: bytes = b""
    slots: dict[int, Opened] = field(default_factory=dict)
    mappings: dict[int, Mapping] = field(default_factory=dict)
    inbox: list[Opened] = field(default_factory=list)
    locked: dict[int, list[Opened]] = field(default_factory=dict)
    """By inode, through what the user has set record locks of its process."""


class World:
    """Nodes by path, relative to the top, which is b"" itself; and what each user has."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.modes: dict[int, int] = {}
        self.groups: dict[int, int] = {}
        """By inode, of what has no name any more too."""
        self.people = [Person() for _ in USERS]
        self.early: dict[int, list[Opened]] = {}
        """By inode, what was open when somebody set the first record lock on it."""
        self.reserved: set[int] = set()
        """Inodes of which space may be allocated that was never written."""
        self.capable: set[int] = set()
        """Inodes that may have file capabilities."""
        self.flagged: set[int] = set()
        """Inodes that may be append-only or immutable."""

    def scan(self, top: bytes) -> None:
        """Read anew what there is."""
        self.nodes.clear()
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
        try:
            self._note(b"", os.fstat(fd))
            self._scan(fd, b"")
        finally:
            os.close(fd)
        for person in self.people:
            if person.directory not in self.nodes:
                person.directory = _GONE

    def _scan(self, directory: int, path: bytes) -> None:
        with os.scandir(directory) as entries:
            names = [os.fsencode(entry.name) for entry in entries]
        # In an order that does not depend on hashes, so that a seed stands for one sequence.
        for name in sorted(names):
            whole = join(path, name)
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            self._note(whole, status)
            if stat.S_ISLNK(status.st_mode):
                self.nodes[whole].target = os.readlink(name, dir_fd=directory)
            else:
                at = b"/proc/self/fd/%d/%s" % (directory, name)
                with suppress(OSError):
                    self.nodes[whole].acl = os.getxattr(at, acls.ACCESS, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                how = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME | os.O_NOFOLLOW
                fd = os.open(name, how, dir_fd=directory)
                try:
                    self._scan(fd, whole)
                finally:
                    os.close(fd)

    def _note(self, path: bytes, status: os.stat_result) -> None:
        self.nodes[path] = Node(
            *(status.st_mode, status.st_uid, status.st_gid, status.st_ino),
            *(status.st_size, status.st_nlink),
        )
        self.modes[status.st_ino] = status.st_mode
        self.groups[status.st_ino] = status.st_gid

    def resolve(self, path: bytes) -> bytes:
        """What a path leads to when symbolic links are followed, whether that is there or not."""
        reached, left, hops = b"", path.split(b"/"), 0
        while left and hops < 40:
            name, *left = left
            if name in (b"", b"."):
                continue
            if name == b"..":
                reached = parent(reached)
                continue
            node = self.nodes.get(join(reached, name))
            if node is not None and node.target:
                hops += 1
                left = node.target.split(b"/") + left
            else:
                reached = join(reached, name)
        return reached

    def see(self, inode: int, look: Sequence[int]) -> None:
        """Note what a look has shown."""
        self.modes[inode] = look[0]
        self.groups[inode] = look[3]

    # -- what somebody may do

    def may(self, user: int, path: bytes, want: int) -> bool:
        """Whether a user has these permissions, as far as owner, mode and ACL tell."""
        node = self.nodes.get(path)
        if node is None:
            return False
        if user not in node.rights:
            node.rights[user] = self._rights(user, node)
        return node.rights[user] & want == want

    def _rights(self, user: int, node: Node) -> int:
        person = USERS[user]
        if person.uid == 0:
            return 7
        if node.uid == person.uid:
            return node.mode >> 6 & 7
        if node.acl:
            return acls.rights(node.acl, node.gid, person.uid, {person.gid, *person.groups})
        return node.mode >> 3 & 7 if self.is_member(user, node.gid) else node.mode & 7

    def reaches(self, user: int, path: bytes) -> bool:
        """Whether a user may search all directories on the way."""
        while path:
            path = parent(path)
            if not self.may(user, path, SEARCH):
                return False
        return True

    def owns(self, user: int, path: bytes) -> bool:
        uid = USERS[user].uid
        return uid == 0 or self.nodes[path].uid == uid

    def path_of(self, inode: int) -> bytes | None:
        """A path at which a file is."""
        return next((path for path, node in self.nodes.items() if node.inode == inode), None)

    def children(self, path: bytes) -> list[bytes]:
        return [other for other in self.nodes if other and parent(other) == path]

    def below(self, path: bytes) -> list[bytes]:
        """A path and all below it."""
        return [other for other in self.nodes if other == path or other.startswith(path + b"/")]

    def opened(self, inode: int) -> Iterator[Opened]:
        """All slots in which a file is open."""
        for person in self.people:
            mapped = (mapping.opened for mapping in person.mappings.values())
            for opened in (*person.slots.values(), *person.inbox, *mapped):
                if inode and opened.inode == inode:
                    yield opened

    def is_member(self, user: int, gid: int) -> bool:
        return gid == USERS[user].gid or gid in USERS[user].groups

    # -- what has changed

    def begin(self, inode: int) -> None:
        """Note that a file is new, whatever had its number before."""
        self.early.pop(inode, None)
        self.flagged.discard(inode)
        self.capable.discard(inode)
        self.reserved.discard(inode)
        for person in self.people:
            person.locked.pop(inode, None)

    def lock(self, user: int, opened: Opened, *, by_process: bool) -> None:
        """Note that a record lock was set."""
        inode = opened.inode
        opened.locked |= not by_process
        if inode not in self.early:
            self.early[inode] = list(self.opened(inode))
        if by_process:
            self.people[user].locked.setdefault(inode, []).append(opened)

    def remove(self, path: bytes) -> None:
        for other in self.below(path):
            del self.nodes[other]

    def move(self, path: bytes, new_path: bytes) -> None:
        moved = {new_path + other[len(path) :]: self.nodes.pop(other) for other in self.below(path)}
        self.remove(new_path)
        self.nodes.update(moved)
        for person in self.people:
            if (person.directory + b"/").startswith(path + b"/"):
                person.directory = new_path + person.directory[len(path) :]

    def swap(self, path: bytes, other: bytes) -> None:
        self.move(path, _GONE)
        self.move(other, path)
        self.move(_GONE, other)


def parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
