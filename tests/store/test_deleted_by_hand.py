"""A new volume has no references of one that had its name and was deleted by hand."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import open_descriptors, wait_for
from tests.store.referring import times_open
from volfs.errors import VolumeNotFoundError
from volfs.local import LocalDriver
from volfs.store import References, VolumeStore
from volfs.volume import Fill, NewVolume, Volume

pytestmark = pytest.mark.any_level

DEADLINE = 20.0


def nothing(data: int, keep_alive: Callable[[], None]) -> None:
    """Fill a volume with nothing."""


def make(store: VolumeStore) -> None:
    _, fd = store.make("a")
    os.close(fd)


WAYS: dict[str, Callable[[VolumeStore], object]] = {
    "create": lambda store: store.create("a"),
    "create from": lambda store: store.create(NewVolume("a", {"from": "source"})),
    "make": make,
    "clone": lambda store: store.clone("source", "a"),
    "fill": lambda store: store.make_filled("a", nothing),
    "restore": lambda store: store.restore("a"),
    "restore as": lambda store: store.restore("gone", "a"),
}
"""How a volume ``a`` comes to be."""


@pytest.fixture
def scope(workspace: Path) -> Path:
    return workspace / "scope"


@pytest.fixture
def store(scope: Path) -> Iterator[VolumeStore]:
    """A store in which the volume ``a`` was deleted by hand while a runtime used it."""
    before = open_descriptors()
    store = opened(scope)
    for name in ("a", "gone"):
        store.create(name)
        store.remove(name)
    store.create("source")
    store.create("a")
    store.acquire("a", "old")
    shutil.rmtree(scope / "volumes" / "a")
    yield store
    store.close()
    assert open_descriptors() == before


def opened(scope: Path, driver: type[LocalDriver] = LocalDriver) -> VolumeStore:
    local = driver(scope, keep_free=0)
    return VolumeStore([local], references=References(local.scope))


@pytest.mark.parametrize("way", WAYS)
def test_a_new_volume_can_be_removed(store: VolumeStore, way: str) -> None:
    assert store.references("a") == {"old"}
    WAYS[way](store)
    assert store.references("a") == frozenset()
    store.acquire("a", "new")
    assert store.references("a") == {"new"}
    store.release("a", "new")
    store.remove("a")
    assert store.names() == ["source"]


def test_what_fails_leaves_them(store: VolumeStore) -> None:
    def fill(data: int, keep_alive: Callable[[], None]) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        store.make_filled("a", fill)
    with pytest.raises(VolumeNotFoundError):
        store.clone("not there", "a")
    with pytest.raises(VolumeNotFoundError):
        store.restore("never removed", "a")
    assert store.names() == ["source"]
    assert store.references("a") == {"old"}


class Slow(LocalDriver):
    """Shows its new volumes for a while before it returns them."""

    shown = threading.Event()
    go_on = threading.Event()

    def make_filled(self, new: NewVolume | str, fill: Fill) -> Volume:  # type: ignore[override]
        volume = super().make_filled(new, fill)
        self.shown.set()
        assert self.go_on.wait(DEADLINE)
        return volume


def test_a_new_one_is_not_taken_for_an_old_one(store: VolumeStore, scope: Path) -> None:
    slow = opened(scope, Slow)
    with ThreadPoolExecutor(2) as threads:
        making = threads.submit(slow.make_filled, "a", nothing)
        try:
            assert Slow.shown.wait(DEADLINE)
            acquiring = threads.submit(store.acquire, "a", "new")
            wait_for(lambda: times_open(scope / "references/.lock") == 2, "it to want the lock")
            assert not acquiring.done()
        finally:
            Slow.go_on.set()
        making.result(DEADLINE)
        acquiring.result(DEADLINE)
    assert store.references("a") == {"new"}
    slow.close()
