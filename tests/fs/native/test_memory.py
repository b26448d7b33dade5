"""That nothing is leaked, and that threads may ask at once."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.native.records import BASIC, ENTRY, FAR, FIELDS, Opened, listed
from volfs.fs.native import _records

pytestmark = pytest.mark.any_level


def test_nothing_is_leaked(zoo: Path, opened: Opened) -> None:
    fd, file = opened(zoo), opened(zoo / "file")
    name, absent, entry = b"file", b"absent", bytes(ENTRY.size)

    def everything() -> None:
        status = _records.fstat(fd)
        status.attr_out(FAR, 0)
        status.entry_out(FAR, FAR, FAR, 0, 0)
        for field in FIELDS:
            getattr(status, field)
        _records.fstatat(fd, name)
        found = _records.open_path(fd, name)
        assert found is not None
        os.close(found[0])
        assert _records.open_path(fd, absent) is None
        _records.statx_out(fd, 0, BASIC, FAR, 0)
        _records.list_bare(fd, 0, 4096, True, 0, FAR, FAR)
        _records.read_entries(fd, 0, 4)
        _records.direntplus(entry, FAR, FAR, 4, name)
        failures: list[Callable[[], object]] = [
            lambda: _records.fstatat(fd, absent),
            lambda: _records.list_bare(file, 0, 4096, True, 0, 1, 1),
            lambda: _records.list_bare(fd, 0, 8, True, 0, 1, 1),
            lambda: _records.read_entries(file, 0, 4),
        ]
        for call in failures:
            failing_quietly(call)

    def counts() -> tuple[int, ...]:
        gc.collect()  # else what earlier tests left may go in between
        shared = (name, absent, entry, _records.Status, None, b"")
        return (sys.getallocatedblocks(), *map(sys.getrefcount, shared))

    for _ in range(50):
        everything()
    before = counts()
    for _ in range(2000):
        everything()
    for was, now in zip(before, counts(), strict=True):
        assert abs(now - was) < 200  # less than one in ten calls


def failing_quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except OSError:
        return
    raise AssertionError("no error")


def test_threads_at_once(zoo: Path) -> None:
    wrong: list[object] = []
    expected = sorted([".", "..", *os.listdir(zoo)])

    def work() -> None:
        try:
            fd = os.open(zoo, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for _ in range(100):
                    found = _records.open_path(fd, b"sparse")
                    assert found is not None
                    os.close(found[0])
                    assert found[1].st_size == 5 << 32
                    names = [os.fsdecode(entry.name) for entry in listed(fd, 512, plus=True)]
                    assert sorted(names) == expected
            finally:
                os.close(fd)
        except BaseException as error:  # noqa: BLE001 - told in the main thread
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
