"""Whose new files are and who may do what, as on the backing filesystem."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import ParamSpec

import pytest

from tests.acls import ACCESS, DEFAULT, acl
from tests.children import MEMBERS, OTHER, STRANGERS, USER, Child, run_as
from tests.conftest import Mounted, MountFactory
from tests.mount.comparing import Pair, outcome, owned
from tests.mount.conftest import make_pair

pytestmark = pytest.mark.no_data

P = ParamSpec("P")

# -- creation


def open_file(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def bind_socket(path: Path, mode: int) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


CREATORS: dict[str, Callable[[Path, int], None]] = {
    "file": open_file,
    "node": lambda path, mode: os.mknod(path, stat.S_IFREG | mode),
    "fifo": os.mkfifo,
    "directory": os.mkdir,
    "symlink": lambda path, mode: path.symlink_to("target"),
    "socket": bind_socket,
}
MODES = (0o666, 0o777, 0, 0o1777, 0o4755, 0o2755, 0o2745)


def create_everything(top: Path) -> list[str]:
    """Create each kind with each mode in ``top``; tell owner, mode and ACLs of each."""
    told = []
    for kind, create in CREATORS.items():
        for mode in MODES:
            path = top / f"{kind} {mode:o}"
            made = outcome(create, path, mode)
            line = [path.name, str(made)]
            if made is None:
                line += map(str, owned(path))
                if kind != "symlink":
                    line += [f"{name}={os.getxattr(path, name).hex()}" for name in acls(path)]
            told.append(" ".join(line))
    return told


def acls(path: Path) -> list[str]:
    return sorted(name for name in os.listxattr(path) if name in (ACCESS, DEFAULT))


def setgid_members(top: Path) -> None:
    os.chown(top, 0, MEMBERS)
    top.chmod(0o2777)


def setgid_strangers(top: Path) -> None:
    os.chown(top, 0, STRANGERS)
    top.chmod(0o2777)


def default_acl(top: Path) -> None:
    top.chmod(0o777)
    os.setxattr(top, DEFAULT, acl(7, 5, 4, users={OTHER: 6}, mask=7))


def default_acl_without_mask(top: Path) -> None:
    top.chmod(0o777)
    os.setxattr(top, DEFAULT, acl(7, 7, 5))


def default_acl_and_setgid(top: Path) -> None:
    setgid_strangers(top)
    os.setxattr(top, DEFAULT, acl(7, 7, 0, groups={MEMBERS: 7}, mask=5))


PARENTS: list[Callable[[Path], None]] = [
    lambda top: top.chmod(0o777),
    lambda top: top.chmod(0o1777),
    setgid_members,
    setgid_strangers,
    default_acl,
    default_acl_without_mask,
    default_acl_and_setgid,
]
PARENT_NAMES = [
    "plain",
    "sticky",
    "setgid of a member group",
    "setgid of a foreign group",
    "default ACL",
    "default ACL without mask",
    "default ACL and setgid",
]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=["000", "022", "077"])
@pytest.mark.parametrize("parent", PARENTS, ids=PARENT_NAMES)
def test_new_files_come_out_as_on_the_disk(
    pair: Pair, parent: Callable[[Path], None], umask: int
) -> None:
    def operation(top: Path) -> list[list[str]]:
        told = []
        for name, uid, groups in (
            ("user", USER, []),
            ("member", USER, [MEMBERS]),
            ("root", 0, []),
        ):
            here = top / name
            here.mkdir()
            parent(here)
            create = partial(create_everything, here)
            told.append(run_as(create, uid, groups=groups, umask=umask))
        return told

    pair.same(operation)


def test_a_setgid_file_is_not_kept_for_strangers_though_the_daemon_has_the_group(
    mount: MountFactory,
) -> None:
    """CVE-2022-0358: the daemon's own groups must not count for the caller."""
    tree = mount(prepare=partial(os.setgroups, [STRANGERS]))
    pair = make_pair(tree)

    def operation(top: Path) -> tuple[str, int, int]:
        setgid_strangers(top)
        run_as(partial(open_file, top / "f", 0o2755), umask=0)
        return owned(top / "f")

    assert pair.same(operation) == (oct(0o100755), USER, STRANGERS)


