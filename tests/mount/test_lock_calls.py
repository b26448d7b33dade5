"""Locks that programs take on whole files and on ranges, and their waiting."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from pathlib import Path

import pytest

from tests.children import Child, run_as
from tests.mount.comparing import Pair, outcome

pytestmark = pytest.mark.no_data


def try_lock(path: Path, how: str) -> object:
    """Try to take a lock without waiting, in a process of its own."""

    def attempt() -> object:
        with path.open("r+b") as file:
            if how == "flock":
                return outcome(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if how == "shared flock":
                return outcome(fcntl.flock, file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            start = 50 if how == "other range" else 0
            kind = fcntl.LOCK_SH if how == "read" else fcntl.LOCK_EX
            return outcome(fcntl.lockf, file, kind | fcntl.LOCK_NB, 10, start)

    return run_as(attempt, 0)


def test_locks_between_processes(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(b"content")
        told = []
        ways = ("flock", "shared flock", "write", "read", "other range")
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            told += [try_lock(path, how) for how in ways]
            fcntl.flock(file, fcntl.LOCK_SH)
            told += [try_lock(path, how) for how in ways]
            fcntl.flock(file, fcntl.LOCK_UN)
            fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
            told += [try_lock(path, how) for how in ways]
            fcntl.lockf(file, fcntl.LOCK_SH, 10, 0)
            told += [try_lock(path, how) for how in ways]
            with path.open("rb"):
                pass  # closing any descriptor drops the record locks of the process
            told += [try_lock(path, how) for how in ways]
        return told

    pair.same(operation)


def test_a_waiting_locker_is_woken(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.touch()
    ready, told = os.pipe()

    def wait() -> str:
        with path.open("r+b") as file:
            os.write(told, b"x")
            fcntl.lockf(file, fcntl.LOCK_EX)
        return "woken"

    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        with Child(wait) as child:
            os.read(ready, 1)
            fcntl.lockf(file, fcntl.LOCK_UN)
            assert child.result() == "woken"
    os.close(ready)
    os.close(told)


def test_the_lock_of_a_killed_process_goes(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.touch()
    ready, told = os.pipe()

    def hold() -> None:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(told, b"x")
            signal.pause()

    with Child(hold):
        os.read(ready, 1)
        assert try_lock(path, "write") in ("EAGAIN", "EACCES")
    assert try_lock(path, "write") is None
    os.close(ready)
    os.close(told)


def test_open_file_description_locks(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        first = os.open(top / "f", os.O_CREAT | os.O_RDWR, 0o644)
        second = os.open(top / "f", os.O_RDWR)
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
        told: list[object] = [
            outcome(fcntl.fcntl, first, fcntl.F_OFD_SETLK, lock) == lock,
            outcome(fcntl.fcntl, second, fcntl.F_OFD_SETLK, lock),
        ]
        os.close(first)
        told.append(outcome(fcntl.fcntl, second, fcntl.F_OFD_SETLK, lock) == lock)
        os.close(second)
        return told

    assert pair.same(operation) == [True, "EAGAIN", True]
