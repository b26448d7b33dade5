"""Waiting for locks that another process holds, in the tree or on the real data path."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import Mounted, wait_for
from tests.daemons import DEADLINE
from tests.mount.comparing import Pair
from tests.mount.locker import Locker
from tests.mount.locking import NONE, READ, WRITE, Sides, begin_to_wait, everywhere, take

pytestmark = [pytest.mark.needs_tap, pytest.mark.no_data]

ADDING = """
import fcntl, os, sys

counter, *paths, times = sys.argv[1:]
children = []
for path in paths * int(times):
    child = os.fork()
    if child == 0:
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        number = int(open(counter).read())
        open(counter, "w").write(str(number + 1))
        fcntl.lockf(fd, fcntl.LOCK_UN)
        os._exit(0)
    children.append(child)
print("all are there", flush=True)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""
"""A program of many processes: forking this one so often would take long."""


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
    one = sides.one("open", sides.one_path)
    assert sides.one("set", one, WRITE) is None
    with subprocess.Popen(
        [sys.executable, "-ISc", ADDING, counter, sides.one_path, sides.other_path, "100"],
        stdout=subprocess.PIPE,
    ) as adding:
        assert adding.stdout
        assert adding.stdout.readline() == b"all are there\n"
        assert counter.read_text() == "0"
        assert sides.one("set", one, NONE) is None
        assert adding.wait(DEADLINE) == 0
    assert counter.read_text() == "200"


def assert_nobody_waits(shared: Mounted) -> None:
    # One is the request with which we ask.
    wait_for(lambda: shared.statistics()["waiting"] <= 1, "the waits to be over")
