"""The tap alone: what it does with the answers of callbacks, on a mount of a small filesystem.

It is attached for the whole life of a process, so each test has a process of its own (see
tests.fs.wire.tapped).
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from tests.children import Child, needs_root
from tests.conftest import wait_for
from tests.daemons import DEADLINE
from tests.fs.wire.tapped import (
    FILE,
    GETATTR,
    HANDLED,
    INIT,
    MNT_FORCE,
    RMDIR,
    TAPPED,
    UNLINK,
    WRITE,
)
from volfs.fs.wire import _tap
from volfs.linux import syscalls

pytestmark = needs_root

T = TypeVar("T")


class Daemon:
    """A process that serves ``tests.fs.wire.tapped`` at ``path``, and what it tells."""

    def __init__(self, path: Path, scenario: str, way: str, first: str) -> None:
        self.path = path
        self.scenario = scenario
        self.file = path / "f"
        self._clients = ThreadPoolExecutor()
        program = f"import {first}; from tests.fs.wire import tapped; tapped.main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, scenario, path, way],
            stdout=subprocess.PIPE,
        )

    def next(self) -> list[object]:
        """What it tells next."""
        assert self.process.stdout is not None
        line = b""
        end = time.monotonic() + DEADLINE
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], end - time.monotonic())
            assert ready, f"the daemon told nothing in {DEADLINE} s"
            byte = os.read(self.process.stdout.fileno(), 1)
            assert byte, "the daemon has ended"
            line += byte
        told = json.loads(line)
        assert isinstance(told, list)
        return told

    def client(self, call: Callable[[], T]) -> Future[T]:
        """Begin a call that may have to wait for its answer."""
        return self._clients.submit(call)

    def expect(self, what: str, *details: object) -> None:
        assert self.next() == [what, *details]

    def wait_until_mounted(self) -> None:
        if self.scenario == "refused":
            self.expect("refused")
        self.expect("descriptor", -1)
        self.expect("mounted", "/dev/fuse", False)

    def sleeps(self) -> bool:
        status = Path(f"/proc/{self.process.pid}/stat").read_text()
        return status.rpartition(")")[2].split()[0] == "S"

    def end(self) -> dict[int, int]:
        """Unmount, see the daemon end in good order, and return its counts by opcode."""
        syscalls.umount2(os.fsencode(self.path))
        what, counts = self.next()
        assert what == "counts"
        self.expect("descriptor", -1)
        self.expect("reply", "ENOTCONN")
        self.expect("end")
        assert self.process.wait(DEADLINE) == 0
        assert isinstance(counts, dict)
        return {int(opcode): count for opcode, count in counts.items()}

    def clean_up(self) -> None:
        with suppress(OSError):
            syscalls.umount2(os.fsencode(self.path), MNT_FORCE | syscalls.MNT_DETACH)
        self.process.kill()
        self.process.wait()
        self._clients.shutdown()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Start(Protocol):
    def __call__(self, scenario: str, *, way: str = ..., first: str = ...) -> Daemon: ...


@pytest.fixture
def start(workspace: Path) -> Iterator[Start]:
    """A factory of daemons, mounted when it returns."""
    daemons: list[Daemon] = []

    def start_one(scenario: str, *, way: str = "libfuse", first: str = "pyfuse3") -> Daemon:
        path = workspace / f"mnt{len(daemons)}"
        path.mkdir()
        daemon = Daemon(path, scenario, way, first)
        daemons.append(daemon)
        daemon.wait_until_mounted()
        return daemon

    try:
        yield start_one
    finally:
        for daemon in daemons:
            daemon.clean_up()


def errno_of(call: Callable[[], object]) -> int:
    with pytest.raises(OSError) as raised:
        call()
    assert raised.value.errno is not None
    return raised.value.errno


# -- attaching


@pytest.mark.parametrize("way", ["libfuse", "descriptor"])
@pytest.mark.parametrize("first", ["pyfuse3", "volfs.fs.wire._tap"])
def test_whatever_is_imported_first_and_however_it_is_mounted(
    start: Start, first: str, way: str
) -> None:
    daemon = start("at_once", first=first, way=way)
    assert daemon.file.stat().st_size == TAPPED
    daemon.expect("asked", os.getuid(), os.getgid(), os.getpid(), 16)
    daemon.end()


def test_a_mount_that_fails_is_no_hindrance_to_the_next(start: Start) -> None:
    daemon = start("refused")
    assert daemon.file.stat().st_size == TAPPED
    daemon.expect("asked", os.getuid(), os.getgid(), os.getpid(), 16)
    daemon.end()


def test_a_library_that_is_not_loaded() -> None:
    with pytest.raises(RuntimeError, match="/no/such/library is not loaded"):
        _tap.attach("/no/such/library")


def test_a_library_without_libfuse() -> None:
    with pytest.raises(RuntimeError, match="depends on no libfuse"):
        _tap.attach(_tap.__file__)


def test_without_callbacks_all_is_as_without_the_tap(start: Start) -> None:
    daemon = start("untouched")
    assert daemon.file.stat().st_size == HANDLED
    assert errno_of((daemon.path / "new").stat) == errno.ENOENT
    daemon.end()


# -- requests


def test_what_is_not_taken_goes_to_the_handler(start: Start) -> None:
    daemon = start("at_once")
    assert daemon.path.stat().st_size == HANDLED
    assert daemon.file.stat().st_size == TAPPED
    daemon.expect("asked", os.getuid(), os.getgid(), os.getpid(), 16)
    daemon.end()


def test_any_buffer_answers(start: Start) -> None:
    daemon = start("buffers")
    assert [daemon.file.stat().st_size for _ in range(2)] == [TAPPED, TAPPED]
    daemon.end()


def test_errnos_and_empty_answers(start: Start) -> None:
    daemon = start("errors")
    assert errno_of(daemon.file.unlink) == errno.EDQUOT
    (daemon.path / "directory").rmdir()
    daemon.end()


def test_what_fails_is_answered_with_eio_and_told(start: Start) -> None:
    daemon = start("faults")
    errors = ("LookupError", "TypeError", "ValueError", "ValueError", "ValueError", "OSError")
    for error in errors:
        assert errno_of(daemon.file.stat) == errno.EIO
        daemon.expect("unraisable", error)
    assert daemon.file.stat().st_size == HANDLED
    daemon.end()


def test_answers_that_come_later_from_a_thread(start: Start) -> None:
    daemon = start("later")
    answered = daemon.client(daemon.file.stat)
    daemon.expect("asked")
    refused = daemon.client(daemon.file.stat)
    daemon.expect("asked")
    assert not answered.done() and not refused.done()
    unlinking = daemon.client((daemon.path / "go").unlink)
    assert answered.result(DEADLINE).st_size == TAPPED
    # A request that has been answered is none any more.
    daemon.expect("again", "ENOENT")
    assert errno_of(lambda: refused.result(DEADLINE)) == errno.EDQUOT
    unlinking.exception(DEADLINE)  # it is over, so that nobody uses the mount
    daemon.end()


def test_a_client_that_is_killed_interrupts_its_request(start: Start) -> None:
    daemon = start("interrupted")
    with Child(daemon.file.stat) as client:
        daemon.expect("asked")
        os.kill(client.pid, signal.SIGKILL)
        daemon.expect("interrupted")
    daemon.end()


def test_an_answer_that_nobody_receives_is_reported(start: Start) -> None:
    daemon = start("abandoned")
    assert daemon.file.stat().st_size == TAPPED
    _, unique = daemon.next()
    daemon.expect("abandoned", GETATTR, unique, True, 104)
    (daemon.path / "directory").rmdir()
    what, opcode, _, _, length = daemon.next()
    assert (what, opcode, length) == ("abandoned", RMDIR, 0)
    daemon.end()


def test_a_reply_after_the_connection_was_aborted(start: Start) -> None:
    daemon = start("aborted")
    assert errno_of(daemon.file.stat) == errno.ECONNABORTED
    daemon.expect("reply", "ENOENT")
    assert daemon.next()[0] == "counts"
    assert daemon.process.wait(DEADLINE) == 0


def test_forgetting_gets_no_answer(start: Start) -> None:
    daemon = start("forgotten")
    daemon.file.stat()
    daemon.file.unlink()
    daemon.expect("forget", FILE, 1)
    daemon.end()


def test_extensions_are_cut_off(start: Start) -> None:
    daemon = start("extended")

    def make() -> None:
        (daemon.path / "new").mkdir()

    # The kernel sends the directory's group along if the client is in it.
    with Child(make, uid=0, groups=[4242]) as client:
        assert errno_of(client.result) == errno.EDQUOT
    daemon.expect("mkdir", "new\0")
    daemon.end()


def test_all_requests_are_counted(start: Start) -> None:
    daemon = start("errors")
    for _ in range(3):
        daemon.file.stat()
        with suppress(OSError):
            daemon.file.unlink()
    counts = daemon.end()
    assert counts[GETATTR] == 3
    assert counts[UNLINK] == 3
    assert counts[INIT] == 1


# -- replies


def test_the_init_reply_is_seen_and_replaced(start: Start) -> None:
    daemon = start("negotiated")
    what, request, reply = daemon.next()
    assert what == "init"
    assert isinstance(request, list) and isinstance(reply, list)
    assert request[0] == reply[0] == 7, "both begin with the version of the protocol"
    with daemon.file.open("r+b", buffering=0) as file:
        assert file.write(bytes(8 * 4096)) == 8 * 4096
    assert daemon.end()[WRITE] == 8


def test_a_reply_callback_that_fails_changes_nothing(start: Start) -> None:
    daemon = start("mistaken")
    assert daemon.file.stat().st_size == HANDLED
    daemon.expect("unraisable", "LookupError")
    daemon.expect("unraisable", "TypeError")
    daemon.end()


# -- the drain


def test_while_it_lingers_threads_run_and_signals_are_seen(start: Start) -> None:
    daemon = start("lingering")
    assert daemon.file.stat().st_size == TAPPED
    daemon.expect("thread")
    wait_for(daemon.sleeps, "the daemon to wait")
    daemon.process.send_signal(signal.SIGUSR1)
    daemon.expect("signal")
    assert daemon.file.stat().st_size == TAPPED
    daemon.end()


def test_the_event_loop_has_its_turn_after_so_many_requests(start: Start) -> None:
    daemon = start("turns")
    turns = []
    for _ in range(6):
        assert daemon.file.stat().st_size == TAPPED
        what, turn = daemon.next()
        assert what == "asked" and isinstance(turn, int)
        turns.append(turn)
    first, second, third = turns[::2]
    assert first < second < third
    assert turns[1::2] == [first, second, third]
    daemon.end()


def test_the_event_loop_runs_for_what_is_answered_later(start: Start) -> None:
    daemon = start("started")
    assert daemon.client(daemon.file.stat).result(DEADLINE).st_size == TAPPED
    daemon.end()


def test_the_event_loop_runs_when_no_request_comes(start: Start) -> None:
    daemon = start("idle")
    assert daemon.file.stat().st_size == TAPPED
    daemon.expect("run")
    daemon.end()


def test_what_goes_on_to_the_handler_is_handled_between_two(start: Start) -> None:
    daemon = start("turns")
    for _ in range(2):
        assert daemon.file.stat().st_size == TAPPED
        assert daemon.next()[0] == "asked"
        assert daemon.path.stat().st_size == HANDLED
    daemon.end()
