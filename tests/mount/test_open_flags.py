"""Flags of open files, given with open(2) or later, and what is truncated while it is open."""

from __future__ import annotations

import fcntl
import mmap
import os
from functools import partial
from pathlib import Path

import pytest

from tests.children import Child
from tests.conftest import Mounted
from tests.mount.comparing import Pair, outcome
from tests.mount.open_files import ACCESSES, use
from tests.mount.test_reading_and_writing import content

pytestmark = pytest.mark.usefixtures("nothing_is_kept")


@pytest.mark.parametrize("block", [512, 4096])
def test_direct_reads_and_writes_in_whole_blocks(pair: Pair, block: int) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        buffer = mmap.mmap(-1, 16 * block)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
        buffered = os.open(path, os.O_RDWR)
        told: list[object] = []
        buffer[:] = content(len(buffer))
        told += [os.pwritev(fd, [buffer], 0), os.pwritev(fd, [buffer], 3 * block)]
        told += [os.fstat(fd).st_size, os.pread(buffered, 1 << 20, 0)]
        os.pwrite(buffered, b"buffered", block + 7)
        told += [os.preadv(fd, [buffer], block), buffer[:]]
        told += [os.preadv(fd, [buffer], 18 * block), buffer[:block]]
        with mmap.mmap(buffered, 0) as mapped:
            mapped[2 * block : 2 * block + 6] = b"mapped"
            told += [os.preadv(fd, [buffer], block), buffer[:]]
            buffer[:] = bytes(len(buffer))
            told += [os.pwritev(fd, [buffer], block), mapped[:]]
        os.ftruncate(fd, 5)
        told += [os.preadv(fd, [buffer], 0), buffer[:5]]
        os.close(fd)
        os.close(buffered)
        return told

    pair.same(operation)


def test_flags_changed_by_fcntl(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(5000))
        fd = os.open(path, os.O_RDWR)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
        told: list[object] = [os.write(fd, b"one"), os.pwrite(fd, b"two", 0)]
        told += [path.read_bytes(), fcntl.fcntl(fd, fcntl.F_GETFL) ^ flags]
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        told += [os.pwrite(fd, b"three", 0), path.read_bytes()]
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        buffer = mmap.mmap(-1, 4096)
        told += [os.preadv(fd, [buffer], 0), buffer[:]]
        buffer[:5] = b"four!"
        told += [os.pwritev(fd, [buffer], 0), path.read_bytes()]
        os.close(fd)
        return told

    pair.same(operation)


def test_flags_of_a_single_write(pair: Pair) -> None:
    """pwritev2(2)."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(5000))
        fd = os.open(path, os.O_RDWR)
        told: list[object] = [os.pwritev(fd, [b"appended"], 3, os.RWF_APPEND)]
        told += [os.pwritev(fd, [b"synced"], 3, flag) for flag in (os.RWF_DSYNC, os.RWF_SYNC)]
        told += [os.fstat(fd).st_size, path.read_bytes()]
        os.close(fd)
        return told

    pair.same(operation)


RECORD = 513


def append(path: Path, letter: bytes, rounds: int = 300) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for _ in range(rounds):
        assert os.write(fd, letter * RECORD) == RECORD
    os.close(fd)


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(False, id="in the tree"),
        # Without the tap a record that crosses a page comes in two, and another in between.
        pytest.param(True, id="one behind it", marks=pytest.mark.needs_tap),
    ],
)
def test_two_processes_append_whole_records(pair: Pair, behind: bool) -> None:
    """In the tree, and one in the tree and one on the real data path: none is lost."""
    (pair.data / "log").touch()
    there = (pair.data if behind else pair.mounted) / "log"
    with (
        Child(partial(append, pair.mounted / "log", b"a")) as one,
        Child(partial(append, there, b"b")) as two,
    ):
        one.result()
        two.result()
    written = (pair.data / "log").read_bytes()
    records = [written[start : start + RECORD] for start in range(0, len(written), RECORD)]
    assert sorted(records) == [b"a" * RECORD] * 300 + [b"b" * RECORD] * 300


@pytest.mark.needs_tap
def test_a_record_across_pages_is_appended_by_one_request(pair: Pair, shared: Mounted) -> None:
    """Two would let a record come between that another process appends on the real data path."""
    path = pair.mounted / "log"
    path.touch()
    before = shared.statistics()["requests"].get("WRITE", 0)
    append(path, b"a", rounds=100)
    assert shared.statistics()["requests"].get("WRITE", 0) - before <= 100


def test_a_file_is_truncated_renamed_and_unlinked_while_open(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path, elsewhere = top / "f", top / "d" / "g"
        path.write_bytes(content(300_000))
        (top / "d").mkdir()
        reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
        told: list[object] = [os.lseek(reader, 200_000, os.SEEK_SET)]
        os.truncate(path, 100_000)
        told += [os.read(reader, 10), os.pread(reader, 10, 99_995), os.fstat(reader).st_size]
        told += [os.pwrite(writer, b"beyond", 150_000), os.pread(reader, 1 << 20, 99_990)]
        os.ftruncate(writer, 50)
        told += [os.pread(reader, 100, 0), path.stat().st_size, path.stat().st_blocks]
        path.rename(elsewhere)
        told += [os.pwrite(writer, b"renamed", 60), elsewhere.read_bytes()]
        again = os.open(elsewhere, os.O_RDWR)
        elsewhere.unlink()
        told += [os.pwrite(again, b"unlinked", 0), os.pread(reader, 100, 0)]
        told += [os.fstat(reader).st_nlink, outcome(elsewhere.stat)]
        os.ftruncate(again, 3)
        told += [os.pread(reader, 100, 0), os.fstat(writer).st_size]
        for fd in (reader, writer, again):
            os.fsync(fd)
            os.close(fd)
        return told

    pair.same(operation)


def test_truncation_by_opening_while_others_have_it_open(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        told: list[object] = []
        for access in ACCESSES.values():
            path.write_bytes(content(20_000))
            held = os.open(path, access)
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
            told += [os.fstat(held).st_size, *use(held, b"1"), *use(fd, b"2")]
            created = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            told += [os.fstat(held).st_size, *use(created, b"3"), *use(held, b"4")]
            for each in (held, fd, created):
                os.close(each)
        return told

    pair.same(operation)
