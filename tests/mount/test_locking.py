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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.children import USER, Child, run_as
from tests.conftest import Mounted, MountFactory, mounting, open_workspace, wait_for
from tests.mount.comparing import Pair
from tests.mount.locker import Locker
from volfs import syscalls

pytestmark = pytest.mark.needs_tap

READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
CLONE_NEWPID = 0x20000000
SHARED, EXCLUSIVE, UNLOCK = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN


@dataclass
class Sides:
    """One file, as two processes reach it."""

    one: Locker
    other: Locker
    one_path: Path
    other_path: Path
    kind: str

    def gets(self, attempt: Callable[[], object]) -> None:
        """What was dropped by closing can be had: at once, or from outside a moment later."""
        if self.kind in ("native", "tree", "in"):
            assert attempt() is None
        else:
            wait_for(lambda: attempt() is None, "the lock to be dropped")


@pytest.fixture(scope="module")
def nested(shared: Mounted) -> Iterator[Mounted]:
    """A tree whose scope lies in another, and so is taken for a network filesystem."""
    (shared.mnt / "below").mkdir()
    scope = shared.mnt / "below/scope"
    scope.mkdir()
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(scope=scope, no_passthrough=True)


KINDS = ("native", "tree", "out", "in")
"""Who is where: both in a plain directory, both in the tree, one in the tree and the other on the
real path, and the reverse."""

everywhere = pytest.mark.parametrize("sides", [*KINDS, "nested", "nested-out"], indirect=True)
"""Also in the tree that has its scope in another."""


@pytest.fixture(params=KINDS)
def sides(request: pytest.FixtureRequest, pair: Pair) -> Iterator[Sides]:
    kind = request.param
    if kind in KINDS:
        tops = {
            "native": (pair.native, pair.native),
            "tree": (pair.mounted, pair.mounted),
            "out": (pair.mounted, pair.data),
            "in": (pair.data, pair.mounted),
        }[kind]
    else:
        tree: Mounted = request.getfixturevalue("nested")
        below: Mounted = request.getfixturevalue("shared")
        volume = pair.native.name
        (tree.mnt / volume).mkdir()
        data = below.data("below") / tree.data(volume).relative_to(below.mnt / "below")
        tops = (tree.mnt / volume, data if kind == "nested-out" else tree.mnt / volume)
    (tops[0] / "file").write_bytes(b"content" * 10)
    with Locker() as one, Locker() as other:
        yield Sides(one, other, tops[0] / "file", tops[1] / "file", kind)


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


# -- when locks end


@everywhere
@pytest.mark.parametrize("how", ["close", "exit", "kill"])
@pytest.mark.parametrize("what", ["record", "record again", "description", "flock"])
def test_locks_end_with(sides: Sides, how: str, what: str) -> None:
    """``again``: the file was locked before it was opened."""
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    name, kind = "set", WRITE
    if what == "record again":
        assert sides.one("set", one, WRITE) is None
        assert sides.one("close", one) is None
        one = sides.one("open", sides.one_path)
    elif what == "description":
        name, kind = "set by description", WRITE
    elif what == "flock":
        name, kind = "flock", EXCLUSIVE
    assert sides.one(name, one, kind) is None
    assert sides.other(name, other, kind) == "EAGAIN"
    if how == "close":
        assert sides.one("close", one) is None
    elif how == "exit":
        sides.one.exit()
    else:
        sides.one.end()
    sides.gets(lambda: sides.other(name, other, kind))


