"""Appends from two hosts to one file of a network filesystem.

The scope is in another tree, which remembers sizes for a day: so its kernel part takes a write to
a descriptor without O_APPEND to where it believes the end, as the client of a network filesystem
does. The other host appends to the file in that tree's own scope.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import levels
from tests.conftest import Mounted, mounting, open_workspace, wait_for
from tests.mount.open_files import wait_until_idle

_TOLD = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DIRECT | os.O_TRUNC
PAGE = mmap.PAGESIZE

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[Mounted]:
    """The tree that the scope is in, at a level at which its kernel part remembers sizes."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(cache="always", no_passthrough=True)


@pytest.fixture(scope="module")
def tree(server: Mounted) -> Iterator[Mounted]:
    (server.mnt / "vol").mkdir()
    scope = server.mnt / "vol/scope"
    scope.mkdir()
    plain = levels.chosen() == "plain"
    with open_workspace() as workspace, mounting(workspace) as mount:
        tree = mount(scope=scope, no_tap=plain, no_passthrough=not plain)
        (tree.mnt / "vol").mkdir()
        yield tree


@pytest.fixture(autouse=True)
def nothing_is_kept(tree: Mounted, server: Mounted) -> Iterator[None]:
    """When a test has closed its files and mappings, nobody holds a backing file any more."""
    yield
    wait_until_idle(tree)

    def held() -> list[int]:  # what is released is closed in a thread
        return [flags for flags in flags_at(tree, tree.data("vol")) if flags & os.O_ACCMODE]

    wait_for(lambda: not held(), "all to be closed")


@dataclass(frozen=True)
class Log:
    """A file in the tree; as the network filesystem shows it to this host; and to another host."""

    here: Path
    between: Path
    there: Path

    def remember(self) -> None:
        """Have this host ask for the size, which it then remembers."""
        self.between.stat()

    def append_there(self, data: bytes) -> None:
        self.remember()
        with self.there.open("ab") as file:
            file.write(data)


@pytest.fixture
def log(tree: Mounted, server: Mounted) -> Log:
    """A new file without content."""
    name = f"log{next(_numbers)}"
    between = tree.data("vol") / name
    there = server.data("vol") / between.relative_to(server.mnt / "vol")
    there.touch()
    return Log(tree.mnt / "vol" / name, between, there)


def flags_at(tree: Mounted, path: Path) -> list[int]:
    """How the daemon has open what it has open at or below ``path``: flags of open(2)."""
    found = []
    for number in os.listdir(f"/proc/{tree.pid}/fd"):
        with suppress(FileNotFoundError):  # closed this moment
            target = Path(os.readlink(f"/proc/{tree.pid}/fd/{number}").removesuffix(" (deleted)"))
            if target == path or path in target.parents:
                fdinfo = Path(f"/proc/{tree.pid}/fdinfo/{number}").read_text()
                flags = int(dict(line.split(":", 1) for line in fdinfo.splitlines())["flags"], 8)
                if not flags & os.O_PATH:
                    found.append(flags & _TOLD)
    return sorted(found)


@contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def set_append(fd: int, *, on: bool = True) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND if on else flags & ~os.O_APPEND)


# -- ways to append


def open_to_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND)


def open_to_read_and_append(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_APPEND)


def open_synchronously(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_DSYNC)


def open_truncating(path: Path) -> int:
    path.write_bytes(b"what was there")
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)


def open_direct(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_DIRECT)


def create(path: Path) -> int:
    path.unlink()
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)


def change_to_append(path: Path) -> int:
    fd = os.open(path, os.O_WRONLY)
    set_append(fd)
    return fd


def change_to_read_and_append(path: Path) -> int:
    fd = os.open(path, os.O_RDWR)
    set_append(fd)
    return fd


# At the plain level nobody tells the daemon of fcntl(2).
CHANGED = [
    pytest.param(way, marks=pytest.mark.needs_tap)
    for way in (change_to_append, change_to_read_and_append)
]
WAYS = [
    open_to_append,
    open_to_read_and_append,
    open_synchronously,
    open_truncating,
    open_direct,
    create,
    *CHANGED,
]


@pytest.mark.parametrize("way", WAYS)
def test_no_host_overwrites_what_another_appended(log: Log, way: Callable[[Path], int]) -> None:
    with closing(way(log.here)) as fd:
        for number in range(4):
            record = b"A%d " % number
            # The offset of pwrite(2) is ignored: it appends like any write.
            written = os.pwrite(fd, record, 0) if number == 2 else os.write(fd, record)
            assert written == len(record)
            assert os.fstat(fd).st_size == log.there.stat().st_size
            log.append_there(b"B%d " % number)
    assert log.there.read_bytes() == b"A0 B0 A1 B1 A2 B2 A3 B3 "


@pytest.mark.needs_tap
def test_a_file_without_a_name_is_appended_to(tree: Mounted) -> None:
    with closing(os.open(tree.mnt / "vol", os.O_TMPFILE | os.O_RDWR)) as fd:
        os.write(fd, b"content")
        set_append(fd)
        assert os.pwrite(fd, b", more", 0) == 6
        assert os.pread(fd, 20, 0) == b"content, more"


