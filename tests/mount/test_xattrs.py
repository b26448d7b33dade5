"""Extended attributes and ACLs pass through as the backing filesystem keeps them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import ParamSpec

import pytest

from tests import filesystems
from tests.acls import ACCESS, DEFAULT, acl
from tests.children import OTHER, USER, run_as
from tests.conftest import MountFactory
from tests.mount.comparing import Pair, outcome, owned
from tests.mount.conftest import make_pair
from volfs.linux import syscalls

pytestmark = pytest.mark.no_data

MEMBERS = 2000
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_bind_service=ep as security.capability holds it (linux/capability.h, revision 2)."""

P = ParamSpec("P")

_libc = ctypes.CDLL(None, use_errno=True)


def make(path: Path, kind: str) -> Path:
    if kind == "file":
        path.write_bytes(b"content")
        path.chmod(0o666)
    elif kind == "directory":
        path.mkdir()
        path.chmod(0o777)
    elif kind == "sticky directory":
        path.mkdir()
        path.chmod(0o1777)
    elif kind == "symlink":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
        path.chmod(0o666)
    else:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.chmod(0o666)
    return path


KINDS = ["file", "directory", "sticky directory", "symlink", "fifo", "device"]
NAMES = [
    "user.x",
    "user.",
    "user." + "n" * 250,
    "user." + "n" * 251,
    "trusted.x",
    "security.x",
    "security.capability",
    "system.x",
    "system.posix_acl_access",
    "system.posix_acl_default",
    "nonsense",
    "nonsense.x",
    "os2.x",
]


