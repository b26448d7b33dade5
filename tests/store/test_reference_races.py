"""Between processes: of a removal and an acquisition exactly one succeeds."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.children import Child, all_at_once
from tests.conftest import wait_for
from tests.store.referring import (
    DEADLINE,
    OpenStore,
    open_at,
    refused,
    times_open,
)
from volfs.errors import VolumeInUseError, VolumeNotFoundError
from volfs.holder import Holder
from volfs.local import LocalDriver
from volfs.store import References, VolumeStore
from volfs.volume import Volume

pytestmark = pytest.mark.any_level


def acquire(store: VolumeStore, turn: int) -> int:
    """Acquire the volume of this turn, and return which one that is."""
    return os.stat(store.acquire(f"vol{turn}", "r").path).st_ino


class TestRaces:
    """With a scope in memory, where processes come closer to each other."""

    @pytest.fixture
    def scope(self, quick_scope: Path) -> Path:
        return quick_scope

    ROUNDS = 300

    def race(
        self, scope: Path, *contenders: Callable[[VolumeStore, int], int]
    ) -> list[tuple[int | None, ...]]:
        """Let two processes meet ROUNDS times; return what each answered in each round, None
        where it was refused."""
        ends = socket.socketpair()

        def running(
            number: int, contend: Callable[[VolumeStore, int], int]
        ) -> Callable[[], list[int | None]]:
            def run() -> list[int | None]:
                store = open_at(scope)
                mine = ends[number]
                mine.settimeout(DEADLINE)
                chance = random.Random(number)

                def dawdle() -> None:
                    end = time.perf_counter() + chance.random() * 0.0005
                    while time.perf_counter() < end:
                        pass

                def look(volume: Volume) -> list[Holder]:
                    dawdle()
                    return []

                store.add_holder_source(look)
                answers: list[int | None] = []
                for turn in range(self.ROUNDS):
                    mine.send(b"x")
                    assert mine.recv(1)
                    dawdle()
                    try:
                        answers.append(contend(store, turn))
                    except (VolumeInUseError, VolumeNotFoundError):
                        answers.append(None)
                return answers

            return run

        with ends[0], ends[1]:
            results = all_at_once([running(*item) for item in enumerate(contenders)])
        return list(zip(*results, strict=True))

    def test_of_a_removal_and_an_acquisition_one_succeeds(
        self, scope: Path, open_store: OpenStore
    ) -> None:
        store = open_store()
        for turn in range(self.ROUNDS):
            store.create(f"vol{turn}")

        def remove(store: VolumeStore, turn: int) -> int:
            store.remove(f"vol{turn}")
            return 1

        for turn, (removed, acquired) in enumerate(self.race(scope, remove, acquire)):
            assert (removed is None) != (acquired is None), turn
            assert (f"vol{turn}" in store.names()) == (removed is None)
            assert store.references(f"vol{turn}") == ({"r"} if acquired else frozenset())

    def test_of_a_renaming_and_an_acquisition_one_succeeds(
        self, scope: Path, open_store: OpenStore
    ) -> None:
        store = open_store()
        for turn in range(self.ROUNDS):
            store.create(f"vol{turn}")

        def rename(store: VolumeStore, turn: int) -> int:
            store.rename(f"vol{turn}", f"new{turn}")
            return 1

        for turn, (renamed, acquired) in enumerate(self.race(scope, rename, acquire)):
            assert (renamed is None) != (acquired is None), turn
            assert store.references(f"new{turn}") == frozenset()
            assert store.references(f"vol{turn}") == ({"r"} if acquired else frozenset())

    def test_what_was_acquired_is_not_exchanged(self, scope: Path, open_store: OpenStore) -> None:
        store = open_store()
        for turn in range(self.ROUNDS):
            store.create(f"vol{turn}")
            store.create(f"new{turn}")

        def exchange(store: VolumeStore, turn: int) -> int:
            store.exchange(f"vol{turn}", f"new{turn}")
            return 1

        for turn, (_, acquired) in enumerate(self.race(scope, exchange, acquire)):
            assert os.stat(store.get(f"vol{turn}").path).st_ino == acquired
            assert store.references(f"new{turn}") == frozenset()
            assert store.references(f"vol{turn}") == {"r"}

    def test_the_first_reference_of_a_scope_too(self, scope: Path) -> None:
        for number in range(20):
            driver = LocalDriver(scope / str(number))
            driver.create("vol")
            driver.close()

        def removing(number: int) -> Callable[[], bool]:
            def run() -> bool:
                try:
                    open_at(scope / str(number)).remove("vol")
                except VolumeInUseError:
                    return False
                return True

            return run

        def acquiring(number: int) -> Callable[[], bool]:
            def run() -> bool:
                try:
                    open_at(scope / str(number)).acquire("vol", "r")
                except VolumeNotFoundError:
                    return False
                return True

            return run

        for number in range(20):
            assert sorted(all_at_once([removing(number), acquiring(number)])) == [False, True]

    def test_whoever_dies_with_the_lock_keeps_nobody(
        self, scope: Path, open_store: OpenStore
    ) -> None:
        store = open_store()
        store.create("vol")
        reader, writer = os.pipe()

        def hold() -> None:
            with References(str(scope)).held("vol"):
                os.write(writer, b"x")
                signal.pause()

        with Child(hold) as child, ThreadPoolExecutor(1) as threads:
            os.read(reader, 1)
            waiting = threads.submit(store.acquire, "vol", "r")
            store.create("other")
            store.acquire("other", "r")
            assert not waiting.done()
            os.kill(child.pid, signal.SIGKILL)
            assert child.was_killed()
            assert waiting.result(DEADLINE).name == "vol"
        os.close(reader)
        os.close(writer)

    def test_a_lock_deleted_by_hand_is_none(self, scope: Path, open_store: OpenStore) -> None:
        store = open_store()
        store.create("vol")
        lock = scope / "references" / ".lock"
        references = References(str(scope))
        with ThreadPoolExecutor(1) as threads:
            with references.held("vol"):
                removal = threads.submit(store.remove, "vol")
                wait_for(lambda: times_open(lock) == 2, "the removal to want the lock")
                lock.unlink()
                another = references.held("vol")
                another.__enter__()
            try:
                wait_for(lambda: times_open(lock) == 2, "the removal to want the other lock")
                assert not removal.done()
            finally:
                another.__exit__(None, None, None)
            removal.result(DEADLINE)
        references.close()

    def test_without_locks_there_is_one_warning(
        self,
        open_store: OpenStore,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def no_locks(fd: int, command: int, argument: bytes) -> bytes:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "fcntl", no_locks)
        store = open_store()
        store.create("vol")
        store.acquire("vol", "r")
        refused(store)
        store.release("vol", "r")
        store.remove("vol")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
