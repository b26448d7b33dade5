"""Extended attributes pass through as the backing filesystem keeps them."""

from __future__ import annotations

import ctypes
import errno
import os
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
from tests.mount.capabilities import CAPABILITY
from tests.mount.comparing import Pair, outcome, owned
from tests.mount.conftest import make_pair
from tests.mount.kinds import KINDS, make_open_to_all
from volfs.linux import syscalls

pytestmark = pytest.mark.no_data

P = ParamSpec("P")

_libc = ctypes.CDLL(None, use_errno=True)

ALL_KINDS = [*KINDS, "sticky directory"]
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
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_namespace_on_every_kind_of_file(pair: Pair, kind: str, uid: int) -> None:
    def operation(top: Path) -> list[str]:
        path = make_open_to_all(top / "it", kind)
        os.lchown(path, USER, USER)
        return run_as(partial(try_attributes, path), uid)

    pair.same(operation)


@pytest.mark.parametrize("value", [b"", b"\0", b"\xff\0text", b"v" * 1000, b"v" * 3900])
def test_values_come_back_whole_and_are_on_the_disk(pair: Pair, value: bytes) -> None:
    path = make_open_to_all(pair.mounted / "it", "file")
    os.setxattr(path, "user.x", value)
    assert os.getxattr(path, "user.x") == value
    assert os.getxattr(pair.data / "it", "user.x") == value
    assert os.listxattr(path) == ["user.x"]


@pytest.mark.parametrize("size", [3900, 4096, 8192, 65536, 65537])
def test_values_too_large_fail_as_on_the_disk(pair: Pair, size: int) -> None:
    def operation(top: Path) -> tuple[object, object]:
        path = make_open_to_all(top / "it", "file")
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
        path = make_open_to_all(top / "it", "file")
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
        path = make_open_to_all(top / "it", "file")
        for name in ("trusted.secret", "user.x", "security.y"):
            os.setxattr(path, name, b"value")
        return run_as(partial(listed, path), uid)

    pair.same(operation)


def test_root_without_the_capability_does_not_see_them(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = make_open_to_all(top / "it", "file")
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
        path = make_open_to_all(top / "it", "file")
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
        path = make_open_to_all(top / "it", "file")
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
        path = make_open_to_all(top / "it", "file")
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
    path = make_open_to_all(pair.mounted / "it", "file")
    assert os.listxattr(path) == []
    os.setxattr(pair.data / "it", "user.x", b"1")
    assert os.getxattr(path, "user.x") == b"1"
    os.setxattr(pair.data / "it", "user.x", b"two")
    assert os.getxattr(path, "user.x") == b"two"
    os.removexattr(pair.data / "it", "user.x")
    assert os.listxattr(path) == []


def test_copying_preserves_everything(pair: Pair) -> None:
    """cp -a within the tree, out of it and into it keeps modes, ACLs and attributes."""
    source = pair.native / "source"
    source.mkdir()
    for kind in ALL_KINDS:
        path = make_open_to_all(source / kind, kind)
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