def listed(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def try_attributes(path: Path) -> list[str]:
    """Everything with every name; told are the outcomes."""
    told = []

    def attempt(what: str, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        told.append(f"{what}: {outcome(call, *args, **kwargs)}")

    for name in NAMES:
        for step, value, flags in (
            ("replace", b"0", os.XATTR_REPLACE),
            ("create", b"1", os.XATTR_CREATE),
            ("create again", b"2", os.XATTR_CREATE),
            ("replace again", b"", os.XATTR_REPLACE),
            ("set", CAPABILITY, 0),
        ):
            change = os.setxattr
            attempt(f"{name} {step}", change, path, name, value, flags, follow_symlinks=False)
            attempt(f"{name} get", os.getxattr, path, name, follow_symlinks=False)
        attempt("list", listed, path)
        for step in ("remove", "remove again"):
            attempt(f"{name} {step}", os.removexattr, path, name, follow_symlinks=False)
    attempt("list", listed, path)
    return told


@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_namespace_on_every_kind_of_file(pair: Pair, kind: str, uid: int) -> None:
    def operation(top: Path) -> list[str]:
        path = make(top / "it", kind)
        os.lchown(path, USER, USER)
        return run_as(partial(try_attributes, path), uid)

    pair.same(operation)


@pytest.mark.parametrize("value", [b"", b"\0", b"\xff\0text", b"v" * 1000, b"v" * 3900])
def test_values_come_back_whole_and_are_on_the_disk(pair: Pair, value: bytes) -> None:
    path = make(pair.mounted / "it", "file")
    os.setxattr(path, "user.x", value)
    assert os.getxattr(path, "user.x") == value
    assert os.getxattr(pair.data / "it", "user.x") == value
    assert os.listxattr(path) == ["user.x"]


@pytest.mark.parametrize("size", [3900, 4096, 8192, 65536, 65537])
def test_values_too_large_fail_as_on_the_disk(pair: Pair, size: int) -> None:
    def operation(top: Path) -> tuple[object, object]:
        path = make(top / "it", "file")
        done = outcome(os.setxattr, path, "user.x", b"v" * size)
        return done, outcome(lambda: len(os.getxattr(path, "user.x")))

    pair.same(operation)


@pytest.fixture
def memory(workspace: Path) -> Iterator[Path]:
    """A tmpfs, which takes larger attributes than ext4."""
    with filesystems.tmpfs(workspace / "tmpfs") as path:
        yield path


def test_the_largest_values_there_are(memory: Path, mount: MountFactory) -> None:
    scope = memory / "scope"
    scope.mkdir()
    pair = make_pair(mount(scope=scope))

    def operation(top: Path) -> list[object]:
        path = make(top / "it", "file")
        os.setxattr(path, "user.large", bytes(range(256)) * 256)
        told: list[object] = [os.getxattr(path, "user.large") == bytes(range(256)) * 256]
        for number in range(1000):
            if outcome(os.setxattr, path, f"user.{number:0200}", b"v"):
                told.append(number)
                break
        names = outcome(listed, path)
        return [*told, names]

    pair.same(operation)


@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
def test_trusted_attributes_are_listed_to_root_only(pair: Pair, uid: int) -> None:
    def operation(top: Path) -> list[str]:
        path = make(top / "it", "file")
        for name in ("trusted.secret", "user.x", "security.y"):
            os.setxattr(path, name, b"value")
        return run_as(partial(listed, path), uid)

    pair.same(operation)


def test_root_without_the_capability_does_not_see_them(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = make(top / "it", "file")
        for name in ("trusted.secret", "user.x"):
            os.setxattr(path, name, b"value")

        def work() -> list[object]:
            effective, permitted, inheritable = syscalls.capget()
            mask = ~(1 << syscalls.CAP_SYS_ADMIN)
            syscalls.capset(effective & mask, permitted & mask, inheritable & mask)
            return [listed(path), outcome(os.getxattr, path, "trusted.secret")]

        return run_as(work, 0)

    assert pair.same(operation) == [["user.x"], "ENODATA"]


@pytest.mark.parametrize("name", ["system.x", "system.nfs4_acl", "system.cifs_acl", "system.data"])
def test_nobody_reaches_attributes_that_nobody_checks(pair: Pair, name: str) -> None:
    """This disk has none of these; tests/fs/files has one that takes all."""

    def operation(top: Path) -> list[object]:
        path = make(top / "it", "file")
        return [
            run_as(partial(outcome, os.setxattr, path, name, b"value"), uid) for uid in (0, USER)
        ] + [outcome(os.getxattr, path, name), outcome(os.removexattr, path, name)]

    pair.same(operation)


def test_sizes_are_told_and_small_buffers_refused(pair: Pair) -> None:
    """Sizes as getxattr(2) and listxattr(2) define them: 0 asks, too small is ERANGE."""

    def ask(call: str, path: Path, name: bytes, size: int) -> int | str:
        buffer = ctypes.create_string_buffer(max(size, 1))
        arguments: list[object] = [os.fsencode(path), buffer, ctypes.c_size_t(size)]
        if call == "getxattr":
            arguments.insert(1, name)
        function = getattr(_libc, call)
        function.restype = ctypes.c_ssize_t
        found: int = function(*arguments)
        return found if found >= 0 else errno.errorcode[ctypes.get_errno()]

    def operation(top: Path) -> list[int | str]:
        path = make(top / "it", "file")
        told = [ask("listxattr", path, b"", size) for size in (0, 1)]
        os.setxattr(path, "user.one", b"0123456789")
        os.setxattr(path, "user.empty", b"")
        told += [ask("getxattr", path, b"user.one", size) for size in (0, 1, 9, 10, 11)]
        told += [ask("getxattr", path, b"user.empty", size) for size in (0, 1)]
        told += [ask("listxattr", path, b"", size) for size in (0, 1, 19, 20, 21)]
        return told

    assert pair.same(operation) == [
        *(0, 0),
        *(10, "ERANGE", "ERANGE", 10, 10),
        *(0, 0),
        *(20, "ERANGE", "ERANGE", 20, 20),
    ]


def test_attributes_of_an_unlinked_open_file(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = make(top / "it", "file")
        os.setxattr(path, "user.x", b"before")
        fd = os.open(path, os.O_RDONLY)
        path.unlink()
        told: list[object] = [os.getxattr(fd, "user.x")]
        os.setxattr(fd, "user.y", b"after")
        told.append(sorted(os.listxattr(fd)))
        os.removexattr(fd, "user.x")
        told.append(os.listxattr(fd))
        os.close(fd)
        return told

    pair.same(operation)


def test_attributes_changed_behind_the_mount_are_seen(pair: Pair) -> None:
    path = make(pair.mounted / "it", "file")
    assert os.listxattr(path) == []
    os.setxattr(pair.data / "it", "user.x", b"1")
    assert os.getxattr(path, "user.x") == b"1"
    os.setxattr(pair.data / "it", "user.x", b"two")
    assert os.getxattr(path, "user.x") == b"two"
    os.removexattr(pair.data / "it", "user.x")
    assert os.listxattr(path) == []


def test_setcap_and_getcap(pair: Pair) -> None:
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where users have no PATH to
    setcap, getcap = (shutil.which(name, path=search) for name in ("setcap", "getcap"))
    if not setcap or not getcap:
        pytest.skip("setcap is missing (Debian package libcap2-bin)")

    def operation(top: Path) -> str:
        (top / "program").write_bytes(b"")
        subprocess.run([setcap, "cap_net_raw=ep", "program"], cwd=top, check=True)
        return subprocess.run(
            [getcap, "program"], cwd=top, check=True, capture_output=True, text=True
        ).stdout

    assert "cap_net_raw=ep" in str(pair.same(operation))
    assert os.getxattr(pair.data / "program", "security.capability")


# -- ACLs


def facl(top: Path, *arguments: str) -> str:
    """Run setfacl, then tell what getfacl and stat say."""
    done = subprocess.run(["setfacl", *arguments], cwd=top, capture_output=True, text=True)
    told = subprocess.run(
        ["getfacl", "--numeric", "-R", "."], cwd=top, check=True, capture_output=True, text=True
    )
    modes = [str(owned(path)) for path in sorted(top.rglob("*"))]
    return "\n".join([str(done.returncode), done.stderr, told.stdout, *modes])


def test_setfacl_and_getfacl(pair: Pair) -> None:
    if not shutil.which("setfacl"):
        pytest.skip("setfacl is missing (Debian package acl)")

    def operation(top: Path) -> list[str]:
        (top / "d").mkdir()
        (top / "d" / "f").touch()
        (top / "s").symlink_to("d")
        told = [
            facl(top, *command.split())
            for command in (
                "-m u:1001:rw d/f",
                "-m g:2000:rwx,m::r d/f",
                "-m u:1001:rwx d",
                "-d -m u:1001:rwx,g:2000:rx d",
                "-x u:1001 d/f",
                "-m m::--- d/f",
                "-R -m o::r d",
                "-P -R -m u:1002:x .",
                "-d -m u:1001:rwx d/f",
                "-k d",
                "-b d/f",
                "-m u:no-such-user:r d",
            )
        ]
        (top / "d" / "f").chmod(0o751)
        told.append(facl(top, "-m", "g:3000:rwx", "d/f"))
        (top / "d" / "f").chmod(0o640)
        told.append(facl(top, "-d", "-m", "m::rx", "d"))
        (top / "d" / "g").touch()
        (top / "d" / "e").mkdir()
        told.append(facl(top, "-n", "-m", "u:1003:rwx", "d/g"))
        return told

    pair.same(operation)


@pytest.mark.parametrize(
    ("gid", "groups", "uid"),
    [(USER, [], USER), (MEMBERS, [], USER), (USER, [MEMBERS], USER), (0, [], 0)],
    ids=["stranger", "main group", "supplementary group", "root"],
)
@pytest.mark.parametrize("mode", [0o2755, 0o2644, 0o6777, 0o755])
def test_setgid_stays_under_a_new_acl_for_members(
    pair: Pair, mode: int, uid: int, gid: int, groups: list[int]
) -> None:
    acls = [acl(7, 5, 5), acl(7, 5, 5, users={OTHER: 7}, mask=7), acl(6, 4, 0)]

    def operation(top: Path) -> list[tuple[str, int, int]]:
        for number in range(2 * len(acls)):
            path = make(top / f"it{number}", "directory" if number % 2 else "file")
            os.chown(path, USER, MEMBERS)
            path.chmod(mode)

        def change() -> None:
            for number, entries in enumerate(acls):
                os.setxattr(top / f"it{2 * number}", ACCESS, entries)
                os.setxattr(top / f"it{2 * number + 1}", ACCESS, entries)

        run_as(change, uid, gid=gid, groups=groups)
        return [owned(top / f"it{number}") for number in range(2 * len(acls))]

    pair.same(operation)
    for path in pair.data.iterdir():
        assert owned(path) == owned(pair.native / path.name)


@pytest.mark.parametrize("entries", [0, 1, 100, 450, 500])
def test_long_acls_as_far_as_the_disk_takes_them(pair: Pair, entries: int) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        value = acl(7, 7, 7, users=dict.fromkeys(range(entries), 5), mask=7)
        for kind, name in (("file", ACCESS), ("directory", DEFAULT)):
            path = make(top / kind, kind)
            told.append(outcome(os.setxattr, path, name, value))
            told.append(outcome(os.getxattr, path, name))
        return told

    pair.same(operation)


def test_an_acl_has_at_most_a_page(pair: Pair) -> None:
    """A known difference: the kernel's FUSE refuses longer ones itself (fs/fuse/acl.c)."""
    path = make(pair.mounted / "it", "file")
    value = acl(7, 7, 7, users=dict.fromkeys(range(510), 5), mask=7)
    assert len(value) > os.sysconf("SC_PAGESIZE")
    assert outcome(os.setxattr, path, ACCESS, value) == "E2BIG"


MALFORMED = {
    "empty": b"",
    "no entries": acl(7, 7, 7)[:4],
    "cut short": acl(7, 7, 7)[:-3],
    "another version": b"\x09" + acl(7, 7, 7)[1:],
    "users without mask": acl(7, 7, 7, users={OTHER: 7}),
    "owner only": acl(7, 7, 7)[:12],
    "bits beyond": acl(15, 7, 7),
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_acls_are_refused_alike(pair: Pair, value: bytes) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for kind in ("file", "directory", "fifo", "symlink"):
            path = make(top / kind, kind)
            for name in (ACCESS, DEFAULT):
                told.append(outcome(os.setxattr, path, name, value, follow_symlinks=False))
                told.append(outcome(os.getxattr, path, name, follow_symlinks=False))
        return told

    pair.same(operation)


def test_acls_are_enforced_at_once(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(b"content")
        path.chmod(0o640)

        def read() -> object:
            return outcome(run_as, path.read_bytes)

        told: list[object] = [read()]
        os.setxattr(path, ACCESS, acl(6, 4, 0, users={USER: 4}, mask=4))
        told.append(read())
        path.chmod(0o600)  # the group bits are the mask now
        told.append(read())
        path.chmod(0o640)
        told.append(read())
        os.removexattr(path, ACCESS)
        told.append(read())
        return told

    pair.same(operation)


def test_copying_preserves_everything(pair: Pair) -> None:
    """cp -a within the tree, out of it and into it keeps modes, ACLs and attributes."""
    source = pair.native / "source"
    source.mkdir()
    for kind in KINDS:
        path = make(source / kind, kind)
        os.utime(path, ns=(1, 2), follow_symlinks=False)
    os.setxattr(source / "file", "user.x", b"value")
    os.setxattr(source / "directory", DEFAULT, acl(7, 5, 0, users={OTHER: 7}, mask=7))
    os.setxattr(source / "file", ACCESS, acl(7, 5, 0, users={OTHER: 6}, mask=7))
    os.setxattr(source / "file", "security.capability", CAPABILITY)

    def tell(top: Path) -> list[object]:
        return [
            (
                path.name,
                owned(path),
                path.lstat().st_mtime_ns,
                {
                    name: os.getxattr(path, name, follow_symlinks=False)
                    for name in os.listxattr(path, follow_symlinks=False)
                },
            )
            for path in sorted(top.iterdir())
        ]

    subprocess.run(["cp", "-a", source, pair.mounted / "in"], check=True)
    subprocess.run(["cp", "-a", pair.mounted / "in", pair.mounted / "within"], check=True)
    subprocess.run(["cp", "-a", pair.mounted / "within", pair.native / "out"], check=True)
    assert tell(pair.mounted / "in") == tell(source)
    assert tell(pair.native / "out") == tell(source)
