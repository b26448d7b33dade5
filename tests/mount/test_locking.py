"""Locks between two processes: both in the tree, or one of them on the real data path.

The same tests run on a plain directory, which shows that they ask for what is right.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sqlite3
import subprocess
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.children import USER, run_as
from tests.conftest import Mounted, MountFactory, wait_for
from tests.mount.comparing import Pair
from tests.mount.locker import Locker
from tests.mount.locking import (
    EXCLUSIVE,
    NONE,
    READ,
    SHARED,
    UNLOCK,
    WRITE,
    Sides,
    begin_to_wait,
    everywhere,
    take,
)

pytestmark = [pytest.mark.needs_tap, pytest.mark.no_data]

# -- what excludes what


@everywhere
def test_flock(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("flock", one, EXCLUSIVE) is None
    assert sides.other("flock", other, EXCLUSIVE) == "EAGAIN"
    assert sides.other("flock", other, SHARED) == "EAGAIN"
    assert sides.other("set", other, WRITE) is None, "record locks are another matter"
    assert sides.one("flock", one, SHARED) is None
    assert sides.other("flock", other, EXCLUSIVE) == "EAGAIN"
    assert sides.other("flock", other, SHARED) is None
    assert sides.one("flock", one, EXCLUSIVE) == "EAGAIN"
    assert sides.other("flock", other, EXCLUSIVE) is None, "a failed conversion loses the lock"
    assert sides.one("flock", one, SHARED) == "EAGAIN"
    assert sides.other("flock", other, UNLOCK) is None
    assert sides.one("flock", one, EXCLUSIVE) is None


def test_flock_needs_no_right_to_write(sides: Sides) -> None:
    one = sides.one("open", sides.one_path, os.O_RDONLY)
    other = sides.other("open", sides.other_path, os.O_RDONLY)
    assert sides.one("flock", one, EXCLUSIVE) is None
    assert sides.other("flock", other, SHARED) == "EAGAIN"


def test_flock_holds_however_many_files_are_opened_after_it(sides: Sides) -> None:
    """More than the daemon keeps descriptors of that it can do without."""
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("flock", one, EXCLUSIVE) is None
    for number in range(100):
        path = sides.one_path.with_name(str(number))
        assert isinstance(sides.one("open", path, os.O_RDWR | os.O_CREAT), int)
    assert sides.other("flock", other, SHARED) == "EAGAIN"
    assert sides.one("flock", one, UNLOCK) is None
    assert sides.other("flock", other, EXCLUSIVE) is None
    assert sides.one("flock", one, EXCLUSIVE) == "EAGAIN"


@everywhere
def test_record_locks(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("set", one, WRITE, 10, 10) is None
    assert sides.one("set", one, READ, 30, 10) is None
    for start, length, reading, writing in (
        (0, 10, None, None),
        (0, 11, "EAGAIN", "EAGAIN"),
        (19, 1, "EAGAIN", "EAGAIN"),
        (20, 10, None, None),
        (20, 11, None, "EAGAIN"),
        (39, 1, None, "EAGAIN"),
        (40, 0, None, None),
        (0, 0, "EAGAIN", "EAGAIN"),
    ):
        assert sides.other("set", other, READ, start, length) == reading, (start, length)
        assert sides.other("set", other, NONE) is None
        assert sides.other("set", other, WRITE, start, length) == writing, (start, length)
        assert sides.other("set", other, NONE) is None
    assert sides.other("flock", other, EXCLUSIVE) is None


def test_record_locks_are_changed_in_place(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("set", one, READ) is None
    assert sides.other("set", other, READ) is None
    assert sides.one("set", one, WRITE) == "EAGAIN"
    assert sides.other("set", other, WRITE) == "EAGAIN", "the other still has its lock"
    assert sides.other("set", other, NONE) is None
    assert sides.one("set", one, WRITE) is None
    assert sides.other("set", other, READ) == "EAGAIN"
    assert sides.one("set", one, READ, 5, 5) is None
    assert sides.other("set", other, READ, 5, 5) is None
    assert sides.other("set", other, READ, 4, 2) == "EAGAIN"
    assert sides.one("set", one, NONE, 0, 5) is None
    assert sides.other("set", other, WRITE, 0, 5) is None
    assert sides.other("set", other, READ, 10, 1) == "EAGAIN"


@everywhere
def test_of_several_conflicting_locks_the_first_is_told(sides: Sides) -> None:
    """The first in the file, in whatever order they were set."""
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    for start, kind in ((50, WRITE), (10, READ), (30, WRITE), (20, READ)):
        assert sides.one("set", one, kind, start, 5) is None
    for start, kind, first in ((0, WRITE, 10), (12, WRITE, 10), (16, WRITE, 20), (0, READ, 30)):
        assert sides.other("get", other, kind, start)[1] == first


@everywhere
def test_of_several_owners_the_first_is_told(sides: Sides) -> None:
    """Wherever in the file their locks are; who had none for a while is the last."""
    first, second = sides.one("open", sides.one_path), sides.one("open", sides.one_path)
    other = sides.other("open", sides.other_path)
    for fd, start in ((first, 50), (second, 30), (first, 40), (second, 10)):
        assert sides.one("set by description", fd, WRITE, start, 5) is None
    assert sides.other("get", other, READ)[1] == 40
    assert sides.one("set by description", first, NONE) is None
    assert sides.one("set by description", first, WRITE, 0, 5) is None
    assert sides.other("get", other, READ)[1] == 10


@everywhere
def test_locks_of_descriptions(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    second = sides.one("open", sides.one_path)
    assert sides.one("set by description", one, WRITE) is None
    assert sides.one("set by description", second, READ) == "EAGAIN"
    assert sides.one("set", one, READ) == "EAGAIN", "one's own process too"
    assert sides.other("set", other, READ) == "EAGAIN"
    assert sides.other("set by description", other, READ) == "EAGAIN"
    assert sides.one("close", second) is None
    assert sides.other("set", other, READ) == "EAGAIN", "other descriptions do not matter"
    assert sides.one("close", one) is None
    sides.gets(lambda: sides.other("set", other, READ))


def test_a_file_open_for_one_only(sides: Sides) -> None:
    one = sides.one("open", sides.one_path, os.O_RDONLY)
    other = sides.other("open", sides.other_path, os.O_WRONLY)
    assert sides.one("set", one, WRITE) == "EBADF"
    assert sides.other("set", other, READ) == "EBADF"
    assert sides.one("set", one, READ, 0, 5) is None
    assert sides.other("set", other, WRITE) == "EAGAIN"
    assert sides.other("set", other, WRITE, 5, 5) is None
    assert sides.one("set", one, READ) == "EAGAIN"


@everywhere
def test_what_is_in_the_way_is_told(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.other("get", other, WRITE) is None
    assert sides.one("set", one, WRITE, 10, 10) is None
    # On the real path nobody is told who in the tree it was.
    who = -1 if sides.kind.endswith("out") else sides.one.pid
    assert sides.one("get", one, WRITE) is None
    assert sides.other("get", other, READ) == (WRITE, 10, 10, who)
    assert sides.other("get", other, READ, 0, 10) is None
    assert sides.one("set", one, READ, 50) is None
    assert sides.other("get", other, READ, 20) is None
    assert sides.other("get", other, WRITE, 20) == (READ, 50, 0, who)


def test_any_sequence_of_locks(pair: Pair) -> None:
    """Three processes, two in the tree and one on the real path, against three in a plain
    directory: each order must have the same result."""
    chance = random.Random(20)
    paths = [top / "file" for top in (pair.mounted, pair.mounted, pair.data)]
    paths += [pair.native / "file"] * 3
    for path in (paths[0], paths[3]):
        path.write_bytes(b"content")
    with ExitStack() as stack:
        lockers = [stack.enter_context(Locker()) for _ in paths]
        open_now = [locker("open", path) for locker, path in zip(lockers, paths, strict=True)]
        for step in range(1000):
            who = chance.randrange(3)
            start, length = chance.randrange(12), chance.randrange(1, 8)
            order: tuple[object, ...] = (
                chance.choice(("set", "set", "set", "set by description")),
                chance.choice((READ, WRITE, NONE)),
                start,
                chance.choice((length, 0)) if chance.random() < 0.2 else length,
            )
            if chance.random() < 0.2:
                order = ("flock", chance.choice((SHARED, EXCLUSIVE, UNLOCK)))
            elif chance.random() < 0.2:
                order = ("get", chance.choice((READ, WRITE)), start, length)
            elif chance.random() < 0.03:
                order = ("set", NONE)
            name, *arguments = order
            assert isinstance(name, str)
            results = [
                lockers[number](name, open_now[number], *arguments) for number in (who, who + 3)
            ]
            if name == "get":  # which of several locks is told, and whose it is, may differ
                results = [result is not None for result in results]
            assert results[0] == results[1], f"step {step}, by {who}: {order}"


# -- through programs


def test_flock_the_program(sides: Sides) -> None:
    def command(path: Path, *options: str) -> int:
        return subprocess.run(["flock", *options, path, "true"], check=False).returncode

    holder = subprocess.Popen(["flock", sides.one_path, "cat"], stdin=subprocess.PIPE)
    try:
        wait_for(lambda: command(sides.other_path, "-n") == 1, "the program to take the lock")
        assert command(sides.other_path, "-n", "-s") == 1
        assert command(sides.other_path, "-w", "0.1") == 1
    finally:
        holder.communicate()
    wait_for(lambda: command(sides.other_path, "-n") == 0, "the lock to be dropped")


ADD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for _ in range(50):
    database.execute("begin immediate")
    (total,) = database.execute("select value from total").fetchone()
    database.execute("update total set value = ?", (total + 1,))
    database.execute("commit")
"""