class Watch:
    """inotify(7) on one directory."""

    CREATE, ATTRIB, MOVED_TO = 0x100, 0x4, 0x80

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._fd >= 0, os.strerror(ctypes.get_errno())
        wanted = self.CREATE | self.ATTRIB | self.MOVED_TO
        added = self._libc.inotify_add_watch(self._fd, os.fsencode(path), wanted)
        assert added >= 0, os.strerror(ctypes.get_errno())

    def events(self) -> Iterator[tuple[int, str]]:
        """What has happened so far: (mask, name)."""
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return
            offset = 0
            while offset < len(data):
                _, mask, _, size = struct.unpack_from("iIII", data, offset)
                name = data[offset + 16 : offset + 16 + size].rstrip(b"\0")
                yield mask & 0xFFFF, os.fsdecode(name)
                offset += 16 + size

    def close(self) -> None:
        os.close(self._fd)


def test_no_file_ever_had_another_owner(pair: Pair) -> None:
    """Files appear in the data path as the caller's and are not changed afterwards."""
    pair.mounted.chmod(0o777)
    watch = Watch(pair.data)
    try:
        run_as(partial(create_everything, pair.mounted), umask=0)
        events = list(watch.events())
        made = {f"{kind} {mode:o}" for kind in CREATORS for mode in MODES}
        assert sorted(name for mask, name in events if mask == Watch.CREATE) == sorted(made)
        assert {mask for mask, _ in events} == {Watch.CREATE}
        owners = {owned(pair.data / name)[1:] for name in made}
        assert owners == {(USER, USER)}
        # That the watch would have told:
        os.chown(pair.data / "file 666", OTHER, OTHER)
        assert (Watch.ATTRIB, "file 666") in list(watch.events())
    finally:
        watch.close()


def test_many_users_at_once_get_their_own_files(pair: Pair) -> None:
    pair.mounted.chmod(0o1777)
    users = range(5000, 5004)

    def work(uid: int) -> list[tuple[str, int, int]]:
        seen = []
        for number in range(40):
            path = pair.mounted / f"{uid} {number}"
            if number % 2:
                path.mkdir()
            else:
                path.touch()
            seen.append(owned(path))
        return seen

    children = [Child(partial(work, uid), uid=uid, gid=uid + 100, umask=0o27) for uid in users]
    for uid, child in zip(users, children, strict=True):
        with child:
            expected = {(oct(0o100640), uid, uid + 100), (oct(0o040750), uid, uid + 100)}
            assert set(child.result()) == expected
    assert {owned(path)[1] for path in pair.data.iterdir()} == set(users)


# -- permission

MATRIX_MODES = (0o000, 0o400, 0o040, 0o004, 0o644, 0o660, 0o666, 0o755, 0o070, 0o707)
USERS: list[tuple[int, int, list[int]]] = [
    (0, 0, []),
    (USER, USER, []),
    (USER, USER, [MEMBERS]),
    (OTHER, MEMBERS, []),
    (65534, 65534, []),
]
USER_NAMES = ["root", "owner", "owner and member", "member", "nobody"]


def build_matrix(top: Path) -> None:
    """Files and directories of every mode, some with ACLs, of the user and of others."""
    top.chmod(0o1777)
    for owner, group in ((USER, USER), (0, MEMBERS), (OTHER, STRANGERS)):
        for mode in MATRIX_MODES:
            file = top / f"f {owner} {mode:o}"
            file.write_bytes(b"content")
            directory = top / f"d {owner} {mode:o}"
            directory.mkdir()
            (directory / "inside").write_bytes(b"content")
            os.chown(directory / "inside", OTHER, OTHER)
            for path in (file, directory):
                os.chown(path, owner, group)
                path.chmod(mode)
        for number, entries in enumerate(
            (
                acl(6, 0, 0, users={USER: 6}, mask=7),
                acl(6, 0, 0, users={USER: 6}, mask=4),
                acl(6, 0, 6, users={USER: 0}, mask=7),
                acl(6, 0, 0, groups={MEMBERS: 7}, mask=7),
                acl(6, 6, 6, groups={MEMBERS: 0}, mask=7),
            )
        ):
            for kind in "fd":
                path = top / f"{kind} {owner} acl {number}"
                if kind == "f":
                    path.write_bytes(b"content")
                else:
                    path.mkdir()
                    (path / "inside").touch()
                os.chown(path, owner, group)
                os.setxattr(path, ACCESS, entries)
    sticky = top / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    for owner in (0, USER, OTHER):
        for number in range(4):
            (sticky / f"{owner} {number}").touch()
            os.chown(sticky / f"{owner} {number}", owner, owner)
            (sticky / f"{owner} {number}").chmod(0o666)


