"""Volumes that start as a copy of another, and frozen copies of volumes."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import Child, needs_root
from tests.copies.trees import make_tree, seen
from tests.local.scopes import age, hidden_entries
from volfs.errors import (
    OptionConflictError,
    UnknownOptionError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from volfs.linux.deletion import never
from volfs.local import LocalDriver
from volfs.volume import NewVolume

pytestmark = pytest.mark.any_level


class TestVolumes:
    def test_starts_as_a_copy(self, driver: LocalDriver) -> None:
        source = driver.create(NewVolume("source", labels={"a": "b"}))
        make_tree(Path(source.path))
        volume = driver.create(NewVolume("copy", {"from": "source"}, labels={"c": "d"}))
        assert seen(Path(volume.path)) == seen(Path(source.path))
        assert (volume.labels, volume.options) == ({"c": "d"}, {"from": "source"})
        assert driver.get("copy").options == {"from": "source"}

    @needs_root
    def test_owner_and_mode_as_told_else_as_in_the_source(self, driver: LocalDriver) -> None:
        source = driver.create(NewVolume("source", {"uid": "7", "gid": "8", "mode": "2750"}))
        (Path(source.path) / "file").touch()
        plain = os.stat(driver.create(NewVolume("plain", {"from": "source"})).path)
        assert (plain.st_uid, plain.st_gid, plain.st_mode & 0o7777) == (7, 8, 0o2750)
        told = os.stat(
            driver.create(NewVolume("told", {"from": "source", "gid": "9", "mode": "700"})).path
        )
        assert (told.st_uid, told.st_gid, told.st_mode & 0o7777) == (7, 9, 0o700)

    def test_again_it_is_the_one_that_is_there(self, driver: LocalDriver) -> None:
        source = driver.create("source")
        (Path(source.path) / "file").write_text("x")
        volume = driver.create(NewVolume("copy", {"from": "source"}))
        driver.remove(driver.get("source"))
        (Path(volume.path) / "file").write_text("mine")
        assert driver.create(NewVolume("copy", {"from": "source"})) == volume
        assert driver.create("copy") == volume
        assert (Path(volume.path) / "file").read_text() == "mine"
        with pytest.raises(OptionConflictError):
            driver.create(NewVolume("copy", {"from": "other"}))

    def test_a_source_that_is_not_there_is_named(self, driver: LocalDriver, scope: Path) -> None:
        with pytest.raises(VolumeNotFoundError, match="'source'"):
            driver.create(NewVolume("copy", {"from": "source"}))
        with pytest.raises(VolumeNotFoundError, match="'copy'"):
            driver.create(NewVolume("copy", {"from": "copy"}))
        assert driver.names() == []
        assert hidden_entries(scope) == []

    def test_a_clone_has_labels_and_options_of_its_source(self, driver: LocalDriver) -> None:
        source = driver.create(
            NewVolume("source", {"mode": "711", "path": "native"}, labels={"a": "1"})
        )
        os.chmod(source.path, 0o710)
        volume, report = driver.clone("source", NewVolume("copy", labels={"b": "2"}))
        assert report.is_point_in_time
        assert volume.labels == {"a": "1", "b": "2"}
        assert volume.options == {"mode": "711", "path": "native", "from": "source"}
        assert os.stat(volume.path).st_mode & 0o777 == 0o710
        with pytest.raises(VolumeExistsError):
            driver.clone("source", "copy")
        with pytest.raises(UnknownOptionError):
            driver.clone("source", NewVolume("other", {"color": "red"}))

    def test_a_source_elsewhere(self, driver: LocalDriver, workspace: Path) -> None:
        """An administrator made its data path a link."""
        source = Path(driver.create("source").path)
        source.rmdir()
        (workspace / "elsewhere").mkdir()
        (workspace / "elsewhere" / "file").write_text("x")
        source.symlink_to(workspace / "elsewhere")
        volume = driver.create(NewVolume("copy", {"from": "source"}))
        assert not Path(driver.scope, "volumes", "copy", "_data").is_symlink()
        assert (Path(volume.path) / "file").read_text() == "x"
        (workspace / "elsewhere").rename(workspace / "unmounted")
        with pytest.raises(VolumeNotFoundError, match="elsewhere"):
            driver.create(NewVolume("other", {"from": "source"}))

    def test_a_source_removed_meanwhile_leaves_no_copy(
        self, driver: LocalDriver, scope: Path
    ) -> None:
        source = Path(driver.create("source").path)
        for number in range(3):
            (source / f"file{number}").write_bytes(bytes(1000))

        def remove(count: int) -> None:
            if "source" in driver.names():
                driver.remove(driver.get("source"))
                driver.trash.purge()

        with pytest.raises(VolumeNotFoundError, match="'source' was removed"):
            driver.clone("source", "copy", on_progress=remove)
        assert driver.names() == []
        assert hidden_entries(scope) == []

    def test_stopped_it_leaves_nothing(self, driver: LocalDriver, scope: Path) -> None:
        make_tree(Path(driver.create("source").path))
        left = iter(range(7))
        with pytest.raises(InterruptedError):
            driver.clone("source", "copy", stopping=lambda: next(left, None) is None)
        assert driver.names() == ["source"]
        assert hidden_entries(scope) == []

    def test_killed_it_leaves_no_volume(self, driver: LocalDriver, scope: Path) -> None:
        make_tree(Path(driver.create("source").path))

        def die() -> None:
            def kill(count: int) -> None:
                os.kill(os.getpid(), 9)

            driver.clone("source", "copy", on_progress=kill)

        with Child(die) as child:
            assert child.was_killed()
        assert driver.names() == ["source"]
        assert len(hidden_entries(scope)) == 1
        age(scope)
        driver.housekeep(never)
        assert hidden_entries(scope) == []

    def test_housekeeping_leaves_a_long_copy_alone(self, driver: LocalDriver, scope: Path) -> None:
        make_tree(Path(driver.create("source").path))
        seen_there: list[list[str]] = []

        def housekeep() -> list[str]:
            other = LocalDriver(scope)
            other.housekeep(never)
            other.close()
            return hidden_entries(scope)

        def meanwhile(count: int) -> None:
            if not seen_there:
                age(scope)
                with Child(housekeep) as child:
                    seen_there.append(child.result())
                seen_there.append(housekeep())  # of the same process

        volume, _ = driver.clone("source", "copy", on_progress=meanwhile)
        assert [len(names) for names in seen_there] == [1, 1]
        assert seen(Path(volume.path)) == seen(Path(driver.get("source").path))

    def test_without_locks_it_shows_that_it_lives(
        self, driver: LocalDriver, scope: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(fd: int, operation: int) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr("volfs.local.staging._TOUCH", 0.0)
        make_tree(Path(driver.create("source").path))
        aged: list[int] = []

        def stopping() -> bool:
            if not aged:
                aged.append(1)
                age(scope)  # a sign of life follows
            elif len(aged) == 1:
                aged.append(2)
                driver.housekeep(never)
            return False

        volume, _ = driver.clone("source", "copy", stopping=stopping)
        assert seen(Path(volume.path)) == seen(Path(driver.get("source").path))

    def test_a_frozen_copy_goes_when_it_was_used(
        self, filesystems: Callable[[str], Path], tmp_path: Path
    ) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to mount")
        scope = filesystems("btrfs") / tmp_path.name
        driver = LocalDriver(scope)
        try:
            source = Path(driver.create("source").path)
            make_tree(source)
            expected = seen(source)
            with driver.frozen_copy("source") as frozen:
                assert frozen is not None
                data, report = frozen
                assert report.is_point_in_time
                (source / "text").write_text("changed")
                found = seen(Path(os.readlink(f"/proc/self/fd/{data}")))
                assert found == expected
            assert hidden_entries(scope) == []
        finally:
            driver.close()

    def test_without_reflinks_there_is_no_frozen_copy(
        self, driver: LocalDriver, scope: Path
    ) -> None:
        make_tree(Path(driver.create("source").path))
        with driver.frozen_copy("source") as frozen:
            assert frozen is None
            assert hidden_entries(scope) == []
