"""The same random operations in a volume and in a plain directory have the same results."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.conftest import Mounted, MountFactory, few_descriptors
from tests.mount.actor import NOW, OMIT, Actor, Outcome, Sides, snapshot
from volfs.linux import syscalls

T = TypeVar("T")

# VOLFS_EQUIVALENCE=2000 is for so many examples, other ones each time, and for shrinking what
# fails.
EXAMPLES = int(os.environ.get("VOLFS_EQUIVALENCE", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 25,
    stateful_step_count=60,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    print_blob=bool(EXAMPLES),
    report_multiple_bugs=False,
    # Shrinking takes minutes.
    phases=(Phase.generate, Phase.shrink) if EXAMPLES else (Phase.generate,),
    suppress_health_check=list(HealthCheck),
)

OPEN_AT_MOST = 12
FEW_DESCRIPTORS = 96

USER = 1000
GROUP = 2000
"""A group that the unprivileged actor is a member of; 3000 is one it is not."""


def one_of(*elements: T) -> st.SearchStrategy[T]:
    """Like sampled_from, but shown by numbers.

    For whatever it draws, Hypothesis makes text of all there is to draw from: some of it is long.
    """
    return st.sampled_from(range(len(elements))).map(lambda number: elements[number])


PLAIN = [b"a", b"b", b"c"]
ODD = [
    b"\xff\xfe",
    "ä \u2028".encode(),
    b"with space ",
    b"new\nline",
    b"-rf",
    b"%s'\"\\",
    b".fuse_hidden0001",
    b"x" * 255,
    b"y" * 256,
    b"z" * 1025,
]
names = one_of(*PLAIN * 12, *ODD)
fresh_paths = st.one_of(
    names,
    names,
    st.tuples(names, names).map(b"/".join),
    st.tuples(names, names, names).map(b"/".join),
    names.map(lambda name: name + b"/"),
    names.map(lambda name: name + b"/."),
    names.map(lambda name: name + b"/../a"),
    one_of(b".", b"", b"/nowhere/a", b"./" * 2048 + b"a"),
)
places = Bundle("places")
"""Paths at which something was made."""
paths = st.one_of(places, places, fresh_paths)
targets = st.one_of(
    places,
    names,
    st.tuples(names, names).map(b"/".join),
    one_of(b".", b"", b"/nowhere/a", b"t" * 4095, b"t" * 4096, b"./././a"),
)


def executable_if_setgid(mode: int) -> int:
    """Setgid without execution by the group is a known difference: see test_privileges."""
    return mode | stat.S_IXGRP if mode & stat.S_ISGID else mode


modes = st.one_of(
    st.sampled_from([0o644, 0o600, 0o755, 0o777, 0o000, 0o444, 0o711, 0o1777]),
    st.integers(0, 0o7777).map(executable_if_setgid),
)
sizes = st.sampled_from([0, 1, 10, 4095, 4096, 5000, 70000, 1 << 20, 1 << 33])
offsets = st.sampled_from([0, 1, 9, 4095, 4096, 4097, 65536, 70000])
contents = st.builds(
    lambda unit, length: unit * length,
    st.sampled_from([b"A", b"b", b"\0"]),
    st.sampled_from([0, 1, 10, 4096, 5000, 70000]),
)
# Before 1970, with nanoseconds, past 2038, and past what ext4 can say (2446).
times = st.sampled_from(
    [0, 1, 999_999_999, 10**9, 1_234_567_890_123_456_789, -1, -(10**9), -1_500_000_001]
) | st.sampled_from([2**31 * 10**9, (2**33 + 5) * 10**9 + 7, 2**35 * 10**9, NOW, OMIT])
uids = st.sampled_from([-1, 0, USER, USER + 1])
gids = st.sampled_from([-1, 0, USER, GROUP, 3000])


def acl(group: int) -> bytes:
    """The value of system.posix_acl_access with an entry for a named user (acl(5))."""
    entries = [
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 6, USER),
        (0x04, group, 0xFFFFFFFF),
        (0x10, 5, 0xFFFFFFFF),
        (0x20, 1, 0xFFFFFFFF),
    ]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


attributes = one_of(
    *[b"user.a", b"user.b", b"user." + b"n" * 250] * 3,
    *(b"user.", b"user." + b"n" * 251, b"trusted.t", b"bogus.x", b"security.volfs"),
    *(b"system.posix_acl_access", b"system.posix_acl_default"),
)
values = one_of(
    *[b"", b"1", b"two", b"v" * 300] * 3,
    *(b"v" * 5000, b"v" * 65536, b"v" * 65537, acl(0), acl(5), acl(7)),
)
# CREATE and REPLACE at once make no sense, and pyfuse3 takes them for CREATE.
xattr_flags = st.sampled_from([0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
open_flags = st.builds(
    lambda access, flags: access | sum(flags),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]),
    st.sets(
        st.sampled_from([os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_APPEND])
        | st.sampled_from([os.O_NOFOLLOW, os.O_DIRECTORY, os.O_DSYNC, os.O_NOATIME]),
        max_size=3,
    ).map(lambda flags: {flag & ~os.O_CREAT for flag in flags} | creates(flags)),
)


def creates(flags: set[int]) -> set[int]:
    return {os.O_CREAT} if any(flag & os.O_CREAT for flag in flags) else set()


node_kinds = st.sampled_from(
    [
        (stat.S_IFREG, 0),
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFCHR, os.makedev(1000, 70000)),
        (stat.S_IFBLK, os.makedev(60, 7)),
        (stat.S_IFDIR, 0),
        (0, 0),
    ]
)
users = st.sampled_from([0, 0, USER])


@dataclass(frozen=True)
class OpenFile:
    """An open file of one user's actors, on both sides under the same number."""

    user: int
    number: int


