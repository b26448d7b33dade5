"""LockTable on real files, asked without a mount; the outside is other descriptions of them."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from pathlib import Path

import trio

from tests.conftest import open_descriptors, wait_for
from tests.fs.locks.bench import (
    NONE,
    READ,
    WHOLE,
    WRITE,
    A,
    B,
    Bench,
    C,
    asking_process,
    end,
    flock,
    outside,
    record,
)
from volfs.fs.locks import END, Lock
from volfs.fs.locks.processes import locks_by_description

# -- record locks


async def test_owners_exclude_each_other(bench: Bench) -> None:
    handle = bench.open(bench.file())
    other = bench.open(handle.inode)
    assert await bench.lock(handle, A) is None
    assert await bench.lock(other, A) is None, "one owner, whatever the handle"
    assert await bench.lock(other, B) == "EAGAIN"
    assert await bench.lock(handle, B) == "EAGAIN"
    await bench.unlock(handle, A)
    assert await bench.lock(other, B) is None


async def test_they_hold_against_the_real_path_and_it_against_them(bench: Bench) -> None:
    handle = bench.open(bench.file())
    with outside(bench, handle.inode) as fd:
        assert await bench.lock(handle, A, Lock(10, 19, WRITE)) is None
        assert record(fd, READ, 0, 10) is None
        assert record(fd, READ, 10, 1) == "EAGAIN"
        assert record(fd, READ, 19, 1) == "EAGAIN"
        assert record(fd, WRITE, 20) is None
        assert await bench.lock(handle, A, Lock(0, 25, READ)) == "EAGAIN"
        assert await bench.lock(handle, A, Lock(0, 9, WRITE)) == "EAGAIN"
        assert await bench.lock(handle, A, Lock(0, 9, READ)) is None
        await bench.unlock(handle, A)
        assert record(fd, WRITE) is None


async def test_reading_is_shared_and_a_lock_is_changed_in_place(bench: Bench) -> None:
    handle = bench.open(bench.file())
    with outside(bench, handle.inode) as fd:
        assert await bench.lock(handle, A, Lock(0, END, READ)) is None
        assert await bench.lock(handle, B, Lock(5, 5, READ)) is None
        assert record(fd, READ) is None
        assert await bench.lock(handle, A) == "EAGAIN", "B and the outside read"
        await bench.unlock(handle, B)
        assert await bench.lock(handle, A) == "EAGAIN", "the outside reads"
        assert record(fd, NONE) is None
        assert await bench.lock(handle, A) is None
        assert record(fd, READ) == "EAGAIN"
        assert await bench.lock(handle, A, Lock(0, END, READ)) is None
        assert record(fd, READ) is None


async def test_parts_of_a_range_are_unlocked(bench: Bench) -> None:
    handle = bench.open(bench.file())
    with outside(bench, handle.inode) as fd:
        assert await bench.lock(handle, A, Lock(0, 99, WRITE)) is None
        assert await bench.lock(handle, A, Lock(40, 59, NONE)) is None
        for start in (0, 39, 60, 99):
            assert record(fd, READ, start, 1) == "EAGAIN"
            assert await bench.lock(handle, B, Lock(start, start, READ)) == "EAGAIN"
        assert record(fd, READ, 40, 20) is None
        assert await bench.lock(handle, B, Lock(40, 59, READ)) is None
        assert await bench.lock(handle, A, Lock(0, 39, NONE)) is None
        assert bench.descriptors() == 2, "one for each owner"
        assert await bench.lock(handle, A, Lock(60, 99, NONE)) is None
        assert bench.descriptors() == 1


async def test_many_adjacent_locks_are_one(bench: Bench) -> None:
    handle = bench.open(bench.file())
    for start in (0, 2, 4, 3, 1, 5):
        assert await bench.lock(handle, A, Lock(start, start, WRITE, 7)) is None
    assert await bench.table.get(handle, B, Lock(3, 3, READ)) == Lock(0, 5, WRITE, 7)


async def test_what_is_in_the_way_is_told(bench: Bench) -> None:
    handle = bench.open(bench.file())
    get = bench.table.get
    assert (await get(handle, A, WHOLE)).kind == NONE
    await bench.lock(handle, A, Lock(10, 19, WRITE, 1234))
    assert (await get(handle, A, WHOLE)).kind == NONE, "own locks are not in the way"
    assert await get(handle, B, Lock(0, END, READ)) == Lock(10, 19, WRITE, 1234)
    assert (await get(handle, B, Lock(20, END, READ))).kind == NONE
    with outside(bench, handle.inode) as fd:
        assert record(fd, READ, 100) is None
        assert await get(handle, B, Lock(20, END, WRITE)) == Lock(100, END, READ, 0)
        assert await get(handle, A, WHOLE) == Lock(100, END, READ, 0)
        assert (await get(handle, A, Lock(50, END, READ))).kind == NONE
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            own = os.open(bench.path(handle.inode), os.O_RDWR)
            fcntl.lockf(own, fcntl.LOCK_EX, 10, 30)
            os.write(writing, b"x")
            signal.pause()
        try:
            os.read(reading, 1)
            assert await get(handle, B, Lock(20, 50, READ)) == Lock(30, 39, WRITE, pid)
            assert await bench.lock(handle, B, Lock(39, 39, READ)) == "EAGAIN"
        finally:
            end(pid)
            os.close(reading)
            os.close(writing)
    assert bench.descriptors() == 1


async def test_unlocking_what_is_not_locked(bench: Bench) -> None:
    handle = bench.open(bench.file())
    await bench.unlock(handle, A)
    await bench.unlock(handle, A, flock=True)
    assert await bench.lock(handle, A, Lock(0, 1, WRITE)) is None
    await bench.unlock(handle, B)
    assert await bench.lock(handle, B) == "EAGAIN"


async def test_files_not_open_for_writing(bench: Bench) -> None:
    handle = bench.open(bench.file(), os.O_RDONLY)
    bench.refused = {os.O_RDWR: errno.EROFS}
    with outside(bench, handle.inode) as fd:
        assert await bench.lock(handle, A, Lock(0, END, READ)) is None
        assert record(fd, WRITE) == "EAGAIN"
        assert await bench.lock(handle, A) == "ENOLCK"
        assert record(fd, WRITE) == "EAGAIN", "the lock that it had is still there"
        await bench.unlock(handle, A)
        assert await bench.lock(handle, A) is None, "then through O_WRONLY"
        await bench.unlock(handle, A)
        bench.refused = {os.O_RDWR: errno.EACCES, os.O_WRONLY: errno.EACCES}
        assert await bench.lock(handle, A) == "ENOLCK"
        assert await bench.lock(handle, A, Lock(0, END, READ)) is None
        bench.refused = {os.O_RDWR: errno.EMFILE}
        await bench.unlock(handle, A)
        assert await bench.lock(handle, A) == "ENOLCK"
        bench.refused = {os.O_RDWR: errno.EIO}
        assert await bench.lock(handle, A) == "EIO"
        bench.refused = {}
        assert await bench.lock(handle, A) is None


# -- flock


async def test_flock_belongs_to_the_open_file(bench: Bench) -> None:
    first = bench.open(bench.file())
    second = bench.open(first.inode, os.O_RDONLY)
    with outside(bench, first.inode) as fd:
        assert await bench.lock(first, A, flock=True) is None
        assert await bench.lock(second, A, flock=True) == "EAGAIN"
        assert flock(fd, fcntl.LOCK_SH) == "EAGAIN"
        assert await bench.lock(first, A, Lock(0, END, READ), flock=True) is None
        assert await bench.lock(second, B, Lock(0, END, READ), flock=True) is None
        assert flock(fd, fcntl.LOCK_SH) is None
        assert await bench.lock(second, B, flock=True) == "EAGAIN"
        await bench.unlock(first, A, flock=True)
        assert flock(fd, fcntl.LOCK_EX) is None, "second lost its lock when it failed to convert it"
        assert await bench.lock(first, A, flock=True) == "EAGAIN"
        assert await bench.lock(first, A) is None, "record locks are another matter"


async def test_flock_ends_with_the_open_file(bench: Bench) -> None:
    first = bench.open(bench.file())
    second = bench.open(first.inode)
    assert await bench.lock(first, A, flock=True) is None
    await bench.flush(first, A)
    assert await bench.lock(second, B, flock=True) == "EAGAIN", "another process may have it open"
    await bench.release(first)
    assert await bench.lock(second, B, flock=True) is None


# -- closing


async def test_flush_is_wanted_from_the_first_record_lock_on(bench: Bench) -> None:
    inode = bench.file()
    handle = bench.open(inode)
    assert inode.wants_flush is bench.slow
    await bench.lock(handle, A, flock=True)
    assert inode.wants_flush is bench.slow
    await bench.lock(handle, A)
    await bench.unlock(handle, A)
    await bench.release(handle)
    assert inode.wants_flush


async def test_a_flush_drops_all_locks_of_its_owner_only(bench: Bench) -> None:
    first = bench.open(bench.file())
    second = bench.open(first.inode)
    await bench.lock(first, A, Lock(0, 9, WRITE))
    await bench.lock(second, A, Lock(10, 19, WRITE))
    await bench.lock(first, B, Lock(20, 29, WRITE))
    await bench.flush(second, C)
    assert await bench.lock(second, C, Lock(0, 9, READ)) == "EAGAIN"
    await bench.flush(second, A)
    assert await bench.lock(second, C, Lock(0, 19, READ)) is None
    assert await bench.lock(second, C, Lock(20, 29, READ)) == "EAGAIN"


async def test_a_release_drops_what_was_locked_through_it(bench: Bench) -> None:
    first = bench.open(bench.file())
    second = bench.open(first.inode)
    await bench.lock(first, A, Lock(0, 9, WRITE))
    await bench.lock(second, A, Lock(10, 19, WRITE))
    await bench.lock(second, A, Lock(5, 5, WRITE))
    await bench.release(first)
    other = bench.open(second.inode)
    for start, result in ((0, None), (4, None), (5, "EAGAIN"), (6, None), (10, "EAGAIN")):
        assert await bench.lock(other, B, Lock(start, start, READ)) == result
    await bench.release(second)
    assert await bench.lock(other, B) is None


async def test_the_end_of_the_process_drops_its_locks(local: Bench) -> None:
    handle = local.open(local.file())
    with asking_process(local.workspace / "other", fcntl.F_SETLKW) as pid:
        assert await local.lock(handle, A, WHOLE._replace(pid=pid), thread=pid) is None
        assert await local.lock(handle, B) == "EAGAIN"
    await local.table.set(handle, B, WHOLE, wait=True)
    await local.unlock(handle, B)
    assert local.descriptors() == 0


async def test_the_end_of_a_process_that_unlocked_meanwhile(local: Bench) -> None:
    handle = local.open(local.file())
    with asking_process(local.workspace / "other", fcntl.F_SETLKW) as pid:
        lock = WHOLE._replace(pid=pid)
        assert await local.lock(handle, A, lock, thread=pid) is None
        await local.unlock(handle, A)
        assert await local.lock(handle, A, lock, thread=pid) is None
    await local.table.set(handle, B, WHOLE, wait=True)


async def test_a_description_keeps_its_locks_when_the_process_ends(local: Bench) -> None:
    handle = local.open(local.file())
    with asking_process(local.workspace / "other", fcntl.F_OFD_SETLKW) as pid:
        assert await local.lock(handle, A, WHOLE._replace(pid=pid), thread=pid) is None
    await trio.sleep(0.05)
    other = local.open(handle.inode)
    assert await local.lock(other, B) == "EAGAIN"
    await local.release(handle)
    assert await local.lock(other, B) is None


async def test_an_owners_number_given_to_the_next_process(local: Bench) -> None:
    handle = local.open(local.file())
    with asking_process(local.workspace / "other", fcntl.F_SETLKW) as pid:
        lock = Lock(0, 9, WRITE, pid)
        assert local.table.try_set(handle, A, lock, thread=pid)
    # The table has not been told of the end yet: nothing was awaited.
    assert local.table.try_set(handle, A, Lock(20, 29, WRITE, os.getpid()), thread=0)
    assert local.table.try_set(handle, B, Lock(0, 9, WRITE))
    await trio.sleep(0.05)
    assert not local.table.try_set(handle, B, Lock(20, 29, WRITE)), "that is not the dead one's"


async def test_processes_are_not_watched_where_flush_tells(local: Bench) -> None:
    inode = local.file()
    first = local.open(inode)
    await local.lock(first, A)
    await local.release(first)
    handle = local.open(inode)
    before = open_descriptors()
    with asking_process(local.workspace / "other", fcntl.F_SETLKW) as pid:
        assert await local.lock(handle, A, WHOLE._replace(pid=pid), thread=pid) is None
        assert local.descriptors() == 2, "the lock's and the other file's"
    assert open_descriptors() == before + 1
    await local.unlock(handle, A)


def test_which_locks_a_thread_asks_for(workspace: Path) -> None:
    for command, expected in (
        (fcntl.F_SETLKW, False),
        (fcntl.F_OFD_SETLKW, True),
    ):
        with asking_process(workspace / "file", command) as pid:
            assert locks_by_description(pid) is expected
    assert locks_by_description(0) is None
    assert locks_by_description(1 << 30) is None
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        wait_for(
            lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "S", "the process to sleep"
        )
        assert locks_by_description(pid) is None, "it does not ask for a lock"
    finally:
        end(pid)
