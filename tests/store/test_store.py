"""VolumeStore: several drivers, references, who may remove what, and many threads at once."""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import pytest

from tests.local.scopes import contents, make, removed_contents, write
from tests.words.memory import MemoryDriver
from volfs.errors import (
    OptionConflictError,
    UnknownDriverError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNotEmptyError,
    VolumeNotFoundError,
)
from volfs.holder import Holder
from volfs.linux.deletion import never
from volfs.local import LocalDriver
from volfs.store import DriverRegistry, References, VolumeStore
from volfs.volume import NewVolume, Volume

DEADLINE = 20.0


@pytest.fixture
def memory(workspace: Path) -> MemoryDriver:
    directory = workspace / "memory"
    directory.mkdir()
    return MemoryDriver(directory)


@pytest.fixture
def store(driver: LocalDriver, memory: MemoryDriver) -> VolumeStore:
    return VolumeStore([memory, driver])


@pytest.fixture
def held(store: VolumeStore) -> list[Holder]:
    """What a source tells of every volume; tests append to it."""
    holders: list[Holder] = []
    store.add_holder_source(lambda volume: holders)
    return holders


class TestDrivers:
    def test_are_found_by_name(self, driver: LocalDriver, memory: MemoryDriver) -> None:
        registry = DriverRegistry()
        registry.register(driver)
        registry.register(memory)
        assert registry.get("memory") is memory
        assert registry.names() == ["local", "memory"]

    def test_an_unknown_one_is_an_error_that_lists_the_known(self, store: VolumeStore) -> None:
        with pytest.raises(UnknownDriverError, match=r"'nfs'.* memory, local"):
            store.drivers.get("nfs")
        with pytest.raises(UnknownDriverError):
            store.create("vol", driver="nfs")
        assert store.names() == []

    def test_a_name_is_given_once(self, workspace: Path, memory: MemoryDriver) -> None:
        with pytest.raises(ValueError, match="memory"):
            VolumeStore([memory, MemoryDriver(workspace)], default="memory")

    def test_the_default_must_be_there(self, memory: MemoryDriver) -> None:
        with pytest.raises(UnknownDriverError):
            VolumeStore([memory])

    def test_make_volumes_if_asked_else_the_default_does(self, store: VolumeStore) -> None:
        assert store.create("a").driver_name == "local"
        assert store.create("b", driver="memory").driver_name == "memory"
        assert store.names() == ["a", "b"]
        assert [(volume.name, volume.driver_name) for volume in store.list()] == [
            ("a", "local"),
            ("b", "memory"),
        ]
        assert store.get("b").driver_name == "memory"

    def test_share_one_space_of_names(self, store: VolumeStore) -> None:
        made = store.create("vol", driver="memory")
        assert store.create("vol").path == made.path
        assert store.create("vol", driver="memory").path == made.path
        with pytest.raises(OptionConflictError, match="memory"):
            store.create("vol", driver="local")
        with pytest.raises(VolumeExistsError):
            make(store, "vol")
        other = store.create("other", driver="local")
        with pytest.raises(VolumeExistsError):
            store.rename("other", "vol")
        with pytest.raises(OSError, match="different drivers") as caught:
            store.exchange("other", "vol")
        assert caught.value.errno == errno.EXDEV
        assert store.get("other").path == other.path

    def test_a_name_in_two_drivers_means_the_defaults(
        self, store: VolumeStore, driver: LocalDriver, memory: MemoryDriver
    ) -> None:
        memory.create("vol")
        driver.create("vol")
        assert store.get("vol").driver_name == "local"
        assert store.names() == ["vol"]
        assert [volume.driver_name for volume in store.list()] == ["local"]

    def test_volumes_are_there_from_the_start(self, store: VolumeStore, scope: Path) -> None:
        write(store.create(NewVolume("vol", labels={"a": "b"})).path, "kept")
        again = VolumeStore([LocalDriver(scope)])
        assert again.get("vol").labels == {"a": "b"}
        assert again.references("vol") == frozenset()
        again.close()

    def test_each_keeps_house_though_another_fails(
        self, workspace: Path, driver: LocalDriver, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Failing(MemoryDriver):
            def housekeep(self, stopping: Callable[[], bool]) -> None:
                raise OSError(errno.EIO, "broken")

        class Counting(MemoryDriver):
            rounds = 0

            def housekeep(self, stopping: Callable[[], bool]) -> None:
                self.rounds += 1

        counting = Counting(workspace, "counting")
        store = VolumeStore([driver, Failing(workspace, "failing"), counting])
        store.housekeep(never)
        assert counting.rounds == 1
        assert "'failing'" in caplog.text
        store.housekeep(lambda: True)
        assert counting.rounds == 1

    def test_are_closed_with_the_store(self, workspace: Path) -> None:
        memory = MemoryDriver(workspace)
        VolumeStore([memory], default="memory").close()
        assert memory.closed

    def test_do_what_the_store_is_asked(self, store: VolumeStore) -> None:
        for name, driver in (("a", "local"), ("b", "memory")):
            store.create(name, driver=driver)
            assert store.set_labels(name, {"k": name}).labels == {"k": name}
            assert store.rename(name, f"{name}2").labels == {"k": name}
            store.create(f"{name}3", driver=driver)
            store.exchange(f"{name}2", f"{name}3")
            assert store.get(f"{name}3").labels == {"k": name}
            store.remove(f"{name}2")
        assert store.names() == ["a3", "b3"]


class TestReferences:
    def test_are_a_set(self, store: VolumeStore) -> None:
        store.create("vol")
        assert store.acquire("vol", "r").name == "vol"
        store.acquire("vol", "r")
        store.acquire("vol", "s")
        assert store.references("vol") == {"r", "s"}
        store.release("vol", "r")
        assert store.references("vol") == {"s"}
        store.release("vol", "r")
        store.release("vol", "s")
        assert store.references("vol") == frozenset()
        store.remove("vol")

    def test_need_a_volume(self, store: VolumeStore) -> None:
        with pytest.raises(VolumeNotFoundError):
            store.acquire("vol", "r")
        store.release("vol", "r")
        assert store.references("vol") == frozenset()

    def test_keep_a_volume_from_removal_and_are_named(
        self, store: VolumeStore, driver: LocalDriver
    ) -> None:
        store.create("vol")
        store.acquire("vol", "container-2")
        store.acquire("vol", "container-1")
        with pytest.raises(VolumeInUseError, match=r"container-1.*container-2") as caught:
            store.remove("vol")
        assert caught.value.errno == errno.EBUSY
        assert caught.value.holders == (
            Holder("reference", "container-1"),
            Holder("reference", "container-2"),
        )
        assert store.names() == ["vol"]
        assert driver.trash.list() == []

    def test_keep_a_volumes_name(self, store: VolumeStore) -> None:
        store.create("vol")
        store.create("other")
        store.acquire("vol", "r")
        with pytest.raises(VolumeInUseError):
            store.rename("vol", "new")
        for names in (("vol", "other"), ("other", "vol")):
            with pytest.raises(VolumeInUseError):
                store.exchange(*names)
        store.release("vol", "r")
        assert store.rename("vol", "new").name == "new"

    def test_of_one_volume_do_not_keep_another(self, store: VolumeStore) -> None:
        store.create("vol")
        store.create("other")
        store.acquire("vol", "r")
        store.remove("other")


class TestHolders:
    def test_are_all_references_and_what_the_sources_tell(
        self, store: VolumeStore, held: list[Holder]
    ) -> None:
        store.create("vol")
        store.acquire("vol", "r")
        held.append(Holder("open", "/mnt/vol/file", 17, "less"))
        assert store.holders("vol") == [Holder("reference", "r"), *held]
        with pytest.raises(VolumeNotFoundError):
            store.holders("nothing")

    @pytest.mark.parametrize("kind", ["mount", "open"])
    def test_keep_a_volume_from_removal(
        self, store: VolumeStore, held: list[Holder], kind: str
    ) -> None:
        store.create("vol")
        holder = Holder(kind, "/some/where", 17, "less")  # type: ignore[arg-type]
        held.append(holder)
        with pytest.raises(VolumeInUseError, match=r"/some/where.*17.*less") as caught:
            store.remove("vol")
        assert caught.value.holders == (holder,)
        held.clear()
        store.remove("vol")

    def test_only_mounts_keep_its_name(self, store: VolumeStore, held: list[Holder]) -> None:
        store.create("vol")
        store.create("other")
        held.append(Holder("open", "/mnt/vol/file", 17, "less"))
        store.rename("vol", "new")
        store.exchange("new", "other")
        held.append(Holder("mount", "/data", 18, "sleep"))
        with pytest.raises(VolumeInUseError):
            store.rename("new", "vol")
        with pytest.raises(VolumeInUseError):
            store.exchange("new", "other")

    def test_sources_are_asked_of_the_volume_in_question(self, store: VolumeStore) -> None:
        asked = []

        def source(volume: Volume) -> Iterable[Holder]:
            asked.append(volume.name)
            return ()

        store.add_holder_source(source)
        store.create("vol")
        store.create("other")
        store.remove("vol")
        assert asked == ["vol"]


class TestRemoval:
    def test_of_what_is_not_there(self, store: VolumeStore) -> None:
        for name in ("vol", "", "../x", ".hidden"):
            with pytest.raises(VolumeNotFoundError):
                store.remove(name)

    def test_says_for_whom(self, store: VolumeStore, driver: LocalDriver) -> None:
        store.create("vol")
        store.remove("vol", by="uid 1000")
        assert driver.trash.list()[0].by == "uid 1000"

    def test_of_empty_volumes_only(self, store: VolumeStore) -> None:
        volume = store.create("vol")
        write(volume.path, "data")
        with pytest.raises(VolumeNotEmptyError):
            store.remove("vol", only_empty=True)
        assert Path(volume.path, "file").read_text() == "data"
        os.unlink(f"{volume.path}/file")
        store.remove("vol", only_empty=True)
        assert store.names() == []

    def test_loses_nothing_that_came_in_at_the_last_moment(
        self, store: VolumeStore, driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        volume = store.create("vol")
        remove = driver.remove

        def writing_first(volume: Volume, *, by: str = "") -> None:
            write(volume.path, "late")
            remove(volume, by=by)

        monkeypatch.setattr(driver, "remove", writing_first)
        store.remove(volume.name, only_empty=True)
        assert removed_contents(driver) == [("vol", "late")]


class TestThreads:
    def test_a_slow_change_of_one_volume_keeps_only_that_one(
        self, workspace: Path, driver: LocalDriver
    ) -> None:
        entered, go_on = threading.Event(), threading.Event()

        class Slow(MemoryDriver):
            def remove(self, volume: Volume, *, by: str = "") -> None:
                entered.set()
                assert go_on.wait(DEADLINE)
                super().remove(volume, by=by)

        store = VolumeStore([driver, Slow(workspace)])
        store.create("slow", driver="memory")
        with ThreadPoolExecutor(2) as threads:
            removal = threads.submit(store.remove, "slow")
            assert entered.wait(DEADLINE)
            waiting = threads.submit(store.acquire, "slow", "r")
            store.create("other")
            store.rename("other", "new")
            assert store.names() == ["new", "slow"]
            assert store.get("slow").name == "slow"
            assert not waiting.done()
            go_on.set()
            removal.result(DEADLINE)
            with pytest.raises(VolumeNotFoundError):
                waiting.result(DEADLINE)

    def test_what_is_acquired_is_never_removed(self, store: VolumeStore) -> None:
        names = ("a", "b")
        lost = []
        ended = threading.Event()

        def user(number: int) -> int:
            created = 0
            chance = random.Random(number)
            for _ in range(60):
                name = chance.choice(names)
                try:
                    volume = store.acquire(name, f"user {number}")
                except VolumeNotFoundError:
                    with suppress(VolumeExistsError):
                        make(store, name)
                        created += 1
                    continue
                if not os.path.isdir(volume.path):
                    lost.append(name)
                store.release(name, f"user {number}")
            return created

        def remover(number: int) -> int:
            removed = 0
            chance = random.Random(number)
            while not ended.is_set():
                with suppress(VolumeInUseError, VolumeNotFoundError):
                    store.remove(chance.choice(names))
                    removed += 1
            return removed

        with ThreadPoolExecutor(6) as threads:
            removers = [threads.submit(remover, number) for number in range(2)]
            users = [threads.submit(user, number) for number in range(4)]
            try:
                created = sum(done.result(DEADLINE) for done in users)
            finally:
                ended.set()
            removed = sum(done.result(DEADLINE) for done in removers)
        assert lost == []
        assert created == removed + len(store.names())
        assert created > 0
        assert all(store.references(name) == frozenset() for name in names)

    def test_exchanges_in_either_order_do_not_block_each_other(
        self, store: VolumeStore, driver: LocalDriver
    ) -> None:
        for name in ("a", "b"):
            write(store.create(name).path, name)

        def exchange(first: str, second: str) -> None:
            for _ in range(50):
                store.exchange(first, second)

        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(exchange, *names) for names in ("ab", "ba")]:
                done.result(DEADLINE)
        assert contents(driver) == {"a": "a", "b": "b"}

    def test_names_that_nobody_uses_cost_no_memory(self, workspace: Path) -> None:
        store = VolumeStore([MemoryDriver(workspace)], default="memory")

        def use(names: Iterator[str]) -> None:
            for name in names:
                store.release(name, "r")
                with pytest.raises(VolumeNotFoundError):
                    store.remove(name)

        use(f"warm-{number}" for number in range(100))
        tracemalloc.start()
        try:
            use(f"name-{number}" for number in range(2000))
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 50_000


def test_an_ordinary_day_is_not_worth_a_warning(
    store: VolumeStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store.create("vol")
    store.remove("vol")
    store.housekeep(never)
    assert caplog.records == []


class TestLabels:
    def test_what_changes_them_sees_them(self, store: VolumeStore) -> None:
        store.create(NewVolume("vol", labels={"a": "1", "b": "2"}))
        changed = store.change_labels("vol", lambda labels: {**labels, "b": "3"})
        assert changed.labels == store.get("vol").labels == {"a": "1", "b": "3"}

    def test_a_change_that_fails_changes_nothing(self, store: VolumeStore) -> None:
        store.create(NewVolume("vol", labels={"a": "1"}))

        def fail(labels: object) -> dict[str, str]:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.change_labels("vol", fail)
        assert store.set_labels("vol", {"a": "2"}).labels == {"a": "2"}

    def test_no_change_of_another_store_is_lost(self, driver: LocalDriver) -> None:
        """As of another process: two stores share nothing but the scope."""
        one, other = (
            VolumeStore([LocalDriver(driver.scope)], references=References(driver.scope))
            for _ in range(2)
        )
        one.create("vol")
        with ThreadPoolExecutor() as pool:
            second: list[Future[Volume]] = []

            def change(labels: Mapping[str, str]) -> Mapping[str, str]:
                second.append(
                    pool.submit(other.change_labels, "vol", lambda found: {**found, "second": ""})
                )
                assert wait(second, timeout=0.2).not_done
                return {**labels, "first": ""}

            one.change_labels("vol", change)
            assert second[0].result(DEADLINE).labels == {"first": "", "second": ""}
        for store in (one, other):
            store.close()
