"""The generator's calls on names: open, make, move, remove, list."""

from __future__ import annotations

import os
import stat
from functools import partial

from tests.mount.likeness.calls import ROOT, USERS, Place
from tests.mount.likeness.choosing import DEEPEST, DIR, LNK, REG, Chooser, Draft
from tests.mount.likeness.world import READ, SEARCH, WRITE, Node, Opened, parent
from volfs.linux import syscalls

AT_SYMLINK_FOLLOW = 0x400

FILE_MODES = (0o644, 0o644, 0o600, 0o666, 0o640, 0o664, 0o755, 0o777, 0o700, 0o444)
ODD_FILE_MODES = (0o000, 0o4755, 0o2755, 0o6755, 0o4644, 0o1644, 0o2745, 0o6777, 0o4711, 0o2644)
DIRECTORY_MODES = (0o755, 0o777, 0o777, 0o775, 0o770)
ODD_DIRECTORY_MODES = (0o1777, 0o2777, 0o2775, 0o3777, 0o700, 0o711, 0o555, 0o750, 0o000, 0o4755)

_SOME_FLAGS = (
    *(os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_PATH, os.O_TMPFILE),
    *(os.O_DIRECTORY, os.O_NOATIME, os.O_DIRECT, os.O_SYNC, os.O_DSYNC),
)


