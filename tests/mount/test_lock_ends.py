"""When locks end: as files are closed, and as processes exit, are killed or have children."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.children import Child
from tests.conftest import wait_for
from tests.mount.locker import Locker
from tests.mount.locking import EXCLUSIVE, NONE, READ, SHARED, WRITE, Sides, everywhere
from volfs.linux import syscalls

pytestmark = [pytest.mark.needs_tap, pytest.mark.no_data]

CLONE_NEWPID = 0x20000000


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


@everywhere
def test_a_flock_ends_with_the_open_that_made_the_file(sides: Sides) -> None:
    """Others have the file open and go on, so that the kernel keeps what it reads it by."""
    path, other_path = sides.one_path.with_name("new"), sides.other_path.with_name("new")
    one = sides.one("open", path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    assert isinstance(sides.one("open", path), int)
    other = sides.other("open", other_path)
    assert sides.one("flock", one, EXCLUSIVE) is None
    assert sides.other("flock", other, SHARED) == "EAGAIN"
    assert sides.one("close", one) is None
    sides.gets(lambda: sides.other("flock", other, SHARED))


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


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