class Equivalence(RuleBasedStateMachine):
    """A volume and a plain directory, side by side."""

    files = Bundle("files")
    places = places
    numbers = itertools.count()

    def __init__(self, mounted: Mounted, sides: Sides, crowd: Crowd | None) -> None:
        super().__init__()
        self.mounted = mounted
        self.sides = sides
        self.crowd = crowd
        self.volume = f"v{next(self.numbers)}"
        self.opened = 0
        sides.each(mounted.uid, "make_volume", self.volume)
        # Deep in it, so that no ".." leads out of the volume.
        sides.enter(f"{self.volume}/up/up/base")

    def same(self, user: int, action: str, *arguments: Any) -> Outcome:
        """Both sides do it; the outcome, which must be the same."""
        if self.crowd is not None:
            self.crowd.come()
        # A tree of somebody else than root has one user.
        return self.sides.same(self.mounted.uid or user, action, *arguments)

    def teardown(self) -> None:
        plain = self.sides.tops[0] / self.volume
        try:
            expected, found = self.sides.each(self.mounted.uid, "snapshot", self.volume)
            expected_by_root = snapshot(os.fsencode(plain))
            real = snapshot(os.fsencode(self.mounted.data(self.volume)))
        finally:
            self.sides.leave()
            shutil.rmtree(plain)
            self.sides.each(self.mounted.uid, "discard", self.volume)
        assert found == expected
        assert real == expected_by_root

    def make(self, path: bytes, user: int, action: str, *arguments: Any) -> Any:
        """Do something that makes ``path``; what to add to the places."""
        made = self.same(user, action, *arguments)[0] == "ok"
        return path if made else multiple()

    @initialize(target=places)
    def begin(self) -> Any:
        """Something to work on from the first step."""
        begun = [
            self.make(b"a", USER, "mknod", b"a", stat.S_IFREG | 0o644, 0),
            self.make(b"b", USER, "mkdir", b"b", 0o755),
            self.make(b"b/a", 0, "mknod", b"b/a", stat.S_IFREG | 0o666, 0),
            self.make(b"b/b", 0, "mkdir", b"b/b", 0o777),
            self.make(b"b/c", USER, "symlink", b"../a", b"b/c"),
            self.make(b"c", 0, "symlink", b"b", b"c"),
        ]
        return multiple(*begun)

    # -- open files

    @precondition(lambda self: self.opened < OPEN_AT_MOST)
    @rule(target=files, user=users, path=paths, flags=open_flags, mode=modes)
    def open(self, user: int, path: bytes, flags: int, mode: int) -> Any:
        number = next(self.numbers)
        if self.same(user, "open", number, path, flags, mode)[0] != "ok":
            return multiple()
        self.opened += 1
        return OpenFile(user, number)

    @precondition(lambda self: self.opened < OPEN_AT_MOST)
    @rule(target=files, user=users, name=names)
    def create(self, user: int, name: bytes) -> Any:
        return self.open(user, name, os.O_CREAT | os.O_RDWR, 0o666)

    @rule(file=consumes(files))
    def close(self, file: OpenFile) -> None:
        self.opened -= 1
        self.same(file.user, "close", file.number)

    @rule(file=files, size=sizes.filter(lambda size: size <= 1 << 20))
    def read(self, file: OpenFile, size: int) -> None:
        self.same(file.user, "read", file.number, size)

    @rule(file=files, data=contents)
    def write(self, file: OpenFile, data: bytes) -> None:
        self.same(file.user, "write", file.number, data)

    @rule(file=files, size=sizes.filter(lambda size: size <= 1 << 20), offset=offsets)
    def pread(self, file: OpenFile, size: int, offset: int) -> None:
        self.same(file.user, "pread", file.number, size, offset)

    @rule(file=files, data=contents, offset=offsets)
    def pwrite(self, file: OpenFile, data: bytes, offset: int) -> None:
        self.same(file.user, "pwrite", file.number, data, offset)

    @rule(
        file=files,
        offset=offsets | st.just(-1),
        whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]),
    )
    def lseek(self, file: OpenFile, offset: int, whence: int) -> None:
        self.same(file.user, "lseek", file.number, offset, whence)

    @rule(file=files, size=sizes | st.just(-1))
    def ftruncate(self, file: OpenFile, size: int) -> None:
        self.same(file.user, "ftruncate", file.number, size)

    @rule(file=files, mode=modes)
    def fchmod(self, file: OpenFile, mode: int) -> None:
        self.same(file.user, "fchmod", file.number, mode)

    @rule(file=files, uid=uids, gid=gids)
    def fchown(self, file: OpenFile, uid: int, gid: int) -> None:
        self.same(file.user, "fchown", file.number, uid, gid)

    @rule(file=files, atime=times, mtime=times)
    def futimens(self, file: OpenFile, atime: int | str, mtime: int | str) -> None:
        self.same(file.user, "futimens", file.number, atime, mtime)

    @rule(
        file=files,
        action=st.sampled_from([("fsync", False), ("fsync", True), ("fstat",), ("flistdir",)]),
    )
    def check(self, file: OpenFile, action: tuple[Any, ...]) -> None:
        self.same(file.user, action[0], file.number, *action[1:])

    @rule(file=files, name=attributes, value=values, flags=xattr_flags)
    def fsetxattr(self, file: OpenFile, name: bytes, value: bytes, flags: int) -> None:
        self.same(file.user, "fsetxattr", file.number, name, value, flags)

    @rule(file=files, name=attributes)
    def fgetxattr(self, file: OpenFile, name: bytes) -> None:
        self.same(file.user, "fgetxattr", file.number, name)

    # -- names

    @rule(target=places, user=users, path=paths, mode=modes)
    def mkdir(self, user: int, path: bytes, mode: int) -> Any:
        return self.make(path, user, "mkdir", path, mode)

    @rule(user=users, path=paths)
    def rmdir(self, user: int, path: bytes) -> None:
        self.same(user, "rmdir", path)

    @rule(user=users, path=paths)
    def unlink(self, user: int, path: bytes) -> None:
        self.same(user, "unlink", path)

    @rule(
        target=places,
        user=users,
        path=paths,
        new_path=paths,
        flags=st.sampled_from([0, 0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE, 3, 8]),
    )
    def rename(self, user: int, path: bytes, new_path: bytes, flags: int) -> Any:
        return self.make(new_path, user, "rename", path, new_path, flags)

    @rule(target=places, user=users, path=paths, new_path=paths, follow=st.booleans())
    def link(self, user: int, path: bytes, new_path: bytes, follow: bool) -> Any:
        return self.make(new_path, user, "link", path, new_path, follow)

    @rule(target=places, user=users, content=targets, path=paths)
    def symlink(self, user: int, content: bytes, path: bytes) -> Any:
        return self.make(path, user, "symlink", content, path)

    @rule(target=places, user=users, path=paths, kind=node_kinds, mode=modes)
    def mknod(self, user: int, path: bytes, kind: tuple[int, int], mode: int) -> Any:
        return self.make(path, user, "mknod", path, kind[0] | mode, kind[1])

    @rule(user=users, path=paths, action=st.sampled_from(["stat", "stat", "listxattr"]))
    def look(self, user: int, path: bytes, action: str) -> None:
        for follow in (False, True):
            self.same(user, action, path, follow)

    @rule(user=users, path=paths, action=st.sampled_from(["listdir", "readlink"]))
    def list(self, user: int, path: bytes, action: str) -> None:
        self.same(user, action, path)

    # -- attributes

    @rule(user=users, path=paths, mode=modes)
    def chmod(self, user: int, path: bytes, mode: int) -> None:
        self.same(user, "chmod", path, mode)

    @rule(user=users, path=paths, uid=uids, gid=gids, follow=st.booleans())
    def chown(self, user: int, path: bytes, uid: int, gid: int, follow: bool) -> None:
        self.same(user, "chown", path, uid, gid, follow)

    @rule(user=users, path=paths, atime=times, mtime=times, follow=st.booleans())
    def utimens(
        self, user: int, path: bytes, atime: int | str, mtime: int | str, follow: bool
    ) -> None:
        self.same(user, "utimens", path, atime, mtime, follow)

    @rule(user=users, path=paths, size=sizes | st.just(-1))
    def truncate(self, user: int, path: bytes, size: int) -> None:
        self.same(user, "truncate", path, size)

    @rule(user=users, path=paths, mode=st.integers(0, 7))
    def access(self, user: int, path: bytes, mode: int) -> None:
        self.same(user, "access", path, mode)

    @rule(user=users, mask=st.sampled_from([0o022, 0o077, 0o000, 0o027]))
    def umask(self, user: int, mask: int) -> None:
        self.same(user, "umask", mask)

    # -- extended attributes

    @rule(
        user=users,
        path=paths,
        name=attributes,
        value=values,
        flags=xattr_flags,
        follow=st.booleans(),
    )
    def setxattr(
        self, user: int, path: bytes, name: bytes, value: bytes, flags: int, follow: bool
    ) -> None:
        self.same(user, "setxattr", path, name, value, flags, follow)

    @rule(user=users, path=paths, name=attributes, follow=st.booleans())
    def getxattr(self, user: int, path: bytes, name: bytes, follow: bool) -> None:
        self.same(user, "getxattr", path, name, follow)

    @rule(user=users, path=paths, name=attributes, follow=st.booleans())
    def removexattr(self, user: int, path: bytes, name: bytes, follow: bool) -> None:
        self.same(user, "removexattr", path, name, follow)


