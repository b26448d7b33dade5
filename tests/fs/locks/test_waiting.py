"""Waiting for locks of LockTable, on real files and without a mount, and what would never end."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

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
    flock,
    outside,
    record,
)
from volfs.fs.inodes import FileHandle
from volfs.fs.locks import END, Lock

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