# -- descriptors


@pytest.mark.parametrize("sync", [0, os.O_SYNC, os.O_DSYNC], ids=["", "O_SYNC", "O_DSYNC"])
@pytest.mark.parametrize("access", [os.O_WRONLY, os.O_RDWR], ids=["O_WRONLY", "O_RDWR"])
def test_appends_have_a_descriptor_open_with_o_append(
    tree: Mounted, log: Log, access: int, sync: int
) -> None:
    with closing(os.open(log.here, access | os.O_APPEND | os.O_TRUNC | sync)) as fd:
        os.write(fd, b"content")
        assert flags_at(tree, log.between) == [access | os.O_APPEND | sync]


@pytest.mark.needs_tap
@pytest.mark.parametrize("sync", [0, os.O_SYNC, os.O_DSYNC], ids=["", "O_SYNC", "O_DSYNC"])
def test_a_flag_changed_later_takes_another_descriptor(tree: Mounted, log: Log, sync: int) -> None:
    """Once, however often it is changed."""
    with closing(os.open(log.here, os.O_RDWR | sync)) as fd:
        os.write(fd, b"content")
        assert flags_at(tree, log.between) == [os.O_RDWR | sync]
        for number in range(10):
            set_append(fd, on=True)
            os.write(fd, b"%d" % number)
            set_append(fd, on=False)
            os.pwrite(fd, b"%d" % number, 0)
        assert flags_at(tree, log.between) == [os.O_RDWR | sync, os.O_RDWR | os.O_APPEND | sync]
    assert log.there.read_bytes() == b"9ontent0123456789"


@pytest.mark.needs_tap
def test_many_changed_files_take_few_descriptors(tree: Mounted) -> None:
    files = 100
    top = tree.mnt / "vol/many"
    top.mkdir()
    with ExitStack() as stack:
        opened = []
        for number in range(files):
            fd = os.open(top / str(number), os.O_WRONLY | os.O_CREAT, 0o644)
            stack.callback(os.close, fd)
            opened.append(fd)
            set_append(fd)
        for _ in range(3):
            for number, fd in enumerate(opened):
                os.write(fd, b"%d " % number)
        flags = flags_at(tree, tree.data("vol") / "many")
    assert flags.count(os.O_WRONLY) == files
    assert 0 < flags.count(os.O_WRONLY | os.O_APPEND) < files
    for number in range(files):
        assert (top / str(number)).read_bytes() == b"%d " % number * 3


@pytest.mark.needs_tap
@pytest.mark.parametrize("call", [os.fsync, os.fdatasync], ids=lambda call: call.__name__)
def test_both_descriptors_are_synced(
    server: Mounted, log: Log, call: Callable[[int], None]
) -> None:
    """A network filesystem can tell of what it could not write by the descriptor it came by."""

    def syncs() -> int:
        count: int = server.statistics()["requests"].get("FSYNC", 0)
        return count

    with closing(os.open(log.here, os.O_WRONLY)) as fd:
        os.write(fd, b"content")
        set_append(fd)
        os.write(fd, b", more")
        before = syncs()
        call(fd)
        assert syncs() - before == 2


# -- what is not appended


def test_another_opening_writes_where_it_says(log: Log) -> None:
    log.here.write_bytes(b"0123456789")
    with (
        closing(os.open(log.here, os.O_RDWR | os.O_APPEND)) as appending,
        closing(os.open(log.here, os.O_RDWR)) as writing,
    ):
        os.write(appending, b"end")
        os.pwrite(writing, b"ab", 3)
        os.write(appending, b", more")
        os.pwrite(writing, b"cd", 5)
    assert log.there.read_bytes() == b"012abcd789end, more"


def test_a_mapping_is_written_where_it_is(log: Log) -> None:
    """Also by way of a file that is open for appending."""
    log.here.write_bytes(b"x" * 3 * PAGE)
    with (
        closing(os.open(log.here, os.O_RDWR | os.O_APPEND)) as fd,
        mmap.mmap(fd, 0) as mapped,
    ):
        os.write(fd, b"end")
        mapped[PAGE : PAGE + 6] = b"stored"
        mapped.flush()
        os.write(fd, b", more")
    expected = b"x" * PAGE + b"stored".ljust(PAGE, b"x") + b"x" * PAGE + b"end, more"
    assert log.there.read_bytes() == expected


@pytest.mark.needs_tap
def test_the_flag_taken_away_lets_writes_go_where_they_say(log: Log) -> None:
    log.here.write_bytes(b"0123456789")
    with (
        closing(os.open(log.here, os.O_WRONLY | os.O_APPEND)) as fd,
        closing(os.open(log.here, os.O_RDONLY)) as source,
    ):
        os.write(fd, b"end")
        set_append(fd, on=False)
        os.pwrite(fd, b"abc", 2)
        assert os.copy_file_range(source, fd, 3, offset_src=10, offset_dst=6) == 3
        set_append(fd)
        os.write(fd, b", more")
    assert log.there.read_bytes() == b"01abc5end9end, more"
