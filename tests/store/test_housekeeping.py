"""The loop of a store's chores."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.words.memory import MemoryDriver
from volfs.store import VolumeStore
from volfs.store.housekeeping import housekeep

pytestmark = pytest.mark.any_level


class Chores(MemoryDriver):
    """Notes when its chores are done; in the second round that fails."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.times: list[float] = []
        self.threads: set[int] = set()

    def housekeep(self, stopping: Callable[[], bool]) -> None:
        self.threads.add(threading.get_ident())
        if len(self.times) == 1:
            self.times.append(-1)
            raise ValueError("a mistake of the driver's")
        self.times.append(0)


@pytest.fixture
def chores(tmp_path: Path) -> Chores:
    return Chores(tmp_path)


@pytest.fixture
def store(chores: Chores) -> VolumeStore:
    return VolumeStore([chores], default="memory")


async def inline(call: Callable[[], None]) -> None:
    call()


async def test_now_and_in_each_interval_though_one_fails(
    store: VolumeStore,
    chores: Chores,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start = trio.current_time()
    with trio.move_on_after(25):
        await housekeep(store, lambda: False, wait=trio.sleep_forever, interval=10, run=inline)
    assert chores.times == [0, -1, 0]
    assert trio.current_time() - start == 25
    assert [record.getMessage() for record in caplog.records] == [
        "housekeeping failed; it is tried again"
    ]
    assert caplog.records[0].levelno == logging.ERROR


async def test_earlier_when_there_is_something_to_do(
    store: VolumeStore, chores: Chores, autojump_clock: MockClock
) -> None:
    with trio.move_on_after(3.5):
        await housekeep(store, lambda: False, wait=partial(trio.sleep, 1), interval=60, run=inline)
    assert len(chores.times) == 4


async def test_in_a_thread_until_it_is_to_stop(store: VolumeStore, chores: Chores) -> None:
    stop = trio.Event()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(housekeep, store, stop.is_set, wait=stop.wait))
            while not chores.times:
                await trio.testing.wait_all_tasks_blocked(0.01)
            stop.set()
    assert threading.get_ident() not in chores.threads
    assert len(chores.times) == 1
