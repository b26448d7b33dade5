"""Choosing: who does something, where, and with which values, at random but mostly so that it can
succeed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from tests.mount.likeness.calls import Call, Place
from tests.mount.likeness.world import SEARCH, WRITE, Mapping, Node, Opened, World, join, parent

T = TypeVar("T")

REG, DIR, LNK, FIFO = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO

CARELESS = 0.06
"""How often something is chosen without a look whether it can succeed."""
MOST_SLOTS = 10
MOST_MAPPINGS = 4
DEEPEST = 5

_NAMES = (b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h")
_ODD_NAMES = (
    b"\xff\xfe",
    "ä \u2028".encode(),
    b"with space ",
    b"new\nline",
    b"-rf",
    b"%s'\"\\",
    b".hidden",
    b".fuse_hidden0001",
    b"x" * 255,
    b"y" * 254,
    b"\x01\x7f",
)
_BAD_NAMES = (b"z" * 256, b"z" * 4096, b".", b"..", b"a/", b"./" * 2048 + b"a")

OFFSETS = (0, 0, 0, 1, 10, 511, 512, 1000, 4095, 4096, 4097, 8192, 12288, 65536, 70000)
LENGTHS = (0, 1, 10, 100, 511, 512, 1000, 4096, 4096, 5000, 8192, 10000)


@dataclass
class Draft:
    """A call, and what the generator knows of it.

    ``path`` and ``new_path`` are where it works, whatever way was chosen to say so; ``opened`` and
    ``other`` the open files it is about. ``effect`` is what to note when it has succeeded,
    ``at_once`` what to note in any case.
    """

    user: int
    call: Call
    path: bytes | None = None
    new_path: bytes | None = None
    opened: Opened | None = None
    other: Opened | None = None
    effect: Callable[[], object] | None = None
    at_once: Callable[[], object] | None = None


class Chooser:
    """Random choices among what ``world`` knows of."""

    def __init__(self, random: Random, world: World) -> None:
        self.random = random
        self.world = world
        self.hot: list[bytes] = []
        self.pending: set[int] = set()
        """Slots that calls not yet done may fill."""
        self.attributes: list[tuple[int, bytes]] = []
        """Inodes, and names of extended attributes that were set on them not long ago."""
        self.denied: set[tuple[int, bytes]] = set()
        """Users and paths at which something was refused not long ago, be it for an ACL."""
        self.number = 0

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def one(self, choices: Sequence[T]) -> T:
        return choices[int(self.random.random() * len(choices))]

    def fresh(self) -> int:
        """A number for content that was not there yet."""
        self.number = (self.number + 1) % 10**7
        return self.number

    def offset(self) -> int:
        if self.chance(0.03):
            return self.one((-1, 1 << 20, (1 << 20) + 1, 1 << 33, 1 << 40, 1 << 62))
        return self.one(OFFSETS)

    def length(self) -> int:
        return 65536 if self.chance(0.02) else self.one(LENGTHS)

    # -- paths

    def path(
        self,
        user: int,
        *kinds: int,
        want: int = 0,
        like: Callable[[bytes, Node], bool] | None = None,
    ) -> bytes | None:
        """The path of something of these kinds that the user reaches, and ``may`` and is ``like``
        so; now and then of anything."""
        world = self.world
        if self.chance(CARELESS):
            return self.one(list(world.nodes))
        pool = self.hot if self.hot and self.chance(0.4) else list(world.nodes)
        for _ in range(12):
            path = self.one(pool)
            node = world.nodes.get(path)
            if (
                node is not None
                and (user, path) not in self.denied
                and (not kinds or node.kind in kinds)
                and world.reaches(user, path)
                and (not want or world.may(user, path, want))
                and (like is None or like(path, node))
            ):
                return path
            pool = list(world.nodes) if pool is self.hot else pool
        return None

    def owned(self, user: int, *kinds: int) -> bytes | None:
        """The path of something that belongs to the user, or anything for root."""
        return self.path(user, *kinds, like=lambda path, _: self.world.owns(user, path))

    def removable(self, user: int, *kinds: int, empty: bool = False) -> bytes | None:
        """The path of something that the user may remove."""
        world = self.world

        def like(path: bytes, node: Node) -> bool:
            directory = world.nodes.get(parent(path))
            if not path or directory is None or node.inode in world.flagged:
                return False
            if not world.may(user, parent(path), WRITE | SEARCH):
                return False
            if directory.mode & stat.S_ISVTX and not (
                world.owns(user, path) or world.owns(user, parent(path))
            ):
                return False
            return not (empty and node.kind == DIR and world.children(path))

        return self.path(user, *kinds, like=like)

    def new_path(self, user: int) -> bytes | None:
        """A path at which the user may make something, where mostly nothing is."""
        directory = self.path(
            user,
            DIR,
            want=WRITE | SEARCH,
            like=lambda path, node: (
                path.count(b"/") < DEEPEST and node.inode not in self.world.flagged
            ),
        )
        if directory is None:
            return None
        if self.chance(0.01):
            return join(directory, self.one(_BAD_NAMES))
        for _ in range(8):
            name = self.one(_ODD_NAMES) if self.chance(0.12) else self.one(_NAMES)
            path = join(directory, name)
            if path not in self.world.nodes or self.chance(CARELESS):
                return path
        return None

    def place(self, user: int, path: bytes) -> Place:
        """A way to say a path: from where the user is, from the top, from an open directory."""
        way = self.random.random()
        person = self.world.people[user]
        if way < 0.2 or person.directory not in self.world.nodes:
            return b"/" + path
        if way < 0.32:
            slots = [slot for slot, opened in person.slots.items() if opened.kind == DIR]
            if slots:
                slot = self.one(slots)
                start = person.slots[slot].path
                if (path + b"/").startswith(start + b"/") or not start:
                    below = path[len(start) :].lstrip(b"/")
                    return (slot, below or b".")
        said = os.path.relpath(b"/" + path, b"/" + person.directory)
        if path.endswith((b"/", b"/.", b"/..")):  # which relpath takes away
            said += path[len(path.rstrip(b"/.")) :]
        if way > 0.97:
            return b"./" + said.replace(b"/", b"//")
        if way > 0.96:
            return said + b"/"
        return said

    # -- open files

    def slot(
        self, user: int, like: Callable[[Opened], bool] | None = None
    ) -> tuple[int, Opened] | None:
        """A slot of the user, now and then one that is not like asked."""
        slots = self.world.people[user].slots
        if not slots:
            return None
        careless = self.chance(CARELESS)
        found = [
            (slot, opened)
            for slot, opened in slots.items()
            if like is None or careless or like(opened)
        ]
        return self.one(found) if found else None

    def reading(self, user: int) -> tuple[int, Opened] | None:
        return self.slot(user, lambda opened: opened.reads and opened.kind == REG)

    def writing(self, user: int) -> tuple[int, Opened] | None:
        return self.slot(
            user,
            lambda opened: (
                opened.writes and opened.kind == REG and opened.inode not in self.world.flagged
            ),
        )

    def free_slot(self, user: int) -> int | None:
        """A slot to open something in."""
        taken = self.world.people[user].slots.keys() | self.pending
        if len(taken) >= MOST_SLOTS:
            return None
        slot = min(set(range(1, MOST_SLOTS + 1)) - taken)
        self.pending.add(slot)
        return slot

    def mapping(self, user: int, like: Callable[[Mapping], bool]) -> tuple[int, Mapping] | None:
        mappings = self.world.people[user].mappings
        found = [(number, mapping) for number, mapping in mappings.items() if like(mapping)]
        return self.one(found) if found else None

    def anything(self, user: int, path: bytes) -> Place:
        """A place for a call that works on open files as on paths."""
        for slot, opened in self.world.people[user].slots.items():
            if opened.path == path and not opened.only_path and self.chance(0.5):
                return slot
        return self.place(user, path)
