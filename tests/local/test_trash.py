"""The trash: what is kept in it, for how long, and how it comes back or goes."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.children import in_namespace
from tests.local.scopes import (
    OpenDriver,
    age,
    contents,
    hidden_entries,
    make,
    removed_contents,
    write,
)
from tests.local.test_scope import MS_BIND, mount_tmpfs
from volfs.errors import InvalidNameError, VolumeExistsError, VolumeNotFoundError
from volfs.linux import syscalls
from volfs.linux.deletion import never
from volfs.local import LocalDriver
from volfs.volume import NewVolume


def remove(driver: LocalDriver, name: str, text: str = "", by: str = "") -> str:
    """Make a volume, write to it, remove it; return its id in the trash."""
    before = {entry.id for entry in driver.trash.list()}
    write(driver.create(name).path, text)
    driver.remove(driver.get(name), by=by)
    (id,) = {entry.id for entry in driver.trash.list()} - before
    return id


def backdate(driver: LocalDriver, id: str, seconds: float) -> str:
    """Make an entry look removed so many seconds ago; return its new id."""
    removed_at = datetime.now(UTC) - timedelta(seconds=seconds)
    new_id = f"{removed_at:%Y%m%dT%H%M%S.%f}Z-{id.partition('-')[2]}"
    os.rename(Path(driver.scope, "trash", id), Path(driver.scope, "trash", new_id))
    return new_id


class TestList:
    def test_newest_first_with_name_time_and_by(self, driver: LocalDriver) -> None:
        start = datetime.now(UTC)
        ids = [remove(driver, name, by=f"user {name}") for name in ("a", "b", "a")]
        entries = driver.trash.list()
        assert [entry.id for entry in entries] == ids[::-1]
        assert [(entry.name, entry.by) for entry in entries] == [
            ("a", "user a"),
            ("b", "user b"),
            ("a", "user a"),
        ]
        times = [entry.removed_at for entry in entries]
        assert times == sorted(times, reverse=True)
        assert all(start <= time <= datetime.now(UTC) for time in times)

    def test_what_is_not_an_entry_is_passed_over(self, driver: LocalDriver, scope: Path) -> None:
        id = remove(driver, "vol")
        (scope / "trash" / "README").write_text("")
        (scope / "trash" / "mine" / "volume" / "_data").mkdir(parents=True)
        (scope / "trash" / "20241399T000000.000000Z-0123456789abcdef").mkdir()
        (scope / "trash" / "20241231T000000.000000Z-0123456789abcdef").mkdir()
        assert [entry.id for entry in driver.trash.list()] == [id]

    @pytest.mark.parametrize("record", [None, b"", b"[]", b'{"name": 1}', b"\xff", b"[" * 9999])
    def test_without_its_record_an_entry_goes_by_its_id(
        self, driver: LocalDriver, scope: Path, record: bytes | None
    ) -> None:
        id = remove(driver, "vol", "kept")
        path = scope / "trash" / id / "removed.json"
        path.unlink()
        if record is not None:
            path.write_bytes(record)
        (entry,) = driver.trash.list()
        assert (entry.id, entry.name, entry.by) == (id, id, "")
        assert abs(entry.removed_at - datetime.now(UTC)) < timedelta(minutes=1)
        driver.restore(id, "vol")
        assert contents(driver) == {"vol": "kept"}


class TestRestore:
    def test_by_name_the_newest_comes_back(self, driver: LocalDriver) -> None:
        remove(driver, "vol", "old")
        remove(driver, "vol", "new")
        remove(driver, "other", "other")
        volume = driver.restore("vol")
        assert volume == driver.get("vol")
        assert contents(driver) == {"vol": "new"}
        assert removed_contents(driver) == [("other", "other"), ("vol", "old")]

    def test_by_id_any_comes_back(self, driver: LocalDriver) -> None:
        first = remove(driver, "vol", "first")
        remove(driver, "vol", "second")
        driver.restore(first)
        assert contents(driver) == {"vol": "first"}

    def test_with_labels_options_and_time(self, driver: LocalDriver) -> None:
        created = driver.create(NewVolume("vol", {"mode": "700"}, labels={"a": "b"}))
        driver.remove(created)
        volume = driver.restore("vol", "new")
        assert (volume.name, volume.labels, volume.options, volume.created_at) == (
            "new",
            {"a": "b"},
            {"mode": "700"},
            created.created_at,
        )

    def test_a_taken_name_stays_whose_it_is(self, driver: LocalDriver) -> None:
        remove(driver, "vol", "removed")
        write(driver.create("vol").path, "present")
        with pytest.raises(VolumeExistsError):
            driver.restore("vol")
        assert contents(driver) == {"vol": "present"}
        driver.restore("vol", "vol2")
        assert contents(driver) == {"vol": "present", "vol2": "removed"}

    def test_a_bad_new_name_changes_nothing(self, driver: LocalDriver) -> None:
        remove(driver, "vol", "kept")
        with pytest.raises(InvalidNameError):
            driver.restore("vol", "../vol")
        assert removed_contents(driver) == [("vol", "kept")]

    @pytest.mark.parametrize("which", ["vol", "", "..", "20240101T000000.000000Z-0123456789abcdef"])
    def test_what_is_not_there_is_not_found(self, driver: LocalDriver, which: str) -> None:
        remove(driver, "other")
        with pytest.raises(VolumeNotFoundError):
            driver.restore(which)

    def test_once_only(self, driver: LocalDriver, scope: Path) -> None:
        id = remove(driver, "vol")
        driver.restore(id)
        with pytest.raises(VolumeNotFoundError):
            driver.restore(id, "vol2")
        assert os.listdir(scope / "trash") == []


class TestPurge:
    def test_all_or_those_named(self, driver: LocalDriver, scope: Path) -> None:
        ids = [remove(driver, name) for name in "abc"]
        assert [entry.name for entry in driver.trash.purge([ids[1]])] == ["b"]
        assert [entry.name for entry in driver.trash.list()] == ["c", "a"]
        assert [entry.name for entry in driver.trash.purge()] == ["a", "c"]
        assert os.listdir(scope / "trash") == []
        assert driver.trash.purge() == []

    def test_none_named_is_none(self, driver: LocalDriver) -> None:
        remove(driver, "vol")
        assert driver.trash.purge([]) == []
        assert len(driver.trash.list()) == 1

    def test_an_unknown_id_spares_the_others(self, driver: LocalDriver) -> None:
        id = remove(driver, "vol")
        with pytest.raises(VolumeNotFoundError, match="nonsense"):
            driver.trash.purge([id, "nonsense"])
        assert len(driver.trash.list()) == 1

    def test_by_age(self, driver: LocalDriver) -> None:
        remove(driver, "young")
        old = backdate(driver, remove(driver, "old"), 100)
        assert [entry.id for entry in driver.trash.purge(older_than=50)] == [old]
        assert driver.trash.purge([driver.trash.list()[0].id], older_than=50) == []
        assert [entry.name for entry in driver.trash.list()] == ["young"]

    def test_purged_is_gone_for_good(self, driver: LocalDriver) -> None:
        remove(driver, "vol")
        driver.trash.purge()
        with pytest.raises(VolumeNotFoundError):
            driver.restore("vol")

    def test_cut_short_it_is_not_restorable_and_goes_on_later(
        self, driver: LocalDriver, scope: Path, open_driver: OpenDriver
    ) -> None:
        volume = driver.create("vol")
        for number in range(50):
            write(volume.path, "x", f"file{number}")
        driver.remove(volume)
        remove(driver, "other")
        assert [entry.name for entry in driver.trash.purge(stopping=after(10))] == ["vol"]
        assert [entry.name for entry in driver.trash.list()] == ["other"]
        assert len(hidden_entries(scope)) == 1
        with pytest.raises(VolumeNotFoundError):
            driver.restore("vol")
        open_driver().housekeep(never)
        assert hidden_entries(scope) == []
        assert [entry.name for entry in driver.trash.list()] == ["other"]


class TestHousekeeping:
    def test_what_is_older_than_kept_goes(self, open_driver: OpenDriver) -> None:
        driver = open_driver(keep_removed=100)
        backdate(driver, remove(driver, "old"), 101)
        backdate(driver, remove(driver, "young"), 90)
        driver.housekeep(never)
        assert [entry.name for entry in driver.trash.list()] == ["young"]

    @pytest.mark.parametrize("hours", [23, 25, 49])
    def test_a_day_is_a_day(self, open_driver: OpenDriver, hours: int) -> None:
        """The default is a day, whatever the hour of it."""
        driver = open_driver()
        backdate(driver, remove(driver, "vol"), hours * 3600)
        driver.housekeep(never)
        assert len(driver.trash.list()) == (hours < 24)

    def test_kept_for_no_time_it_goes_with_the_next_round(
        self, open_driver: OpenDriver, scope: Path
    ) -> None:
        driver = open_driver(keep_removed=0)
        remove(driver, "vol")
        driver.housekeep(never)
        assert os.listdir(scope / "trash") == []

    def test_it_stops_when_told(self, open_driver: OpenDriver) -> None:
        driver = open_driver(keep_removed=0)
        remove(driver, "vol")
        driver.housekeep(lambda: True)
        assert len(driver.trash.list()) == 1

    def test_on_a_nearly_full_filesystem_the_oldest_go_early(self, scope: Path) -> None:
        def attempt() -> list[tuple[list[str], int]]:
            mount_tmpfs(scope)  # 8 MiB
            driver = LocalDriver(scope, keep_free=0.5)
            for name in ("a", "b", "c", "d", "e"):
                remove(driver, name, "x" * (1 << 20))
            steps = []
            for _ in range(2):
                driver.housekeep(never)
                steps.append(
                    ([entry.name for entry in driver.trash.list()], os.statvfs(scope).f_bavail)
                )
            return steps

        first, second = in_namespace(attempt)
        assert first[0] == ["e", "d", "c"]
        assert second == first

    def test_short_of_inodes_the_oldest_go_early(self, scope: Path) -> None:
        def attempt() -> list[str]:
            scope.mkdir()
            syscalls.mount(b"tmpfs", os.fsencode(scope), b"tmpfs", 0, b"nr_inodes=200")
            driver = LocalDriver(scope, keep_free=0.5)
            for name in ("a", "b"):
                volume = driver.create(name)
                for number in range(60):
                    write(volume.path, "", f"{number}")
                driver.remove(volume)
            driver.housekeep(never)
            return [entry.name for entry in driver.trash.list()]

        assert in_namespace(attempt) == ["b"]

    def test_a_removal_from_a_full_disk_costs_nothing(self, scope: Path) -> None:
        def attempt() -> tuple[list[str], list[str]]:
            scope.mkdir()
            syscalls.mount(b"tmpfs", os.fsencode(scope), b"tmpfs", 0, b"nr_inodes=100")
            driver = LocalDriver(scope, keep_free=0)
            for name in ("a", "b", "c"):
                driver.create(name)
            driver.remove(driver.get("a"))
            driver.remove(driver.get("b"))
            volume = driver.get("c")
            for number in range(os.statvfs(scope).f_favail):
                write(volume.path, "", str(number))
            driver.remove(volume)
            kept = [entry.name for entry in driver.trash.list()]
            driver.trash.purge()
            return kept, os.listdir(scope / "trash")

        assert in_namespace(attempt) == (["c", "b", "a"], [])

    def test_without_room_for_a_name_the_oldest_go(
        self, driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("a", "b", "c"):
            driver.create(name)
        driver.remove(driver.get("a"))
        driver.remove(driver.get("b"))
        rename = os.rename

        def refusing(*args: object, **kwargs: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def renaming(source: str, target: str, **kwargs: int) -> None:
            if "~" in target and len(driver.trash.list()) == 2:
                refusing()
            rename(source, target, **kwargs)

        monkeypatch.setattr(os, "mkdir", refusing)
        monkeypatch.setattr(os, "rename", renaming)
        driver.remove(driver.get("c"))
        monkeypatch.undo()
        assert [entry.name for entry in driver.trash.list()] == ["c", "b"]

    def test_unfinished_work_of_a_crash_goes_after_a_while(
        self, driver: LocalDriver, scope: Path
    ) -> None:
        trash = scope / "trash"
        kept = remove(driver, "vol", "kept")
        (trash / ".new-0123456789abcdef" / "_data").mkdir(parents=True)
        (trash / ".new-fedcba9876543210").write_text("{}")
        (trash / "20241231T000000.000000Z-0123456789abcdef").mkdir()
        (trash / "20241231T000000.000000Z-fedcba9876543210").mkdir()
        (trash / "20241231T000000.000000Z-fedcba9876543210" / "removed.json").write_text("{}")
        (trash / ".empty-20241231T000001.000000Z-0123456789abcdef").mkdir()
        everything = sorted(os.listdir(trash))
        driver.housekeep(never)
        assert sorted(os.listdir(trash)) == everything, "somebody might still be at it"
        age(scope)
        driver.housekeep(never)
        assert os.listdir(trash) == [kept]
        assert removed_contents(driver) == [("vol", "kept")]

    def test_an_entry_taken_for_empty_comes_back(self, driver: LocalDriver, scope: Path) -> None:
        id = remove(driver, "vol", "kept")
        os.rename(scope / "trash" / id, scope / "trash" / f".empty-{id}")
        assert driver.trash.list() == []
        age(scope)
        driver.housekeep(never)
        assert removed_contents(driver) == [("vol", "kept")]

    def test_a_slow_creation_begins_anew_when_its_work_is_cleared(
        self, driver: LocalDriver, scope: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rename_when(monkeypatch, 1, lambda: clear_all(driver, scope))
        make(driver, NewVolume("vol", {"mode": "700"}))
        assert driver.get("vol").options == {"mode": "700"}
        assert os.listdir(scope / "trash") == []

    def test_a_slow_removal_begins_anew_when_its_entry_is_cleared(
        self, driver: LocalDriver, scope: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(driver.create("vol").path, "kept")
        rename_when(monkeypatch, 1, lambda: clear_all(driver, scope))
        driver.remove(driver.get("vol"))
        assert driver.names() == []
        assert removed_contents(driver) == [("vol", "kept")]

    def test_slow_labels_are_written_anew_when_cleared(
        self, driver: LocalDriver, scope: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        driver.create("vol")
        rename_when(monkeypatch, 1, lambda: clear_all(driver, scope))
        driver.set_labels(driver.get("vol"), {"a": "b"})
        assert driver.get("vol").labels == {"a": "b"}
        assert os.listdir(scope / "trash") == []

    def test_a_mount_inside_is_left_alone_and_said_once(
        self, scope: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)

        def attempt() -> tuple[list[str], list[str], list[str], list[str]]:
            treasure = scope.parent / "treasure"
            treasure.mkdir()
            (treasure / "file").write_text("not ours")
            driver = LocalDriver(scope, keep_removed=0)
            volume = driver.create("vol")
            for name in ("bind", "tmpfs", "plain"):
                Path(volume.path, name, "deep").mkdir(parents=True)
                write(f"{volume.path}/{name}", "x")
            bind = f"{volume.path}/bind/deep"
            syscalls.mount(os.fsencode(treasure), os.fsencode(bind), b"", MS_BIND, b"")
            mount_tmpfs(Path(volume.path, "tmpfs", "deep"))
            write(f"{volume.path}/tmpfs/deep", "on another filesystem")
            driver.remove(volume)
            left = []
            for _ in range(3):
                driver.housekeep(never)
                (entry,) = hidden_entries(scope)
                left.append(sorted(str(p) for p in (scope / "trash" / entry).rglob("file")))
            logged = [record.getMessage() for record in caplog.records]
            assert left[0] == left[1] == left[2]
            kept = [Path(path).read_text() for path in left[0]]
            return sorted(kept), os.listdir(treasure), logged, driver.names()

        kept, treasure, logged, names = in_namespace(attempt)
        assert kept == ["not ours", "on another filesystem"]
        assert treasure == ["file"]
        assert len(logged) == 1
        assert "cannot be deleted wholly" in logged[0]
        assert names == []
        shutil.rmtree(scope / "trash")


def after(calls: int) -> Callable[[], bool]:
    """A ``stopping`` that turns true after so many calls."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


def clear_all(driver: LocalDriver, scope: Path) -> None:
    age(scope)
    driver.housekeep(never)


def rename_when(
    monkeypatch: pytest.MonkeyPatch, number: int, interfere: Callable[[], None]
) -> None:
    """Have ``interfere`` run just before the number-th rename of whatever follows."""
    rename = os.rename
    calls = 0

    def renaming(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            interfere()
        rename(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", renaming)