@pytest.mark.parametrize("where", ["tree", "both"])
def test_sqlite(mount: MountFactory, where: str) -> None:
    """Beside locks it needs to see at once which files there are, and how large: no caching."""
    tree = mount(cache="never")
    (tree.mnt / "vol").mkdir()
    path = tree.mnt / "vol/database"
    other = path if where == "tree" else tree.data("vol") / "database"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("create table total (value integer)")
        database.execute("insert into total values (0)")
        database.execute("begin exclusive")
        with (
            closing(sqlite3.connect(other, timeout=0.1)) as second,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            second.execute("select value from total").fetchone()
        database.execute("commit")
    adding = [
        subprocess.Popen(["python3", "-c", ADD, place], stderr=subprocess.PIPE)
        for place in (path, other, path, other)
    ]
    assert [process.communicate()[1].decode() for process in adding] == [""] * 4
    with closing(sqlite3.connect(other)) as database:
        assert database.execute("select value from total").fetchone() == (200,)


# -- by others, what it costs, and the end


def test_a_daemon_that_is_not_root(mount: MountFactory) -> None:
    tree = mount(user=USER)
    run_as(lambda: (tree.mnt / "vol").mkdir(), USER)
    path, data = tree.mnt / "vol/file", tree.data("vol") / "file"
    run_as(path.touch, USER)
    with Locker(USER) as one, Locker(USER) as other, Locker(USER) as outside:
        fd, other_fd, outside_fd = one("open", path), other("open", path), outside("open", data)
        for what in ("record", "flock"):
            take(one, what, fd)
            begin_to_wait(other, what, other_fd)
            begin_to_wait(outside, what, outside_fd)
            take(one, what, fd, NONE)
            wait_for(lambda: not (other.busy and outside.busy), "one of them to get the lock")
            first, second = (outside, other) if other.busy else (other, outside)
            assert first.result() is None
            assert second.busy
            take(first, what, outside_fd if first is outside else other_fd, NONE)
            assert second.result() is None
            take(second, what, outside_fd if second is outside else other_fd, NONE)
        take(one, "record", fd)
        child, _ = one("fork", fd)
        one.end()
        try:
            wait_for(lambda: outside("set", outside_fd, WRITE) is None, "the process's lock to go")
        finally:
            os.kill(child, signal.SIGKILL)


def test_files_without_locks_are_closed_without_a_request(tree: Mounted, volume: Path) -> None:
    path = volume / "file"
    path.touch()

    def flushes() -> int:
        requests = tree.statistics()["requests"]
        assert isinstance(requests, dict)
        return int(requests.get("FLUSH", 0))

    for _ in range(3):
        path.open("rb").close()
    assert flushes() == 0
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    assert flushes() == 0
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
    assert flushes() == 0, "it was opened before"
    path.open("rb").close()
    assert flushes() == 1
    (volume / "other").write_bytes(b"x")
    assert flushes() == 1


def test_a_daemon_that_ends_lets_those_go_who_wait(mount: MountFactory) -> None:
    tree = mount()
    (tree.mnt / "vol").mkdir()
    path = tree.mnt / "vol/file"
    path.touch()
    with Locker() as one, Locker() as other:
        assert one("set", one("open", path), WRITE) is None
        begin_to_wait(other, "record", other("open", path))
        tree.process.send_signal(signal.SIGTERM)
        assert tree.process.wait(20) == 0
        assert other.result() in ("ECONNABORTED", "ENOTCONN", "EINTR", "EIO", "ENODEV")
    outside = os.open(tree.data("vol") / "file", os.O_RDWR)
    try:
        fcntl.lockf(outside, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(outside)