class Crowd:
    """As many files as the daemon keeps descriptors, which now and then are all looked up."""

    def __init__(self, mounted: Mounted, actor: Actor) -> None:
        self._actor = actor
        self._path = os.fsencode(mounted.mnt / "crowd")
        assert actor("make_crowd", self._path, FEW_DESCRIPTORS * 3 // 4)[0] == "ok"
        self._turn = itertools.cycle([True] + [False] * 9)

    def come(self) -> None:
        """Call before each operation."""
        if next(self._turn):
            result, value = self._actor("see_crowd", self._path)
            assert result == "ok", value


class Compare(Protocol):
    """Run the machine on a mount."""

    def __call__(self, mounted: Mounted, *, crowded: bool = False) -> None: ...


@pytest.fixture
def compare(workspace: Path) -> Iterator[Compare]:
    plain = workspace / "plain"
    plain.mkdir()
    plain.chmod(0o777)
    with ExitStack() as stack:

        def run(mounted: Mounted, *, crowded: bool = False) -> None:
            # A daemon that is no root has no more groups than its user.
            groups: dict[int, list[int]] = {USER: []} if mounted.uid else {0: [], USER: [GROUP]}
            sides = stack.enter_context(closing(Sides((plain, mounted.mnt), groups)))
            crowd = None
            if crowded:
                actor = Actor(mounted.uid, mounted.uid, [])
                crowd = Crowd(mounted, stack.enter_context(closing(actor)))

            class Here(Equivalence):
                def __init__(self) -> None:
                    super().__init__(mounted, sides, crowd)

            run_state_machine_as_test(Here, settings=SETTINGS)

        yield run


@pytest.mark.timeout(0 if EXAMPLES else 300)
@pytest.mark.parametrize("cache", ["auto", "never"])
def test_volume_is_like_a_plain_directory(
    mount: MountFactory, compare: Compare, cache: str
) -> None:
    compare(mount(cache=cache, dev=True))


@pytest.mark.timeout(0 if EXAMPLES else 300)
def test_volume_is_like_a_plain_directory_with_few_descriptors(
    mount: MountFactory, compare: Compare
) -> None:
    """Inodes lose their descriptors all the time, and are found again by handle."""
    mounted = mount(prepare=few_descriptors(FEW_DESCRIPTORS), cache="never", dev=True)
    compare(mounted, crowded=True)
    assert mounted.statistics()["descriptors"] <= FEW_DESCRIPTORS * 3 // 4


@pytest.mark.timeout(0 if EXAMPLES else 300)
def test_volume_of_a_user_is_like_a_plain_directory_with_few_descriptors(
    mount: MountFactory, compare: Compare
) -> None:
    """Without root's privileges they are found again by parent and name."""
    compare(mount(user=USER, prepare=few_descriptors(FEW_DESCRIPTORS), cache="never"), crowded=True)
