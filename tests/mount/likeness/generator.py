"""Generator: a random sequence of calls, made up while it is done."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from itertools import accumulate
from random import Random

from tests.mount.likeness.attribute_calls import AttributeCalls
from tests.mount.likeness.calls import PARENT, TARGET, USERS, Call, Outcome, Step
from tests.mount.likeness.choosing import Chooser, Draft
from tests.mount.likeness.data_calls import DataCalls
from tests.mount.likeness.lock_calls import LockCalls
from tests.mount.likeness.locking import F_OFD_SETLK
from tests.mount.likeness.looks import INODE, TIMES, Look
from tests.mount.likeness.name_calls import NameCalls
from tests.mount.likeness.rules import Rules
from tests.mount.likeness.world import World, parent

_SHARES = (0.2, 0.45, 0.22, 0.13)
"""How much each of USERS does."""
_BURST, _LONGEST_BURST = 9, 30
"""Calls of one user at a time, usually and at most."""
_FEW, _MANY = 40, 110
"""So many files are few or many: then fewer are removed, or made."""
_HOT = 8
"""So many paths are chosen more often than others."""
_SCAN = 40
"""After so many calls it is read anew what there is."""


class Generator:
    """Bursts of calls of one user each, so that not every call costs a change of processes.

    ``top`` is where the native side works.
    """

    def __init__(self, random: Random, world: World, rules: Rules, top: bytes) -> None:
        self._random = random
        self._world = world
        self._rules = rules
        self._top = top
        self._choose = Chooser(random, world)
        names = NameCalls(self._choose)
        data = self._data = DataCalls(self._choose, within=rules.within)
        locks = self._locks = LockCalls(self._choose)
        attributes = AttributeCalls(self._choose, names)
        self._makes = (names.mkdir, names.mknod, names.symlink, names.link)
        self._removes = (names.unlink, names.rmdir)
        kinds: dict[Callable[[int], Draft | None], float] = {
            names.open: 12,
            names.reopen: 1,
            names.close: 5,
            names.dup: 0.7,
            names.give: 0.5,
            names.take: 0.7,
            names.mkdir: 3,
            names.mknod: 2,
            names.symlink: 2,
            names.link: 2,
            names.link_open: 1.5,
            names.unlink: 3,
            names.rmdir: 1.5,
            names.rename: 5,
            names.readlink: 1,
            names.getdents: 2.5,
            names.chdir: 1,
            names.umask: 0.5,
            data.read: 7,
            data.read_special: 0.6,
            data.lseek: 4,
            data.write: 8,
            data.transfer: 3,
            data.fallocate: 2,
            data.sync: 1.5,
            data.mmap: 1,
            data.peek: 1.5,
            data.poke: 1,
            data.msync: 0.5,
            data.munmap: 0.5,
            locks.flock: 1.5,
            locks.lock: 3,
            data.getfl: 0.5,
            data.setfl: 0.7,
            attributes.chmod: 4,
            attributes.chown: 3,
            attributes.utimensat: 2.5,
            attributes.truncate: 3,
            attributes.stat: 5,
            attributes.access: 2,
            attributes.setxattr: 3,
            attributes.getxattr: 2.5,
            attributes.listxattr: 1,
            attributes.removexattr: 1.5,
            attributes.set_acl: 1.5,
            attributes.ioctl: 1.5,
            attributes.set_flags: 1,
            attributes.clear_flags: 3,
        }
        self._kinds = list(kinds)
        self._weights = list(accumulate(kinds.values()))
        self._drafts: list[Draft] = []
        self._since_scan = _SCAN

    def burst(self, most: int) -> list[Step]:
        """The next steps, all of one user; then ``learn`` has to be called."""
        if self._since_scan >= _SCAN:
            self._scan()
        (user,) = self._random.choices(range(len(USERS)), _SHARES)
        length = min(1 + int(self._random.expovariate(1 / _BURST)), _LONGEST_BURST, most)
        self._choose.pending.clear()
        self._drafts = []
        if self._world.people[user].directory not in self._world.nodes and self._chance(0.7):
            self._drafts.append(self._back(user))
        while len(self._drafts) < length:
            draft = self._draft(user)
            if draft is None:
                continue
            self._drafts.append(draft)
            if draft.at_once is not None:
                draft.at_once()
            if _has_to_be_known(draft.call):
                break
        self._since_scan += len(self._drafts)
        return [Step(user, self._looking(draft.call), draft.call) for draft in self._drafts]

    def learn(self, outcomes: Sequence[Outcome]) -> None:
        """Hear what came of the steps natively."""
        for draft, (error, _, looks) in zip(self._drafts, outcomes, strict=True):
            for look in looks:
                if isinstance(look, tuple):
                    self._world.see(look[INODE], look)
            if error == errno.EACCES and draft.path is not None:
                self._choose.denied.update(
                    (draft.user, path) for path in (draft.path, parent(draft.path))
                )
            if error == 0 and draft.effect is not None:
                draft.effect()
                if looks and isinstance(looks[0], tuple):
                    self._identify(draft, looks[0])

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _scan(self) -> None:
        self._since_scan = 0
        self._world.scan(self._top)
        paths = list(self._world.nodes)
        self._choose.hot = self._random.sample(paths, min(_HOT, len(paths)))
        if self._chance(0.4):
            self._choose.denied.clear()

    def _draft(self, user: int) -> Draft | None:
        (kind,) = self._random.choices(self._kinds, cum_weights=self._weights)
        count = len(self._world.nodes)
        if count > _MANY and kind in self._makes and self._chance(0.8):
            return None
        if count < _FEW and kind in self._removes and self._chance(0.8):
            return None
        draft = kind(user)
        if draft is None or not self._rules.forbids(draft):
            return draft
        if draft.call[0] != "close" or draft.opened is None:
            return None
        # What keeps it from being closed shall not do so for ever.
        if draft.opened.inode in self._world.people[user].locked:
            return self._locks.unlock(user, draft.call[1], draft.opened)
        return self._data.munmap(user)

    def _back(self, user: int) -> Draft:
        """Out of a directory that was removed, to the top."""
        person = self._world.people[user]

        def back() -> None:
            person.directory = b""

        return Draft(user, ("chdir", b"/"), b"", effect=back)

    def _looking(self, call: Call) -> int:
        """What to look at afterwards; not always, since to look refreshes what is cached."""
        way = self._random.random()
        if way < 0.2:
            return TARGET | PARENT
        if way < 0.6 or call[0] in ("open", "mkdir", "mknod", "symlink") or _has_to_be_known(call):
            return TARGET
        return 0

    def _identify(self, draft: Draft, look: Look) -> None:
        """Note the inode of what was made or opened."""
        name, world, inode = draft.call[0], self._world, look[INODE]
        if name not in ("open", "mkdir", "mknod", "symlink"):
            return
        node = world.nodes.get(draft.path or b"")
        known = node is None or node.inode != 0
        new = name != "open"
        if name == "open":
            opened = world.people[draft.user].slots[draft.call[1]]
            opened.inode, opened.kind, opened.mode = inode, stat.S_IFMT(look[0]), look[0]
            new = (
                opened.flags & os.O_TMPFILE == os.O_TMPFILE
                or opened.flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL
                # With a default ACL the last of its times is another already.
                or (opened.flags & os.O_CREAT and not known and look[TIMES] == look[TIMES + 1])
            )
        if node is not None and not known:
            node.inode, node.mode = inode, look[0]
        if new:
            world.begin(inode)


def _has_to_be_known(call: Call) -> bool:
    """Whether rules for the calls after it depend on what came of it."""
    name: str = call[0]
    arguments = call[1:]
    if name in ("chmod", "fchmodat2", "open", "mknod"):
        mode = arguments[3 if name == "open" else 1]
        return bool(mode & (stat.S_ISUID | stat.S_ISGID))
    if name == "ioctl":
        return bool(arguments[2])
    if name == "setxattr":
        return bool(arguments[1].startswith((b"system.", b"security.")))
    if name == "lock":
        return bool(arguments[1] in (fcntl.F_SETLK, F_OFD_SETLK) and arguments[2] != fcntl.F_UNLCK)
    return name == "mmap"