def open_and_close(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


def probe_matrix(top: Path) -> list[str]:
    """Try everything on everything; tell what came of it."""
    told = []

    def attempt(what: str, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        result = outcome(call, *args, **kwargs)
        told.append(f"{what}: {result if isinstance(result, str) else 'done'}")

    names = sorted(os.listdir(top))
    for name in names:
        path = top / name
        rights = [os.access(path, right) for right in (os.R_OK, os.W_OK, os.X_OK)]
        told.append(f"{name}: {rights}")
        if name.startswith("f"):
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_NOATIME):
                attempt(f"{name} open {flags}", open_and_close, path, flags)
            attempt(f"{name} truncate", os.truncate, path, 7)
            if rights[2]:
                attempt(f"{name} execute", os.execv, path, ["x"])
            attempt(f"{name} link", os.link, path, top / f"l {name}")
            attempt(f"{name} getxattr", os.getxattr, path, "user.no")
            attempt(f"{name} setxattr", os.setxattr, path, "user.x", b"")
            attempt(f"{name} touch", os.utime, path)
            attempt(f"{name} set times", os.utime, path, (5, 5))
        elif name.startswith("d"):
            attempt(f"{name} list", os.listdir, path)
            attempt(f"{name} stat inside", (path / "inside").stat)
            attempt(f"{name} read inside", (path / "inside").read_bytes)
            attempt(f"{name} missing", (path / "no").stat)
            attempt(f"{name} create", (path / "new").touch)
            attempt(f"{name} mkdir", (path / "newdir").mkdir)
            attempt(f"{name} rename", (path / "inside").rename, path / "moved")
            attempt(f"{name} unlink", (path / "moved").unlink)
    for owner in (0, USER, OTHER):
        here = top / "sticky"
        attempt(f"sticky {owner} unlink", (here / f"{owner} 0").unlink)
        attempt(f"sticky {owner} rename", (here / f"{owner} 1").rename, here / "r")
        attempt(f"sticky {owner} replace", (here / "r").rename, here / f"{owner} 2")
        attempt(f"sticky {owner} write", (here / f"{owner} 3").write_bytes, b"")
    for name in names:
        path = top / name
        attempt(f"{name} chmod", path.chmod, 0o640)
        attempt(f"{name} chgrp", os.chown, path, -1, MEMBERS)
        attempt(f"{name} give away", os.chown, path, OTHER, -1)
    return told


@pytest.mark.parametrize(("uid", "gid", "groups"), USERS, ids=USER_NAMES)
def test_permissions_are_those_of_the_disk(
    pair: Pair, uid: int, gid: int, groups: list[int]
) -> None:
    def operation(top: Path) -> list[str]:
        build_matrix(top)
        return run_as(partial(probe_matrix, top), uid, gid=gid, groups=groups)

    pair.same(operation)


def test_only_the_owner_of_the_mount_gets_in_without_allow_other(mount: MountFactory) -> None:
    tree = mount(no_allow_other=True)
    (tree.mnt / "v").mkdir(0o777)
    with pytest.raises(PermissionError):
        run_as(partial(os.listdir, tree.mnt))
    with pytest.raises(PermissionError):
        run_as((tree.mnt / "v").stat)
    assert os.listdir(tree.mnt) == ["v"]


def test_other_users_work_in_a_mount_of_root(shared: Mounted) -> None:
    top = shared.mnt / "open to all"
    top.mkdir()
    top.chmod(0o1777)

    def work() -> bytes:
        (top / "d").mkdir()
        (top / "d" / "f").write_bytes(b"mine")
        return (top / "d" / "f").read_bytes()

    assert run_as(work) == b"mine"
    assert owned(shared.data("open to all") / "d" / "f") == (oct(0o100644), USER, USER)