def test_a_child_is_another_owner(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("set", one, WRITE) is None
    assert sides.one("flock", one, EXCLUSIVE) is None
    child, got = sides.one("fork", one)
    try:
        assert got == "EAGAIN", "record locks are not inherited"
    finally:
        os.kill(child, signal.SIGKILL)
    wait_for(lambda: is_gone(child), "the child to end")
    assert sides.other("set", other, WRITE) == "EAGAIN", "the child had no locks to lose"
    assert sides.other("flock", other, EXCLUSIVE) == "EAGAIN"


@everywhere
@pytest.mark.parametrize("how", ["exit", "kill"])
@pytest.mark.parametrize("what", ["record", "record again"])
def test_a_child_does_not_keep_the_record_locks_of_its_parent(
    sides: Sides, how: str, what: str
) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    if what == "record again":
        assert sides.one("set", one, WRITE) is None
        assert sides.one("close", one) is None
        one = sides.one("open", sides.one_path)
    assert sides.one("set", one, WRITE) is None
    child, _ = sides.one("fork", one)
    try:
        if how == "exit":
            sides.one.exit()
        else:
            sides.one.end()
        wait_for(lambda: sides.other("set", other, WRITE) is None, "the lock to be dropped")
        assert not is_gone(child)
    finally:
        os.kill(child, signal.SIGKILL)


@everywhere
@pytest.mark.parametrize("what", ["description", "flock"])
def test_a_child_keeps_the_other_locks(sides: Sides, what: str) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    name, kind = ("flock", EXCLUSIVE) if what == "flock" else ("set by description", WRITE)
    assert sides.one(name, one, kind) is None
    child, _ = sides.one("fork", one)
    try:
        sides.one.exit()
        # Nothing is to happen; that takes its time.
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(["sleep", "100"], timeout=0.2, check=False)
        assert sides.other(name, other, kind) == "EAGAIN"
    finally:
        os.kill(child, signal.SIGKILL)
    wait_for(lambda: sides.other(name, other, kind) is None, "the lock to be dropped")


@pytest.mark.parametrize("sides", ["tree", "out"], indirect=True)
def test_a_process_in_a_pid_namespace_ends(sides: Sides) -> None:
    def in_it() -> None:
        syscalls.unshare(CLONE_NEWPID)
        with Locker(), Locker() as one:  # without the first there are no more in the namespace
            fd = one("open", sides.one_path)
            assert one("set", fd, WRITE) is None
            assert sides.other("get", other, READ)[0] == WRITE
            one("fork", fd)
            one.end()
            wait_for(lambda: sides.other("set", other, WRITE) is None, "the lock to be dropped")

    other = sides.other("open", sides.other_path)
    with Child(in_it) as child:
        child.result()


def test_another_program_keeps_them(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("set", one, WRITE) is None
    assert sides.one("flock", one, EXCLUSIVE) is None
    sides.one.begin("exec", one)
    comm = Path(f"/proc/{sides.one.pid}/comm")
    wait_for(lambda: comm.read_text() == "sleep\n", "the other program")
    assert sides.other("set", other, WRITE) == "EAGAIN"
    assert sides.other("flock", other, EXCLUSIVE) == "EAGAIN"
    sides.one.end()
    wait_for(lambda: sides.other("set", other, WRITE) is None, "the lock to be dropped")
    wait_for(lambda: sides.other("flock", other, EXCLUSIVE) is None, "the lock to be dropped")


def test_threads_have_their_locks_in_common(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("in thread", "set", one, WRITE) is None
    assert sides.other("set", other, WRITE) == "EAGAIN", "the thread's end changes nothing"
    assert sides.one("set", one, WRITE) is None
    second = sides.one("in thread", "open", sides.one_path)
    assert sides.one("set", second, WRITE) is None
    assert sides.one("in thread", "set", one, NONE) is None
    assert sides.other("set", other, WRITE) is None


def test_closing_any_descriptor_of_the_file_drops_record_locks(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("set", one, WRITE) is None
    second = sides.one("open", sides.one_path, os.O_RDONLY)
    assert sides.one("close", second) is None
    assert sides.other("set", other, WRITE) is None
    assert sides.other("set", other, NONE) is None
    # A file that was locked before it was opened is told of each close, also of duplicates.
    second = sides.one("open", sides.one_path)
    assert sides.one("set", second, WRITE) is None
    assert sides.one("close", sides.one("dup", second)) is None
    assert sides.other("set", other, WRITE) is None


def test_the_last_close_drops_a_flock(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("flock", one, EXCLUSIVE) is None
    duplicate = sides.one("dup", one)
    assert sides.one("close", one) is None
    assert sides.other("flock", other, SHARED) == "EAGAIN"
    assert sides.one("close", duplicate) is None
    sides.gets(lambda: sides.other("flock", other, SHARED))


def test_locks_of_a_removed_file(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    sides.one_path.unlink()
    assert sides.one("set", one, WRITE) is None
    assert sides.other("set", other, WRITE) == "EAGAIN"
    assert sides.one("flock", one, EXCLUSIVE) is None
    assert sides.other("flock", other, EXCLUSIVE) == "EAGAIN"


# -- waiting


def begin_to_wait(locker: Locker, what: str, fd: int) -> None:
    """Have it wait for an exclusive lock; returns when it does."""
    if what == "flock":
        locker.begin("flock", fd, EXCLUSIVE, True)
    else:
        locker.begin("wait", fd, WRITE)
    wait_for(lambda: locker.waits_for_a_lock, "the process to wait for the lock")


def take(locker: Locker, what: str, fd: int, kind: int = WRITE) -> None:
    if what == "flock":
        flocks = {WRITE: EXCLUSIVE, READ: SHARED, NONE: UNLOCK}
        assert locker("flock", fd, flocks[kind]) is None
    else:
        assert locker("set", fd, kind) is None


@everywhere
@pytest.mark.parametrize("what", ["record", "flock"])
@pytest.mark.parametrize("how", ["unlock", "close", "exit", "kill"])
def test_who_waits_gets_it_when_it_is_dropped(sides: Sides, what: str, how: str) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    take(sides.one, what, one)
    begin_to_wait(sides.other, what, other)
    assert sides.other.busy
    if how == "unlock":
        take(sides.one, what, one, NONE)
    elif how == "close":
        assert sides.one("close", one) is None
    elif how == "exit":
        sides.one.exit()
    else:
        sides.one.end()
    assert sides.other.result() is None


@everywhere
@pytest.mark.parametrize("what", ["record", "flock"])
def test_a_signal_ends_the_wait(sides: Sides, shared: Mounted, what: str) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    take(sides.one, what, one)
    for _ in range(3):
        begin_to_wait(sides.other, what, other)
        sides.other.interrupt()
        assert sides.other.result() == "EINTR"
    take(sides.one, what, one, NONE)
    with Locker() as third:
        take(third, what, third("open", sides.other_path))
    assert_nobody_waits(shared)


@everywhere
@pytest.mark.parametrize("what", ["record", "flock"])
def test_who_is_killed_while_it_waits_leaves_nothing(
    sides: Sides, shared: Mounted, what: str
) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    take(sides.one, what, one)
    begin_to_wait(sides.other, what, other)
    sides.other.end()
    take(sides.one, what, one, NONE)
    with Locker() as third:
        take(third, what, third("open", sides.other_path))
    assert_nobody_waits(shared)


def test_the_outside_can_have_it_while_another_waits_for_more(sides: Sides) -> None:
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("set", one, READ, 0, 10) is None
    begin_to_wait(sides.other, "record", other)
    with Locker() as third:
        fd = third("open", sides.other_path)
        assert third("set", fd, READ) is None
        assert sides.one("set", one, NONE) is None
        assert sides.other.busy
        assert third("set", fd, NONE) is None
        assert sides.other.result() is None


@pytest.mark.parametrize("sides", ["native", "tree"], indirect=True)
def test_a_deadlock_is_refused(sides: Sides) -> None:
    """With waits on the real path it is not seen: a known difference."""
    one, other = sides.one("open", sides.one_path), sides.other("open", sides.other_path)
    assert sides.one("set", one, WRITE, 0, 10) is None
    assert sides.other("set", other, WRITE, 10, 10) is None
    sides.other.begin("wait", other, READ, 0, 10)
    wait_for(lambda: sides.other.waits_for_a_lock, "the process to wait for the lock")
    assert sides.one("wait", one, READ, 10, 10) == "EDEADLK"
    assert sides.one("set", one, NONE) is None
    assert sides.other.result() is None


@everywhere
def test_many_wait(sides: Sides, pair: Pair) -> None:
    """Each of them adds one to a number; who had no lock meanwhile would lose another's."""
    counter = pair.native / "counter"
    counter.write_text("0")

    def add(path: Path) -> Callable[[], None]:
        def call() -> None:
            fd = os.open(path, os.O_RDWR)
            fcntl.lockf(fd, fcntl.LOCK_EX)
            counter.write_text(str(int(counter.read_text()) + 1))
            fcntl.lockf(fd, fcntl.LOCK_UN)

        return call

    one = sides.one("open", sides.one_path)
    assert sides.one("set", one, WRITE) is None
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child(add(path)))
            for _ in range(100)
            for path in (sides.one_path, sides.other_path)
        ]
        assert sides.one("set", one, NONE) is None
        for child in children:
            child.result()
    assert counter.read_text() == "200"


def assert_nobody_waits(shared: Mounted) -> None:
    # One is the request with which we ask.
    wait_for(lambda: shared.statistics()["waiting"] <= 1, "the waits to be over")


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


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
