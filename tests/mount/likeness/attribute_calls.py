"""The generator's calls on what is known of files besides their content."""

from __future__ import annotations

import os
import stat
from functools import partial

from tests import acls
from tests.mount.likeness.attributes import (
    FIONREAD,
    FS_IOC_FSGETXATTR,
    FS_IOC_FSSETXATTR,
    FS_IOC_GETFLAGS,
    FS_IOC_GETVERSION,
    FS_IOC_SETFLAGS,
    TCGETS,
)
from tests.mount.likeness.calls import ROOT, USERS, Call
from tests.mount.likeness.choosing import DIR, REG, Chooser, Draft
from tests.mount.likeness.name_calls import NameCalls
from tests.mount.likeness.world import READ, WRITE, Node
from volfs.linux import syscalls

AT_EACCESS = 0x200
AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH = syscalls.AT_SYMLINK_NOFOLLOW, syscalls.AT_EMPTY_PATH

SYNC, IMMUTABLE, APPEND, NODUMP, NOATIME, DIRSYNC = 0x8, 0x10, 0x20, 0x40, 0x80, 0x10000
EXTENTS = 0x80000
_XFLAGS = {SYNC: 0x20, IMMUTABLE: 0x8, APPEND: 0x10, NODUMP: 0x80, NOATIME: 0x40}

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")

_NAMES = (b"user.a", b"user.b", b"user.c", b"user." + b"n" * 250)
_ODD_NAMES = (b"user.", b"user." + b"n" * 251, b"bogus.x", b"system.x", b"", b"trusted.t")
_TIMES = (
    *((5, 7), (10**9, 999_999_999), (-1, 0), (-(10**9), 5)),
    *((2**31, 0), (2**33, 1), (2**35, 0)),
)
"""Past what ext4 can say (2446), and before 1970."""
_VALUES = (b"", b"1", b"two", b"v" * 30, b"w" * 300, b"u" * 2000)
_ODD_VALUES = (b"v" * 5000, b"v" * 65536, b"v" * 65537)