class NameCalls:
    """Each public method drafts a call of a user, or None if there is nothing to do it on."""

    def __init__(self, chooser: Chooser) -> None:
        self._choose = chooser
        self._world = chooser.world

    def mode(self, user: int, kind: int) -> int:
        choose = self._choose
        if choose.chance(0.03):
            return choose.random.randrange(0o10000)
        usual, odd = (
            (DIRECTORY_MODES, ODD_DIRECTORY_MODES) if kind == DIR else (FILE_MODES, ODD_FILE_MODES)
        )
        return choose.one(odd) if choose.chance(0.2 if kind != DIR else 0.1) else choose.one(usual)

    # -- opening

    def open(self, user: int) -> Draft | None:
        choose = self._choose
        way = choose.random.random()
        access = choose.one((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
        flags = access | self._extra_flags()
        path: bytes | None
        if way < 0.08:
            return self._open_anything(user)
        if way < 0.35:
            flags |= os.O_CREAT
            if choose.chance(0.3):
                flags |= os.O_EXCL
            if choose.chance(0.2):
                flags |= os.O_TRUNC
            if flags & os.O_EXCL or choose.chance(0.5):
                path = choose.new_path(user)
            else:
                path = choose.path(user, REG, want=_wanted(flags))
        elif way < 0.42:
            flags |= os.O_TMPFILE
            if not access:
                flags |= os.O_RDWR
            if choose.chance(0.2):
                flags |= os.O_EXCL
            path = choose.path(user, DIR, want=WRITE | SEARCH)
        elif way < 0.5:
            flags = os.O_PATH | choose.one((0, os.O_NOFOLLOW, os.O_DIRECTORY))
            path = choose.path(user, *((DIR,) if flags & os.O_DIRECTORY else ()))
        elif way < 0.62:
            flags = os.O_RDONLY | choose.one((0, os.O_DIRECTORY))
            path = choose.path(user, DIR, want=READ)
        else:
            if access and choose.chance(0.1):
                flags |= os.O_TRUNC
            path = choose.path(user, REG, REG, stat.S_IFIFO, want=_wanted(flags))
        if path is not None and flags & os.O_NOATIME and not choose.chance(0.1):
            node = self._world.nodes.get(path)
            if node is not None and not self._world.owns(user, path):
                flags &= ~os.O_NOATIME
        return self.opening(user, path, flags)

    def _extra_flags(self) -> int:
        choose, flags = self._choose, 0
        for flag, probability in (
            (os.O_APPEND, 0.15),
            (os.O_NOFOLLOW, 0.1),
            (os.O_NOATIME, 0.08),
            (os.O_DIRECT, 0.06),
            (os.O_SYNC, 0.03),
            (os.O_DSYNC, 0.03),
        ):
            if choose.chance(probability):
                flags |= flag
        return flags

    def _open_anything(self, user: int) -> Draft | None:
        choose = self._choose
        flags = choose.one((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3))
        for flag in _SOME_FLAGS:
            if choose.chance(0.2):
                flags |= flag
        path = choose.path(user) if choose.chance(0.7) else choose.new_path(user)
        return self.opening(user, path, flags)

    def reopen(self, user: int) -> Draft | None:
        """By the name in /proc of what is open, O_PATH or removed."""
        choose = self._choose
        found = choose.slot(user, lambda opened: opened.kind in (REG, DIR))
        if found is None:
            return None
        number, old = found
        access = 0 if old.kind == DIR else choose.one((os.O_RDONLY, os.O_RDWR))
        slot = choose.free_slot(user)
        if slot is None:
            return None
        flags = access | (self._extra_flags() & ~os.O_NOFOLLOW)
        opened = Opened(old.path, flags, old.kind, old.inode)
        call = ("open", slot, (number, None), flags, 0)
        return Draft(user, call, path=old.path, opened=old, effect=self._put(user, slot, opened))

    def opening(self, user: int, path: bytes | None, flags: int) -> Draft | None:
        if path is None:
            return None
        slot = self._choose.free_slot(user)
        if slot is None:
            return None
        node = self._world.nodes.get(path)
        unnamed = flags & os.O_TMPFILE == os.O_TMPFILE
        kind = REG if node is None or unnamed else node.kind
        if kind == LNK and not flags & os.O_NOFOLLOW:
            kind = REG
        inode = 0 if node is None or unnamed or node.kind == LNK else node.inode
        opened = Opened(b"unnamed/" if unnamed else path, flags, kind, inode)
        call = ("open", slot, self._choose.place(user, path), flags, self.mode(user, REG))
        return Draft(user, call, path=path, effect=partial(self._opened, user, slot, opened))

    def _opened(self, user: int, slot: int, opened: Opened) -> None:
        self._world.people[user].slots[slot] = opened
        if opened.flags & os.O_CREAT and opened.path not in self._world.nodes:
            self._made(user, opened.path, REG | 0o644)

    def _put(self, user: int, slot: int, opened: Opened) -> partial[None]:
        return partial(self._world.people[user].slots.__setitem__, slot, opened)

    def close(self, user: int) -> Draft | None:
        found = self._choose.slot(user)
        if found is None:
            return None
        slot, opened = found
        forget = partial(self._world.people[user].slots.pop, slot, None)
        return Draft(user, ("close", slot), opened=opened, effect=forget)

    def dup(self, user: int) -> Draft | None:
        found, slot = self._choose.slot(user), self._choose.free_slot(user)
        if found is None or slot is None:
            return None
        return Draft(
            user, ("dup", found[0], slot), opened=found[1], effect=self._put(user, slot, found[1])
        )

    def give(self, user: int) -> Draft | None:
        found = self._choose.slot(user)
        if found is None:
            return None
        other = self._choose.random.randrange(len(USERS))
        inbox = self._world.people[other].inbox
        if len(inbox) >= 3:
            return None
        slot, opened = found
        call = ("give", slot, other)
        return Draft(user, call, opened=opened, effect=partial(inbox.append, opened))

    def take(self, user: int) -> Draft | None:
        inbox = self._world.people[user].inbox
        slot = self._choose.free_slot(user)
        if slot is None or (not inbox and not self._choose.chance(0.05)):
            return None

        def took() -> None:
            self._world.people[user].slots[slot] = inbox.pop(0)

        return Draft(user, ("take", slot), opened=inbox[0] if inbox else None, effect=took)

    # -- making

    def mkdir(self, user: int) -> Draft | None:
        path = self._choose.new_path(user)
        if path is None:
            return None
        mode = self.mode(user, DIR)
        call = ("mkdir", self._choose.place(user, path), mode)
        return Draft(user, call, path, effect=partial(self._made, user, path, DIR | mode))

    def mknod(self, user: int) -> Draft | None:
        choose = self._choose
        path = choose.new_path(user)
        if path is None:
            return None
        kinds = [(REG, 0), (stat.S_IFIFO, 0), (stat.S_IFIFO, 0), (stat.S_IFSOCK, 0), (0, 0)]
        if user == ROOT or choose.chance(0.1):
            kinds += [
                (stat.S_IFCHR, os.makedev(1, 3)),
                (stat.S_IFCHR, os.makedev(1, 5)),
                (stat.S_IFCHR, os.makedev(1000, 70000)),
                (stat.S_IFBLK, os.makedev(60, 7)),
                (stat.S_IFCHR, 0),
            ]
            if choose.chance(0.1):
                kinds = [(DIR, 0), (LNK, 0), (0o150000, 0)]
        kind, device = choose.one(kinds)
        mode = self.mode(user, REG)
        call = ("mknod", choose.place(user, path), kind | mode, device)
        made = partial(self._made, user, path, (kind or REG) | mode)
        return Draft(user, call, path, effect=made)

    def symlink(self, user: int) -> Draft | None:
        choose = self._choose
        path = choose.new_path(user)
        if path is None:
            return None
        if choose.chance(0.7):
            other = choose.one(list(self._world.nodes))
            target = os.path.relpath(b"/" + other, b"/" + parent(path))
        else:
            target = choose.one((b"a", b"nowhere/a", b".", b"..", b"t" * 4095, b"t" * 4096, b"a//"))
        call = ("symlink", target, choose.place(user, path))

        def made() -> None:
            self._made(user, path, LNK | 0o777)
            self._world.nodes[path].target = target

        return Draft(user, call, path, effect=made)

    def link(self, user: int) -> Draft | None:
        choose = self._choose
        new_path = choose.new_path(user)
        path = choose.path(
            user,
            *(REG, REG, LNK, stat.S_IFIFO, stat.S_IFSOCK),
            want=READ | WRITE,
            like=lambda path, node: (
                self._world.owns(user, path) and node.inode not in self._world.flagged
            ),
        )
        if path is None or new_path is None:
            return None
        flags = AT_SYMLINK_FOLLOW if choose.chance(0.2) else 0
        call = ("link", choose.place(user, path), choose.place(user, new_path), flags)

        def made() -> None:
            node = self._world.nodes.get(path)
            if node is not None:
                self._world.nodes[new_path] = node

        return Draft(user, call, path, new_path, effect=made)

    def link_open(self, user: int) -> Draft | None:
        """Give a name to what is open, with or without one."""
        choose = self._choose
        found = choose.slot(user, lambda opened: opened.path == b"unnamed/")
        new_path = choose.new_path(user)
        if found is None or new_path is None:
            return None
        slot, opened = found
        place: Place = slot
        flags = syscalls.AT_EMPTY_PATH
        if choose.chance(0.5):
            place, flags = (slot, None), AT_SYMLINK_FOLLOW
        call = ("link", place, choose.place(user, new_path), flags)

        def named() -> None:
            opened.path = new_path
            self._made(user, new_path, opened.mode or REG | 0o644)
            self._world.nodes[new_path].inode = opened.inode

        return Draft(user, call, new_path=new_path, opened=opened, effect=named)

    def _made(self, user: int, path: bytes, mode: int) -> None:
        self._world.nodes[path] = Node(mode, USERS[user].uid, USERS[user].gid)
        self._choose.hot.append(path)

    # -- removing and moving

    def unlink(self, user: int) -> Draft | None:
        path = self._choose.removable(
            user, REG, REG, LNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK
        )
        return self._removing(user, "unlink", path)

    def rmdir(self, user: int) -> Draft | None:
        return self._removing(user, "rmdir", self._choose.removable(user, DIR, empty=True))

    def _removing(self, user: int, name: str, path: bytes | None) -> Draft | None:
        if not path:
            return None
        call = (name, self._choose.place(user, path))
        return Draft(user, call, path, effect=partial(self._world.remove, path))

    def rename(self, user: int) -> Draft | None:
        choose, world = self._choose, self._world
        path = choose.removable(user)
        if path is None:
            return None
        flags = choose.one(
            (0, 0, 0, 0, 0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_NOREPLACE)
            + (syscalls.RENAME_EXCHANGE,) * 2
            + (syscalls.RENAME_WHITEOUT, syscalls.RENAME_WHITEOUT | syscalls.RENAME_NOREPLACE)
        )
        if choose.chance(0.02):
            flags = choose.one((3, 6, 8))
        node = world.nodes.get(path)
        is_directory = node is not None and node.kind == DIR
        if flags & syscalls.RENAME_EXCHANGE:
            new_path = choose.removable(user)
        elif flags & syscalls.RENAME_NOREPLACE or choose.chance(0.6):
            new_path = choose.new_path(user)
        elif is_directory:
            new_path = choose.removable(user, DIR, empty=True)
        else:
            new_path = choose.removable(user, REG, LNK, stat.S_IFIFO)
        if not path or not new_path:
            return None
        depth = max((other[len(path) :].count(b"/") for other in world.below(path)), default=0)
        if depth + new_path.count(b"/") > DEEPEST:
            return None
        if (new_path.startswith(path + b"/") or path.startswith(new_path + b"/")) and (
            choose.chance(0.9)
        ):
            return None
        call = ("rename", choose.place(user, path), choose.place(user, new_path), flags)
        effect = partial(world.move, path, new_path)
        if flags & syscalls.RENAME_EXCHANGE:
            effect = partial(world.swap, path, new_path)
        return Draft(user, call, path, new_path, effect=effect)

    # -- looking

    def readlink(self, user: int) -> Draft | None:
        path = self._choose.path(user, LNK)
        if path is None:
            return None
        return Draft(user, ("readlink", self._choose.place(user, path)), path)

    def getdents(self, user: int) -> Draft | None:
        found = self._choose.slot(user, lambda opened: opened.kind == DIR and opened.reads)
        if found is None:
            return None
        slot, opened = found

        def listed() -> None:
            opened.listed = True

        # Whether what is made meanwhile comes after the end is up to the filesystem.
        return Draft(user, ("getdents", slot, opened.listed), opened=opened, at_once=listed)

    def chdir(self, user: int) -> Draft | None:
        choose, person = self._choose, self._world.people[user]
        path = choose.path(user, DIR, want=SEARCH)
        if path is None:
            return None
        place = choose.anything(user, path)

        def moved() -> None:
            person.directory = path

        return Draft(user, ("chdir", place), path, effect=moved)

    def umask(self, user: int) -> Draft | None:
        mask = self._choose.one((0o022, 0o022, 0o002, 0o002, 0o000, 0o000, 0o027, 0o077, 0o117))
        return Draft(user, ("umask", mask))


def _wanted(flags: int) -> int:
    wanted = {os.O_RDONLY: READ, os.O_WRONLY: WRITE}.get(flags & os.O_ACCMODE, READ | WRITE)
    return wanted | WRITE if flags & os.O_TRUNC else wanted
