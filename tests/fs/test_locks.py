"""LockTable on real files, asked without a mount; the outside is other descriptions of them."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.conftest import open_descriptors, wait_for
from volfs.fs.devices import Device
from volfs.fs.handles import FileHandle
from volfs.fs.inode import Inode
from volfs.fs.locks import END, Lock, LockTable
from volfs.fs.locks.processes import locks_by_description

READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
A, B, C = 101, 102, 103
"""Lock owners."""

NAMES = {**errno.errorcode, errno.EDEADLK: "EDEADLK"}
WHOLE = Lock(0, END, WRITE)
DEADLINE = 10.0


class Bench:
    """A LockTable and files that it locks."""

    def __init__(self, workspace: Path, *, slow: bool) -> None:
        self.workspace = workspace
        self.slow = slow
        directory = os.open(workspace, os.O_RDONLY)
        self.device = Device(os.fstat(directory).st_dev, directory, main=True)
        os.close(directory)
        self.device.slow = slow
        self.opened = 0
        self.refused: dict[int, int] = {}
        self.handles: list[FileHandle] = []
        self.table = LockTable(self._open_again, lambda handle: handle.fd, self._run)

    def _open_again(self, inode: Inode, flags: int) -> int:
        self.opened += 1
        if flags & os.O_ACCMODE in self.refused:
            number = self.refused[flags & os.O_ACCMODE]
            raise OSError(number, os.strerror(number))
        return os.open(self.path(inode), flags | os.O_CLOEXEC)

    async def _run(self, call: Callable[[], Any], inode: Inode) -> Any:
        assert self.slow, "local calls need no thread"
        return await trio.to_thread.run_sync(call)

    def path(self, inode: Inode) -> bytes:
        return os.fsencode(self.workspace) + b"/" + inode.name

    def file(self, name: str = "file") -> Inode:
        """A new file."""
        path = self.workspace / name
        path.write_bytes(b"content")
        status = path.stat()
        return Inode(status.st_ino, self.device, status.st_ino, None, name.encode())

    def open(self, inode: Inode, flags: int = os.O_RDWR) -> FileHandle:
        """Open a file, as the tree does upon a request."""
        handle = FileHandle(os.open(self.path(inode), flags), inode, flags, os.getpid())
        inode.opens = [*(inode.opens or []), handle]
        self.handles.append(handle)
        return handle

    async def release(self, handle: FileHandle) -> None:
        """Close a file, as the tree does when nobody has it open any more."""
        assert handle.inode.opens is not None
        handle.inode.opens.remove(handle)
        self.handles.remove(handle)
        os.close(handle.fd)
        await self.call(lambda: self.table.released(handle))

    async def flush(self, handle: FileHandle, owner: int) -> None:
        await self.call(lambda: self.table.flushed(handle.inode, owner))

    async def call(self, call: Callable[[], object]) -> None:
        if self.slow:
            await trio.to_thread.run_sync(call)
        else:
            call()

    async def lock(
        self, handle: FileHandle, owner: int, lock: Lock = WHOLE, **how: Any
    ) -> str | None:
        """Set a lock, and return None or the name of the errno."""
        try:
            await self.table.set(handle, owner, lock, **how)
        except OSError as error:
            return NAMES[error.errno or 0]
        return None

    async def unlock(self, handle: FileHandle, owner: int, **how: Any) -> None:
        assert await self.lock(handle, owner, Lock(0, END, NONE), **how) is None

    async def waits(self, count: int) -> None:
        """Wait until so many wait for a lock, and nothing else happens."""
        while True:
            await trio.testing.wait_all_tasks_blocked(0.001)
            if self.table.waiting == count:
                return

    def descriptors(self) -> int:
        """How many descriptors of files in the workspace this process has, but for handles."""
        count = -len(self.handles)
        for number in os.listdir("/proc/self/fd"):
            try:
                target = Path(f"/proc/self/fd/{number}").readlink()
            except FileNotFoundError:
                continue
            count += self.workspace in target.parents
        return count


@asynccontextmanager
async def prepared(workspace: Path, *, slow: bool) -> AsyncIterator[Bench]:
    bench = Bench(workspace, slow=slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.table.serve)
        with trio.fail_after(DEADLINE):
            yield bench
        nursery.cancel_scope.cancel()
    for handle in list(bench.handles):
        await bench.release(handle)
    assert bench.table.waiting == 0
    assert bench.descriptors() == 0, "descriptors for locks outlived all handles"
    bench.table.close()
    bench.device.close()


@pytest.fixture(params=["local", "slow"])
async def bench(request: pytest.FixtureRequest, workspace: Path) -> AsyncIterator[Bench]:
    """On a local filesystem, and on one whose calls run in threads."""
    async with prepared(workspace, slow=request.param == "slow") as bench:
        yield bench


@pytest.fixture
async def local(workspace: Path) -> AsyncIterator[Bench]:
    """On a local filesystem, where not every close is told of."""
    async with prepared(workspace, slow=False) as bench:
        yield bench


@contextmanager
def outside(bench: Bench, inode: Inode) -> Iterator[int]:
    """A descriptor of the file that the table knows nothing of."""
    fd = os.open(bench.path(inode), os.O_RDWR)
    try:
        bench.handles.append(FileHandle(fd, inode, os.O_RDWR, 0))
        yield fd
    finally:
        bench.handles.pop()
        os.close(fd)


def record(fd: int, kind: int, start: int = 0, length: int = 0) -> str | None:
    """Set a record lock outside, and return None or the name of the errno."""
    order = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, order)
    except OSError as error:
        return NAMES[error.errno or 0]
    return None


def flock(fd: int, operation: int) -> str | None:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except OSError as error:
        return NAMES[error.errno or 0]
    return None


@contextmanager
def asking_process(path: Path, command: int) -> Iterator[int]:
    """A process that waits in fcntl(2) with this command, as one that asks for a lock does."""
    path.touch()
    fd = os.open(path, os.O_RDWR)
    order = struct.pack("hhqqi4x", WRITE, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, order)
    pid = os.fork()
    if pid == 0:
        try:
            fcntl.fcntl(os.open(path, os.O_RDWR), command, order)
        finally:
            os._exit(0)
    try:
        wait_for(
            lambda: (
                Path(f"/proc/{pid}/stat").read_text().split()[2] == "S"
                and locks_by_description(pid) is not None
            ),
            "the process to wait",
        )
        yield pid
    finally:
        end(pid)
        os.close(fd)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


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


# -- waiting


@pytest.mark.parametrize("how", ["record", "flock"])
async def test_waiting_ends_with_what_was_waited_for(bench: Bench, how: str) -> None:
    first = bench.open(bench.file())
    second = bench.open(first.inode)
    is_flock = how == "flock"
    ends: list[Callable[[], Any]] = [
        lambda: bench.unlock(first, A, flock=is_flock),
        lambda: bench.lock(first, A, Lock(0, END, READ), flock=is_flock),
        lambda: bench.release(first),
    ]
    if not is_flock:
        ends.insert(0, lambda: bench.flush(first, A))
    for drop in ends:
        assert await bench.lock(first, A, flock=is_flock) is None
        got: list[str | None] = []

        async def wait(got: list[str | None]) -> None:
            lock = Lock(0, END, READ)
            got.append(await bench.lock(second, B, lock, flock=is_flock, wait=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, got)
            await bench.waits(1)
            assert not got
            await drop()
        assert got == [None]
        await bench.unlock(second, B, flock=is_flock)
        if first in bench.handles:
            await bench.unlock(first, A, flock=is_flock)


@pytest.mark.parametrize("how", ["record", "flock"])
async def test_waiting_for_the_outside(bench: Bench, how: str) -> None:
    handle = bench.open(bench.file())
    with outside(bench, handle.inode) as fd:
        for seconds in (0, 0.2):
            if how == "flock":
                assert flock(fd, fcntl.LOCK_EX) is None
            else:
                assert record(fd, WRITE) is None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    lambda: bench.table.set(handle, A, WHOLE, flock=how == "flock", wait=True)
                )
                await bench.waits(1)
                await trio.sleep(seconds)
                assert bench.table.waiting == 1
                start = time.monotonic()
                if how == "flock":
                    assert flock(fd, fcntl.LOCK_UN) is None
                else:
                    assert record(fd, NONE) is None
            assert time.monotonic() - start < 0.5
            await bench.unlock(handle, A, flock=how == "flock")


async def test_a_wait_begun_behind_inside_goes_on_behind_the_outside(bench: Bench) -> None:
    handle = bench.open(bench.file())
    with outside(bench, handle.inode) as fd:
        assert record(fd, READ) is None
        assert await bench.lock(handle, A, Lock(0, END, READ)) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: bench.table.set(handle, B, WHOLE, wait=True))
            await bench.waits(1)
            await bench.unlock(handle, A)
            await bench.waits(1)
            assert record(fd, NONE) is None
        assert record(fd, READ) == "EAGAIN"


async def test_the_outside_is_looked_at_although_the_first_waits_for_the_inside(
    bench: Bench,
) -> None:
    handle = bench.open(bench.file())
    with outside(bench, handle.inode) as fd:
        assert await bench.lock(handle, A, Lock(0, 9, WRITE)) is None
        assert record(fd, WRITE, 10, 10) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: bench.table.set(handle, B, Lock(0, 9, READ), wait=True))
            await bench.waits(1)
            async with trio.open_nursery() as inner:
                inner.start_soon(lambda: bench.table.set(handle, C, Lock(10, 19, READ), wait=True))
                await bench.waits(2)
                assert record(fd, NONE) is None
            assert bench.table.waiting == 1
            await bench.unlock(handle, A)


async def test_a_cancelled_wait_leaves_nothing(bench: Bench) -> None:
    handle = bench.open(bench.file())
    with outside(bench, handle.inode) as fd:
        assert record(fd, READ, 0, 1) is None
        assert await bench.lock(handle, A, Lock(100, END, WRITE)) is None
        for lock in (Lock(0, 0, WRITE), Lock(100, 100, WRITE), WHOLE):
            with trio.move_on_after(0.05) as scope:
                await bench.table.set(handle, B, lock, wait=True)
            assert scope.cancelled_caught
            assert bench.table.waiting == 0
        assert record(fd, NONE, 0, 1) is None
        assert record(fd, WRITE, 0, 100) is None, "no lock of B came after all"
        assert bench.descriptors() == 1


async def test_cancelling_the_first_has_the_next_look(bench: Bench) -> None:
    handle = bench.open(bench.file())
    with outside(bench, handle.inode) as fd:
        assert record(fd, WRITE) is None
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                await bench.table.set(handle, A, WHOLE, wait=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await bench.waits(1)
            nursery.start_soon(lambda: bench.table.set(handle, B, WHOLE, wait=True))
            await bench.waits(2)
            scope.cancel()
            await bench.waits(1)
            assert record(fd, NONE) is None
        assert record(fd, READ) == "EAGAIN"


async def test_first_come_first_served(bench: Bench) -> None:
    handle = bench.open(bench.file())
    assert await bench.lock(handle, A) is None
    order: list[int] = []

    async def wait(owner: int) -> None:
        await bench.table.set(handle, owner, WHOLE, wait=True)
        order.append(owner)
        await bench.unlock(handle, owner)

    async with trio.open_nursery() as nursery:
        for owner in range(1000, 1020):
            nursery.start_soon(wait, owner)
            await bench.waits(owner - 999)
        await bench.unlock(handle, A)
    assert order == list(range(1000, 1020))


async def test_many_wait_and_all_get_it(bench: Bench) -> None:
    handle = bench.open(bench.file())
    inside = 0

    async def wait(owner: int) -> None:
        nonlocal inside
        lock = WHOLE if owner % 3 else Lock(0, END, READ)
        await bench.table.set(handle, owner, lock, wait=True)
        if owner % 3:
            assert inside == 0
            inside += 1
            await trio.lowlevel.checkpoint()
            inside -= 1
        await bench.unlock(handle, owner)

    with outside(bench, handle.inode) as fd:
        assert record(fd, WRITE) is None
        async with trio.open_nursery() as nursery:
            for owner in range(1000, 1200):
                nursery.start_soon(wait, owner)
            await bench.waits(200)
            assert bench.descriptors() <= 1, "none is kept by those who have no lock"
            record(fd, NONE)
    assert bench.table.waiting == 0


async def test_a_wait_may_end_with_an_error(bench: Bench) -> None:
    handle = bench.open(bench.file())
    assert await bench.lock(handle, A) is None
    got = []

    async def wait() -> None:
        got.append(await bench.lock(handle, B, wait=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await bench.waits(1)
        bench.refused = {os.O_RDWR: errno.EIO}
        await bench.unlock(handle, A)
    assert got == ["EIO"]


async def test_waiting_converters_of_flock_do_not_wait_for_each_other(bench: Bench) -> None:
    first = bench.open(bench.file())
    second = bench.open(first.inode)
    for handle in (first, second):
        assert await bench.lock(handle, A, Lock(0, END, READ), flock=True) is None

    async def convert(handle: FileHandle) -> None:
        await bench.table.set(handle, A, WHOLE, flock=True, wait=True)
        await bench.unlock(handle, A, flock=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(convert, first)
        nursery.start_soon(convert, second)


# -- deadlocks


async def test_a_deadlock_is_refused(bench: Bench) -> None:
    one = bench.open(bench.file("one"))
    two = bench.open(bench.file("two"))
    three = bench.open(bench.file("three"))
    for handle, owner in ((one, A), (two, B), (three, C)):
        assert await bench.lock(handle, owner) is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: bench.table.set(two, A, WHOLE, wait=True))
        nursery.start_soon(lambda: bench.table.set(three, B, WHOLE, wait=True))
        await bench.waits(2)
        assert await bench.lock(one, C, wait=True) == "EDEADLK"
        assert await bench.lock(one, C) == "EAGAIN"
        await bench.unlock(three, C)
        await bench.waits(1)
        await bench.unlock(two, B)


async def test_two_readers_who_both_want_to_write(bench: Bench) -> None:
    handle = bench.open(bench.file())
    for owner in (A, B):
        assert await bench.lock(handle, owner, Lock(0, END, READ)) is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: bench.table.set(handle, A, WHOLE, wait=True))
        await bench.waits(1)
        assert await bench.lock(handle, B, wait=True) == "EDEADLK"
        await bench.unlock(handle, B)


async def test_descriptions_are_not_looked_at_for_deadlocks(bench: Bench) -> None:
    with asking_process(bench.workspace / "other", fcntl.F_OFD_SETLKW) as pid:
        handle = bench.open(bench.file())
        for owner in (A, B):
            assert await bench.lock(handle, owner, Lock(0, END, READ)) is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: bench.table.set(handle, A, WHOLE, wait=True))
            await bench.waits(1)
            with trio.move_on_after(0.05) as scope:
                await bench.table.set(handle, B, WHOLE, wait=True, thread=pid)
            assert scope.cancelled_caught
            await bench.unlock(handle, B)


# -- closing


async def test_flush_is_wanted_from_the_first_record_lock_on(bench: Bench) -> None:
    inode = bench.file()
    handle = bench.open(inode)
    assert bench.table.wants_flush(inode) is bench.slow
    await bench.lock(handle, A, flock=True)
    assert bench.table.wants_flush(inode) is bench.slow
    await bench.lock(handle, A)
    await bench.unlock(handle, A)
    await bench.release(handle)
    assert bench.table.wants_flush(inode)


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