class AttributeCalls:
    """Each public method drafts a call of a user, or None if there is nothing to do it on."""

    def __init__(self, chooser: Chooser, names: NameCalls) -> None:
        self._choose = chooser
        self._names = names
        self._world = chooser.world

    def _unflagged(self, user: int, *kinds: int) -> bytes | None:
        """Something of the user's that can be changed."""
        world = self._world
        return self._choose.path(
            user,
            *kinds,
            like=lambda path, node: world.owns(user, path) and node.inode not in world.flagged,
        )

    def chmod(self, user: int) -> Draft | None:
        choose = self._choose
        path = self._unflagged(user, REG, REG, DIR, stat.S_IFIFO)
        if path is None:
            return None
        node = self._world.nodes.get(path)
        mode = self._names.mode(user, REG if node is None else node.kind)
        if choose.chance(0.25):
            place = choose.anything(user, path)
            flags = (
                AT_EMPTY_PATH if isinstance(place, int) else choose.one((0, AT_SYMLINK_NOFOLLOW))
            )
            return Draft(user, ("fchmodat2", place, mode, flags), path)
        return Draft(user, ("chmod", choose.anything(user, path), mode), path)

    def chown(self, user: int) -> Draft | None:
        choose, who = self._choose, USERS[user]
        path = self._unflagged(user)
        if path is None:
            return None
        uids, gids = [-1, who.uid], [-1, who.gid, *who.groups]
        if user == ROOT or choose.chance(0.1):
            uids = [-1, 0, 1000, 1000, 1000, 1001, 1002]
            gids = [-1, 0, 1000, 1000, 2000, 2001, 1002]
        uid, gid = choose.one(uids), choose.one(gids)
        if choose.chance(0.15):
            uid = gid = -1
        call = ("chown", choose.anything(user, path), uid, gid, choose.chance(0.6))
        return Draft(user, call, path)

    def utimensat(self, user: int) -> Draft | None:
        choose = self._choose
        now, omit = (0, syscalls.UTIME_NOW), (0, syscalls.UTIME_OMIT)
        atime, mtime = choose.one((now, omit, *_TIMES)), choose.one((now, omit, *_TIMES))
        if choose.chance(0.2):
            atime = mtime = choose.one((now, omit))
        if choose.chance(0.02):
            atime = (0, 1_000_000_000)
        if atime == mtime == now and choose.chance(0.5):
            path = choose.path(user, REG, want=WRITE)
        else:
            path = self._unflagged(user)
        if path is None:
            return None
        flags = choose.one((0, 0, AT_SYMLINK_NOFOLLOW))
        return Draft(user, ("utimensat", choose.anything(user, path), atime, mtime, flags), path)

    def truncate(self, user: int) -> Draft | None:
        choose, world = self._choose, self._world
        size = choose.one((0, 1, 10, 4095, 4096, 5000, 10000, 70000, 1 << 20))
        if choose.chance(0.04):
            size = choose.one((-1, 1 << 33, 1 << 40, 1 << 45))
        if choose.chance(0.5):
            found = choose.writing(user)
            if found is not None:
                return Draft(user, ("truncate", found[0], size), opened=found[1])
        path = choose.path(
            user, REG, want=WRITE, like=lambda path, node: node.inode not in world.flagged
        )
        if path is None:
            return None
        return Draft(user, ("truncate", choose.place(user, path), size), path)

    # -- asking

    def stat(self, user: int) -> Draft | None:
        choose = self._choose
        path = choose.path(user)
        if path is None:
            return None
        place = choose.anything(user, path)
        way = choose.random.random()
        if way < 0.6:
            return Draft(user, ("stat", place, choose.chance(0.5)), path)
        if way < 0.9:
            flags = (
                AT_EMPTY_PATH if isinstance(place, int) else choose.one((0, AT_SYMLINK_NOFOLLOW))
            )
            flags |= choose.one((0, 0, 0x2000, 0x4000))  # AT_STATX_FORCE_SYNC, DONT_SYNC
            mask = choose.one((0x7FF, 0xFFF, 0x800, 0x2000, 0))
            return Draft(user, ("statx", place, flags, mask), path)
        return Draft(user, ("statfs", place), path)

    def access(self, user: int) -> Draft | None:
        choose = self._choose
        mode = choose.one((0, 1, 2, 4, 4, 5, 6, 7))
        path = choose.path(user, want=mode)
        if path is None:
            return None
        place = choose.anything(user, path)
        flags = AT_EMPTY_PATH if isinstance(place, int) else choose.one((0, 0, AT_SYMLINK_NOFOLLOW))
        flags |= choose.one((0, AT_EACCESS))
        return Draft(user, ("access", place, mode, flags), path)

    # -- extended attributes

    def _name(self, user: int) -> bytes:
        choose = self._choose
        if choose.chance(0.04):
            return choose.one(_ODD_NAMES)
        if user == ROOT and choose.chance(0.4):
            return choose.one((b"trusted.t", b"security.volfs", b"security.capability"))
        return choose.one(_NAMES)

    def _attributed(self, user: int, name: bytes, want: int) -> bytes | None:
        """Something that can have such an attribute."""
        if name == b"security.capability":
            return self._choose.path(user, REG)
        if name.startswith(b"user."):
            return self._choose.path(user, REG, DIR, want=want)
        return self._choose.path(user)

    def setxattr(self, user: int) -> Draft | None:
        choose, world = self._choose, self._world
        name = self._name(user)
        path = self._attributed(user, name, WRITE)
        if path is None or (path in world.nodes and world.nodes[path].inode in world.flagged):
            return None
        value = choose.one(_ODD_VALUES) if choose.chance(0.02) else choose.one(_VALUES)
        if name == b"security.capability" and choose.chance(0.9):
            value = CAPABILITY
        flags = choose.one((0, 0, 0, 0, 0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        if choose.chance(0.01):
            flags = 3
        place = choose.anything(user, path)
        call = ("setxattr", place, name, value, flags, choose.chance(0.6))
        return Draft(user, call, path, effect=lambda: self._has(path, name))

    def _has(self, path: bytes, name: bytes) -> None:
        node = self._world.nodes.get(self._world.resolve(path))
        if node is not None and name == b"security.capability":
            self._world.capable.add(node.inode)
        if node is not None and node.inode:
            self._choose.attributes.append((node.inode, name))
            del self._choose.attributes[:-40]

    def _known(self, user: int, want: int) -> tuple[bytes, bytes] | None:
        """A path and the name of an attribute that is there, which the user may see or change."""
        choose, world = self._choose, self._world
        for _ in range(8):
            if not choose.attributes:
                break
            inode, name = choose.one(choose.attributes)
            path = world.path_of(inode)
            if path is None or (user, path) in choose.denied or not world.reaches(user, path):
                continue
            if name.startswith(b"user."):
                allowed = world.may(user, path, want)
            elif name.startswith(b"system."):
                allowed = want == READ or world.owns(user, path)
            else:
                allowed = user == ROOT
            if allowed and not (want == WRITE and inode in world.flagged):
                return path, name
        if choose.chance(0.7):
            return None
        name = self._name(user)
        found = self._attributed(user, name, want)
        return None if found is None else (found, name)

    def getxattr(self, user: int) -> Draft | None:
        choose, found = self._choose, self._known(user, READ)
        if found is None:
            return None
        path, name = found
        size = 65536 if choose.chance(0.8) else choose.one((0, 1, 30))
        place = choose.anything(user, path)
        call = ("getxattr", place, name, size, choose.chance(0.6))
        return Draft(user, call, path)

    def listxattr(self, user: int) -> Draft | None:
        choose = self._choose
        path = choose.path(user)
        if path is None:
            return None
        size = 65536 if choose.chance(0.8) else choose.one((0, 8))
        call = ("listxattr", choose.anything(user, path), size, choose.chance(0.6))
        return Draft(user, call, path)

    def removexattr(self, user: int) -> Draft | None:
        choose, found = self._choose, self._known(user, WRITE)
        if found is None:
            return None
        path, name = found
        call = ("removexattr", choose.anything(user, path), name, choose.chance(0.6))
        return Draft(user, call, path, effect=lambda: self._has_no(path, name))

    def _has_no(self, path: bytes, name: bytes) -> None:
        node = self._world.nodes.get(path)
        if node is not None and (node.inode, name) in self._choose.attributes:
            self._choose.attributes.remove((node.inode, name))

    def set_acl(self, user: int) -> Draft | None:
        choose, random = self._choose, self._choose.random
        default = choose.chance(0.4)
        name = (acls.DEFAULT if default else acls.ACCESS).encode()
        path = self._unflagged(user, DIR) if default else self._unflagged(user, REG, DIR)
        if path is None:
            return None

        def some() -> int:
            return choose.one((7, 7, 7, 6, 5, 5, 4, random.randrange(8)))

        named = {uid: some() for uid in (1000, 1001, 1002) if choose.chance(0.4)}
        groups = {gid: some() for gid in (1000, 2000, 2001) if choose.chance(0.3)}
        mask = some() if named or groups or choose.chance(0.2) else None
        value = acls.acl(some() | 4, some(), some(), users=named, groups=groups, mask=mask)
        if choose.chance(0.04):
            value = choose.one((b"", value[:-1], value[:4], b"\1" + value[1:], value + value[4:12]))
        call = ("setxattr", choose.anything(user, path), name, value, 0, True)
        return Draft(user, call, path, effect=lambda: self._has(path, name))

    # -- flags

    def ioctl(self, user: int) -> Draft | None:
        choose = self._choose
        found = choose.slot(user, lambda opened: not opened.only_path and opened.kind in (REG, DIR))
        if found is None:
            return None
        slot, opened = found
        command = choose.one(
            (FS_IOC_GETFLAGS, FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_GETVERSION, FIONREAD)
        )
        if choose.chance(0.03):
            command = TCGETS
        return Draft(user, ("ioctl", slot, command, ()), opened=opened)

    def set_flags(self, user: int) -> Draft | None:
        choose, world = self._choose, self._world
        uid = USERS[user].uid

        def owns(path: bytes) -> bool:
            node: Node | None = world.nodes.get(path)
            return uid == 0 or (node is not None and node.uid == uid)

        found = choose.slot(
            user,
            lambda opened: not opened.only_path and opened.kind in (REG, DIR) and owns(opened.path),
        )
        if found is None:
            return None
        slot, opened = found
        flags = 0
        if not (opened.inode in world.flagged and choose.chance(0.7)):
            for flag in (NODUMP, NOATIME, SYNC):
                if choose.chance(0.3):
                    flags |= flag
            if user == ROOT or choose.chance(0.03):
                flags |= choose.one((0, 0, 0, 0, IMMUTABLE, APPEND, APPEND))
        inode = opened.inode

        def noted() -> None:
            if flags & (IMMUTABLE | APPEND):
                world.flagged.add(inode)
            else:
                world.flagged.discard(inode)

        call: Call
        if choose.chance(0.3):
            extended = sum(_XFLAGS[flag] for flag in _XFLAGS if flags & flag)
            project = 5 if choose.chance(0.1) else 0
            call = ("ioctl", slot, FS_IOC_FSSETXATTR, (extended, project))
        else:
            call = ("ioctl", slot, FS_IOC_SETFLAGS, (flags | EXTENTS,))
        return Draft(user, call, opened=opened, effect=noted)

    def clear_flags(self, user: int) -> Draft | None:
        """Make changeable again what root has made append-only or immutable."""
        world = self._world
        if user != ROOT or not world.flagged:
            return None
        for slot, opened in world.people[user].slots.items():
            if opened.inode in world.flagged and not opened.only_path:
                call = ("ioctl", slot, FS_IOC_SETFLAGS, (EXTENTS,))
                forget = partial(world.flagged.discard, opened.inode)
                return Draft(user, call, opened=opened, effect=forget)
        for path, node in world.nodes.items():
            if node.inode in world.flagged:
                return self._names.opening(user, path, os.O_RDONLY)
        world.flagged.clear()
        return None
