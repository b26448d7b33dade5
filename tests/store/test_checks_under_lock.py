"""What decides is looked at while nobody can change it, and what is refused changes nothing."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.store.referring import OpenStore, Seen
from volfs.errors import VolfsError, VolumeExistsError, VolumeInUseError
from volfs.holder import Holder
from volfs.local import LocalDriver
from volfs.store import References, VolumeStore
from volfs.store.table import Reference
from volfs.volume import NewVolume, Volume

pytestmark = pytest.mark.any_level

FLOCK = struct.Struct("hhqqi")
F_OFD_GETLK = 36


def locked(scope: Path) -> set[tuple[int, int]]:
    """Which bytes of the lock file somebody has locked, and how."""
    found: set[tuple[int, int]] = set()
    fd = os.open(scope / "references" / ".lock", os.O_RDWR)
    try:
        start = 0
        while True:
            asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 0, 0)
            kind, _, at, length, _ = FLOCK.unpack(fcntl.fcntl(fd, F_OFD_GETLK, asked))
            if kind == fcntl.F_UNLCK:
                return found
            # The one that is told need not be the first: look before it, too.
            if at > start:
                before = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, at - start, 0)
                if FLOCK.unpack(fcntl.fcntl(fd, F_OFD_GETLK, before))[0] != fcntl.F_UNLCK:
                    kind, _, at, length, _ = FLOCK.unpack(fcntl.fcntl(fd, F_OFD_GETLK, before))
            found.add((at, kind))
            start = at + length
    finally:
        os.close(fd)


def place_of(scope: Path, *names: str) -> set[tuple[int, int]]:
    """What is locked by who has these names to himself."""
    references = References(str(scope))
    with references.held(*names):
        found = locked(scope)
    references.close()
    return found


def rename(store: VolumeStore) -> None:
    store.rename("vol", "new")


def exchange(store: VolumeStore) -> None:
    store.exchange("vol", "other")


def remove(store: VolumeStore) -> None:
    store.remove("vol")


class TestLocks:
    @pytest.mark.parametrize(
        ("operation", "names"),
        [(rename, ("vol", "new")), (exchange, ("vol", "other")), (remove, ("vol",))],
    )
    def test_all_names_are_locked_while_they_change(
        self,
        operation: Callable[[VolumeStore], None],
        names: tuple[str, ...],
        open_store: OpenStore,
        scope: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        store = open_store()
        for name in ("vol", "other"):
            store.create(name)
        expected = place_of(scope, *names)
        assert len(expected) == len(names)
        seen: list[set[tuple[int, int]]] = []
        method = operation.__name__
        change = getattr(LocalDriver, method)

        def changing(driver: LocalDriver, *args: object, **kwargs: object) -> object:
            seen.append(locked(scope))
            return change(driver, *args, **kwargs)

        monkeypatch.setattr(LocalDriver, method, changing)
        operation(store)
        assert seen == [expected]
        assert locked(scope) == set()

    @pytest.mark.parametrize("name", ["vol", "new"])
    def test_so_are_they_for_the_threads_of_one_store(
        self, name: str, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = open_store()
        store.create("vol")
        threads: list[threading.Thread] = []
        change = LocalDriver.rename

        def renaming(driver: LocalDriver, volume: Volume, new_name: str) -> Volume:
            thread = threading.Thread(target=store.create, args=(name,))
            threads.append(thread)
            thread.start()
            thread.join(0.3)
            assert thread.is_alive(), f"{name} was created while it was renamed"
            return change(driver, volume, new_name)

        monkeypatch.setattr(LocalDriver, "rename", renaming)
        store.rename("vol", "new")
        threads[0].join()
        assert "new" in store.names()


class TestInUse:
    @pytest.mark.parametrize("held", ["vol", "other"])
    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    def test_an_exchange_is_refused_for_either(
        self, held: str, when: str, open_store: OpenStore
    ) -> None:
        store = open_store()
        self.check(store, held, when, open_store, exchange)

    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    @pytest.mark.parametrize("operation", [rename, remove])
    def test_so_are_the_others(
        self, when: str, operation: Callable[[VolumeStore], None], open_store: OpenStore
    ) -> None:
        self.check(open_store(), "vol", when, open_store, operation)

    def check(
        self,
        store: VolumeStore,
        held: str,
        when: str,
        open_store: OpenStore,
        operation: Callable[[VolumeStore], None],
    ) -> None:
        other = open_store()
        for name in ("vol", "other"):
            store.create(name)
        paths = {name: os.stat(store.get(name).path).st_ino for name in store.names()}
        if when == "before":
            other.acquire(held, "r")
        else:
            # After everybody was asked, and before the lock.
            asked: list[str] = []

            def look(volume: Volume) -> list[Holder]:
                asked.append(volume.name)
                if volume.name == ("other" if operation is exchange else "vol"):
                    other.acquire(held, "r")
                return []

            store.add_holder_source(look)
        with pytest.raises(VolumeInUseError, match=repr(held)):
            operation(store)
        assert {name: os.stat(store.get(name).path).st_ino for name in store.names()} == paths
        assert store.references(held) == {"r"}


class TestRefused:
    def test_what_is_refused_leaves_all_references(self, open_store: OpenStore) -> None:
        store = open_store()
        for name in ("a", "b", "gone"):
            store.create(name)
        store.remove("gone")
        store.create("gone")
        store.acquire("b", "r")
        store.acquire("gone", "s")
        refusals: list[Callable[[], object]] = [
            lambda: store.rename("a", "b"),
            lambda: store.rename("b", "a"),
            lambda: store.rename("b", "c"),
            lambda: store.rename("a", "no/name"),
            lambda: store.exchange("a", "b"),
            lambda: store.exchange("b", "nobody"),
            lambda: store.remove("b"),
            lambda: store.create(NewVolume("b", {"mode": "700"})),
            lambda: store.make("b"),
            lambda: store.clone("a", "b"),
            lambda: store.make_filled("b", lambda data, keep_alive: None),
            lambda: store.restore("gone"),
            lambda: store.restore("gone", "b"),
        ]
        for refusal in refusals:
            with pytest.raises(VolfsError):
                refusal()
            assert store.references("a") == frozenset()
            assert store.references("b") == {"r"}
            assert store.references("gone") == {"s"}
            assert store.names() == ["a", "b", "gone"]

    def test_a_name_that_is_taken_just_then(
        self, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The driver itself refuses it: whoever made it may be using it."""
        store, other = open_store(), open_store()
        store.create("a")
        change = LocalDriver.rename

        def renaming(driver: LocalDriver, volume: Volume, new_name: str) -> Volume:
            monkeypatch.undo()
            # By hand: a store would wait for the lock.
            other.drivers.get("local").create("b")
            references = References(str(driver.scope))
            references.add("b", "r")
            references.close()
            return change(driver, volume, new_name)

        monkeypatch.setattr(LocalDriver, "rename", renaming)
        with pytest.raises(VolumeExistsError):
            store.rename("a", "b")
        assert store.references("b") == {"r"}


class TestStale:
    def test_renewed_before_the_lock_is_held_it_stays(self, scope: Path) -> None:
        """Whether it is still the same is looked at while nobody can renew it."""
        driver = LocalDriver(scope, keep_free=0)
        driver.create("vol")
        other = References(str(scope))

        class Late(References):
            @contextmanager
            def held(self, *names: str, shared: bool = False) -> Iterator[None]:
                with other.held("vol", shared=True):
                    other.add("vol", "r")
                with super().held(*names, shared=shared):
                    yield

        references = Late(str(scope), grace=0, look=Seen())
        other.add("vol", "r")
        (before,) = references.of("vol")
        references.drop_stale([driver.get("vol")])
        (after,) = references.of("vol")
        assert isinstance(after, Reference)
        assert (after.id, after.awake > before.awake) == ("r", True)
        for opened in (references, other, driver):
            opened.close()
