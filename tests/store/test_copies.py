"""Volumes copied, filled, read and restored through a store, whatever its drivers can do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.children import needs_root
from tests.copies.trees import make_tree, seen
from tests.filesystems import btrfs
from tests.local.scopes import age, hidden_entries
from tests.words.memory import MemoryDriver
from volfs.errors import (
    InvalidNameError,
    UnknownDriverError,
    UnsupportedError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from volfs.local import LocalDriver
from volfs.store import VolumeStore
from volfs.volume import NewVolume

pytestmark = pytest.mark.any_level


@pytest.fixture
def scope(workspace: Path) -> Path:
    return workspace / "scope"


@pytest.fixture
def store(scope: Path, workspace: Path) -> Iterator[VolumeStore]:
    (workspace / "memory").mkdir()
    store = VolumeStore([LocalDriver(scope, keep_free=0), MemoryDriver(workspace / "memory")])
    yield store
    store.close()


def write_note(data: int, keep_alive: Callable[[], None]) -> None:
    fd = os.open("note", os.O_WRONLY | os.O_CREAT, dir_fd=data)
    os.write(fd, b"filled")
    os.close(fd)
    keep_alive()


def path_of(fd: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{fd}"))


class TestMaking:
    def test_a_clone(self, store: VolumeStore) -> None:
        make_tree(Path(store.create("source").path))
        counts: list[int] = []
        volume, report = store.clone("source", "copy", on_progress=counts.append)
        assert seen(Path(volume.path)) == seen(Path(store.get("source").path))
        assert report.is_point_in_time
        assert counts

    def test_a_filled_one(self, store: VolumeStore) -> None:
        new = NewVolume("new", {"mode": "711"}, {"a": "b"})
        volume = store.make_filled(new, write_note)
        assert Path(volume.path, "note").read_text() == "filled"
        assert os.stat(volume.path).st_mode & 0o777 == 0o711
        assert (store.get("new").labels, store.get("new").options) == ({"a": "b"}, {"mode": "711"})

    def test_takes_no_name_that_a_volume_has(self, store: VolumeStore) -> None:
        store.create("source")
        store.create("gone")
        store.remove("gone")
        store.create("local")
        store.create("memory", driver="memory")
        for name in ("local", "memory"):
            with pytest.raises(VolumeExistsError):
                store.clone("source", name)
            with pytest.raises(VolumeExistsError):
                store.make_filled(name, write_note)
            with pytest.raises(VolumeExistsError):
                store.restore("gone", name)
            with pytest.raises(VolumeExistsError):
                store.make(name)
        with pytest.raises(InvalidNameError):
            store.restore("gone", "-v")
        with pytest.raises(InvalidNameError):
            store.clone("source", "-v")
        assert store.names() == ["local", "memory", "source"]
        assert store.restore("gone").name == "gone"

    def test_by_a_driver_that_cannot_is_refused(self, store: VolumeStore) -> None:
        store.create("source", driver="memory")
        with pytest.raises(UnsupportedError, match="'memory'"):
            store.clone("source", "copy")
        with pytest.raises(UnsupportedError, match="'memory'"):
            store.make_filled("new", write_note, driver="memory")
        with pytest.raises(UnknownDriverError):
            store.make_filled("new", write_note, driver="nfs")
        assert store.names() == ["source"]


class TestReading:
    @pytest.mark.parametrize("driver", ["local", "memory"])
    def test_is_of_the_data_where_it_cannot_be_frozen(
        self, store: VolumeStore, driver: str
    ) -> None:
        volume = store.create("vol", driver=driver)
        Path(volume.path, "file").write_text("cannot be shared here")
        with store.reading("vol") as (data, report):
            assert report is None
            assert os.path.samestat(os.fstat(data), os.stat(volume.path))
        with pytest.raises(VolumeNotFoundError), store.reading("other"):
            pass

    @needs_root
    def test_is_of_a_copy_where_it_can(self, workspace: Path) -> None:
        with btrfs(workspace / "btrfs") as place:
            store = VolumeStore([LocalDriver(place / "scope")])
            make_tree(Path(store.create("vol").path))
            expected = seen(Path(store.get("vol").path))
            with store.reading("vol") as (data, report):
                assert report is not None
                assert report.is_point_in_time
                Path(store.get("vol").path, "text").write_text("changed")
                assert seen(path_of(data)) == expected
            assert hidden_entries(place / "scope") == []
            store.close()

    def test_what_others_left_is_tidied_up(self, store: VolumeStore, scope: Path) -> None:
        (scope / "trash" / ".new-left").mkdir(parents=True)
        store.create("gone")
        store.remove("gone")
        age(scope)
        store.tidy()
        assert hidden_entries(scope) == []
        assert [entry.name for entry in store.removed()] == ["gone"]


class TestRemoved:
    def test_is_listed_restored_and_purged(self, store: VolumeStore) -> None:
        for name in ("a", "b", "a"):
            Path(store.create(name).path, "file").write_text(name)
            store.remove(name, by="me")
        newest, middle, oldest = store.removed()
        assert [entry.name for entry in (newest, middle, oldest)] == ["a", "b", "a"]
        assert newest.by == "me"
        assert store.purge([middle.id]) == [middle]
        assert store.restore("a").name == "a"
        assert store.removed() == [oldest]
        assert store.restore(oldest.id, "older").name == "older"
        store.remove("older")
        assert store.purge(older_than=3600) == []
        with pytest.raises(VolumeNotFoundError, match="nonsense"):
            store.purge([store.removed()[0].id, "nonsense"])
        assert [entry.name for entry in store.purge()] == ["older"]
        with pytest.raises(VolumeNotFoundError, match="'older'"):
            store.restore("older")

    def test_is_nothing_where_no_driver_keeps_any(self, workspace: Path) -> None:
        store = VolumeStore([MemoryDriver(workspace)], default="memory")
        store.create("gone")
        store.remove("gone")
        assert store.removed() == []
        assert store.purge() == []
        with pytest.raises(UnsupportedError, match="restored"):
            store.restore("gone")
