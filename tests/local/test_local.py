"""LocalDriver beyond the contract: the layout, links, owners, what others left in a scope."""

from __future__ import annotations

import json
import logging
import os
import stat
from datetime import datetime
from pathlib import Path

import pytest

from tests.children import NOBODY, in_namespace, needs_root, run_as
from tests.local.scopes import OpenDriver, contents, make, removed_contents, write
from volfs.errors import (
    OptionConflictError,
    OutsideScopeError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNotFoundError,
)
from volfs.local import LocalDriver
from volfs.volume import NewVolume, Owner


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def elsewhere(workspace: Path) -> Path:
    """A directory outside the scope, whose path begins like that of the volumes."""
    path = workspace / "scope" / "volumes-elsewhere"
    path.mkdir(parents=True)
    (path / "file").write_text("outside")
    return path


class TestLayout:
    def test_data_and_sidecar_lie_where_docker_has_them(
        self, driver: LocalDriver, scope: Path
    ) -> None:
        volume = driver.create(NewVolume("vol", {"mode": "0750"}, labels={"a": "b"}))
        assert volume.path == f"{scope}/volumes/vol/_data"
        assert sorted(os.listdir(scope / "volumes" / "vol")) == ["_data", "volume.json"]
        record = json.loads((scope / "volumes" / "vol" / "volume.json").read_text())
        assert record["labels"] == {"a": "b"}
        assert record["options"] == {"mode": "750"}
        assert datetime.fromisoformat(record["created_at"]) == volume.created_at

    def test_nobody_else_can_look_at_sidecars(self, driver: LocalDriver, scope: Path) -> None:
        driver.create("vol")
        assert mode(scope / "volumes" / "vol") == 0o700
        assert mode(scope / "volumes" / "vol" / "volume.json") == 0o600

    def test_a_fresh_driver_lists_what_is_there(
        self, driver: LocalDriver, open_driver: OpenDriver
    ) -> None:
        write(driver.create(NewVolume("vol", labels={"a": "b"})).path, "kept")
        other = open_driver()
        assert contents(other) == {"vol": "kept"}
        assert other.get("vol").labels == {"a": "b"}

    def test_changes_of_another_process_are_seen_at_once(
        self, driver: LocalDriver, open_driver: OpenDriver
    ) -> None:
        other = open_driver()
        volume = other.create("vol")
        assert driver.names() == ["vol"]
        other.rename(volume, "new")
        with pytest.raises(VolumeNotFoundError):
            driver.get("vol")
        assert driver.get("new").name == "new"

    def test_dockers_own_directory_is_a_scope(self, driver: LocalDriver, scope: Path) -> None:
        volumes = scope / "volumes"
        volumes.chmod(0o701)
        for name in ("db", "web_cache.1"):
            (volumes / name / "_data").mkdir(parents=True)
        (volumes / "db" / "opts.json").write_text("{}")
        (volumes / "metadata.db").write_bytes(b"\0" * 32768)
        if os.geteuid() == 0:
            os.mknod(volumes / "backingFsBlockDev", 0o600 | stat.S_IFBLK, os.makedev(1, 1))
        (volumes / "half").mkdir()
        (volumes / "file" / "x").mkdir(parents=True)
        (volumes / "file" / "_data").write_text("no directory")
        (volumes / "link").symlink_to("db")
        (volumes / ".hidden" / "_data").mkdir(parents=True)
        os.makedirs(os.fsencode(volumes) + b"/\xff\xfe/_data")
        assert driver.names() == ["db", "web_cache.1"]
        assert [volume.name for volume in driver.list()] == ["db", "web_cache.1"]
        volume = driver.get("db")
        assert (volume.created_at, volume.labels, volume.options) == (None, {}, {})
        for name in ("metadata.db", "half", "file", "link", ".hidden"):
            with pytest.raises(VolumeNotFoundError):
                driver.get(name)
        assert mode(volumes) == 0o701

    def test_a_foreign_volume_can_be_all_that_ours_can(
        self, driver: LocalDriver, scope: Path
    ) -> None:
        (scope / "volumes" / "db" / "_data").mkdir(parents=True)
        assert driver.create("db").path == f"{scope}/volumes/db/_data"
        with pytest.raises(OptionConflictError, match="no options"):
            driver.create(NewVolume("db", {"mode": "700"}))
        driver.set_labels(driver.get("db"), {"a": "b"})
        volume = driver.rename(driver.get("db"), "db2")
        assert (volume.created_at, volume.labels) == (None, {"a": "b"})
        driver.remove(volume)
        assert driver.restore("db2").labels == {"a": "b"}

    def test_chmod_does_not_change_the_time_of_creation(self, driver: LocalDriver) -> None:
        volume = driver.create("vol")
        os.chmod(volume.path, 0o777)
        os.chmod(os.path.dirname(volume.path), 0o701)
        assert driver.get("vol").created_at == volume.created_at

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"labels": 3}', b"[" * 99999])
    def test_a_broken_sidecar_costs_the_labels_not_the_volume(
        self,
        driver: LocalDriver,
        scope: Path,
        content: bytes,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        driver.create(NewVolume("vol", labels={"a": "b"}))
        (scope / "volumes" / "vol" / "volume.json").write_bytes(content)
        volume = driver.get("vol")
        assert (volume.created_at, volume.labels, volume.options) == (None, {}, {})
        assert "volume.json of volume 'vol'" in caplog.text
        assert driver.set_labels(volume, {"c": "d"}).labels == {"c": "d"}
        assert driver.get("vol").labels == {"c": "d"}

    @pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
    def test_a_sidecar_that_is_no_file_is_not_read(
        self, driver: LocalDriver, scope: Path, kind: str
    ) -> None:
        driver.create("vol")
        path = scope / "volumes" / "vol" / "volume.json"
        path.unlink()
        if kind == "link":
            (scope / "other").write_text('{"labels": {"a": "b"}}')
            path.symlink_to(scope / "other")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
        assert driver.get("vol").labels == {}

    def test_the_sidecar_of_a_volume_that_went_is_empty(self, driver: LocalDriver) -> None:
        driver.create(NewVolume("vol", labels={"a": "b"}))
        volume = driver.get("vol")
        driver.remove(volume)
        assert (volume.created_at, volume.labels, volume.options) == (None, {}, {})


class TestOwner:
    @needs_root
    @pytest.mark.parametrize("umask", [0, 0o077, 0o777])
    def test_mode_does_not_depend_on_the_umask(self, driver: LocalDriver, umask: int) -> None:
        before = os.umask(umask)
        try:
            plain = driver.create("plain")
            asked = driver.create(NewVolume("asked", owner=Owner(1000, 1001, 0o3775)))
            option = driver.create(
                NewVolume("option", {"mode": "1777", "uid": "7"}, owner=Owner(1, 2, 0o700))
            )
        finally:
            os.umask(before)
        assert mode(plain.path) == 0o755
        assert (os.stat(plain.path).st_uid, os.stat(plain.path).st_gid) == (0, os.getegid())
        assert mode(asked.path) == 0o3775
        assert (os.stat(asked.path).st_uid, os.stat(asked.path).st_gid) == (1000, 1001)
        assert mode(option.path) == 0o1777
        assert (os.stat(option.path).st_uid, os.stat(option.path).st_gid) == (7, 2)

    @needs_root
    def test_a_setgid_scope_gives_its_group_to_no_volume(
        self, driver: LocalDriver, scope: Path
    ) -> None:
        for part in ("trash", "volumes"):
            os.chown(scope / part, 0, 1234)
            (scope / part).chmod(0o2700)
        volume = driver.create("vol")
        assert (os.stat(volume.path).st_gid, mode(volume.path)) == (os.getegid(), 0o755)

    @needs_root
    def test_the_owner_is_not_an_option(self, driver: LocalDriver) -> None:
        driver.create(NewVolume("vol", owner=Owner(1000, 1000, 0o700)))
        assert driver.create(NewVolume("vol", owner=Owner(0, 0))).options == {}
        assert os.stat(driver.get("vol").path).st_uid == 1000

    @needs_root
    def test_a_user_can_do_all_but_give_away(self, scope: Path, workspace: Path) -> None:
        def attempt() -> tuple[str, list[str], list[str], list[str]]:
            driver = LocalDriver(scope)
            try:
                driver.create(NewVolume("other", {"uid": "0"}))
            except PermissionError as error:
                refusal = str(error)
            driver.create(NewVolume("vol", {"uid": str(NOBODY), "mode": "0"}))
            driver.remove(driver.get("vol"))
            driver.rename(driver.restore("vol"), "new")
            names = driver.names()
            driver.remove(driver.get("new"))
            driver.trash.purge()
            return refusal, names, driver.names(), os.listdir(scope / "trash")

        os.chown(workspace, NOBODY, NOBODY)
        refusal, *rest = run_as(attempt, NOBODY)
        assert "only root" in refusal
        assert rest == [["new"], [], []]


class TestLeftovers:
    def test_an_empty_directory_is_no_volume_and_in_nobodys_way(
        self, driver: LocalDriver, scope: Path
    ) -> None:
        for name in ("new", "renamed", "restored"):
            (scope / "volumes" / name).mkdir()
        assert driver.names() == []
        make(driver, "new")
        driver.rename(driver.create("vol"), "renamed")
        driver.remove(driver.create("vol"))
        driver.restore("vol", "restored")
        assert driver.names() == ["new", "renamed", "restored"]
        assert driver.trash.list() == []

    def test_a_directory_without_data_makes_way_and_loses_nothing(
        self, driver: LocalDriver, scope: Path
    ) -> None:
        for name in ("new", "renamed", "restored"):
            (scope / "volumes" / name).mkdir()
            (scope / "volumes" / name / "note").write_text(name)
        make(driver, "new")
        driver.rename(driver.create("vol"), "renamed")
        driver.remove(driver.create("vol"))
        driver.restore("vol", "restored")
        assert driver.names() == ["new", "renamed", "restored"]
        kept = [path.read_text() for path in (scope / "trash").glob("*/volume/note")]
        assert sorted(kept) == ["new", "renamed", "restored"]
        assert driver.trash.list() == []
        driver.trash.purge()
        assert os.listdir(scope / "trash") == []

    @pytest.mark.parametrize("kind", ["file", "link", "dangling"])
    def test_a_name_that_something_else_has_is_taken(
        self, driver: LocalDriver, scope: Path, kind: str
    ) -> None:
        path = scope / "volumes" / "taken"
        if kind == "file":
            path.write_text("mine")
        else:
            path.symlink_to(scope if kind == "link" else "nowhere")
        volume = driver.create("vol")
        with pytest.raises(VolumeExistsError, match="use another name"):
            driver.create("taken")
        with pytest.raises(VolumeExistsError, match="use another name"):
            driver.make("taken")
        with pytest.raises(VolumeExistsError):
            driver.rename(volume, "taken")
        driver.remove(volume)
        with pytest.raises(VolumeExistsError):
            driver.restore("vol", "taken")
        assert os.path.lexists(path)
        assert driver.restore("vol").name == "vol"


class TestLinks:
    def test_a_data_path_can_be_a_link(
        self, driver: LocalDriver, scope: Path, elsewhere: Path
    ) -> None:
        (scope / "volumes" / "vol").mkdir()
        (scope / "volumes" / "vol" / "_data").symlink_to("../../volumes-elsewhere")
        assert driver.get("vol").path == str(elsewhere)
        assert driver.get("vol").mount() == str(elsewhere)
        assert driver.create("vol").path == str(elsewhere)
        assert contents(driver) == {"vol": "outside"}
        assert driver.rename(driver.get("vol"), "new").path == str(elsewhere)

    def test_a_volume_whose_data_lies_elsewhere_is_not_removed(
        self, driver: LocalDriver, scope: Path, elsewhere: Path
    ) -> None:
        (scope / "volumes" / "vol").mkdir()
        (scope / "volumes" / "vol" / "_data").symlink_to(elsewhere)
        with pytest.raises(OutsideScopeError, match="volumes-elsewhere"):
            driver.remove(driver.get("vol"))
        assert contents(driver) == {"vol": "outside"}
        assert driver.trash.list() == []

    def test_a_link_to_the_volumes_themselves_is_elsewhere_too(
        self, driver: LocalDriver, scope: Path
    ) -> None:
        (scope / "volumes" / "vol").mkdir()
        (scope / "volumes" / "vol" / "_data").symlink_to("../../volumes")
        with pytest.raises(OutsideScopeError):
            driver.remove(driver.get("vol"))

    def test_a_name_that_links_elsewhere_is_not_removed(
        self, driver: LocalDriver, scope: Path, elsewhere: Path
    ) -> None:
        volume = driver.create("vol")
        os.rename(scope / "volumes" / "vol", scope / "aside")
        (elsewhere / "_data").mkdir()
        (scope / "volumes" / "vol").symlink_to(elsewhere)
        with pytest.raises(OutsideScopeError):
            driver.remove(volume)
        assert (elsewhere / "file").read_text() == "outside"

    def test_a_link_within_the_volumes_goes_without_its_target(
        self, driver: LocalDriver, scope: Path
    ) -> None:
        write(driver.create("target").path, "kept")
        (scope / "volumes" / "alias").mkdir()
        (scope / "volumes" / "alias" / "_data").symlink_to("../target/_data")
        driver.remove(driver.get("alias"))
        driver.trash.purge()
        assert contents(driver) == {"target": "kept"}

    def test_a_link_to_itself_can_be_removed(self, driver: LocalDriver, scope: Path) -> None:
        (scope / "volumes" / "vol").mkdir()
        (scope / "volumes" / "vol" / "_data").symlink_to("_data")
        driver.remove(driver.get("vol"))
        assert driver.names() == []

    def test_a_link_to_a_missing_place_is_a_volume_that_is_unreachable(
        self, driver: LocalDriver, scope: Path, elsewhere: Path
    ) -> None:
        (scope / "volumes" / "vol").mkdir()
        (scope / "volumes" / "vol" / "_data").symlink_to(elsewhere / "unmounted")
        assert driver.names() == ["vol"]
        assert driver.get("vol").path == str(elsewhere / "unmounted")
        with pytest.raises(VolumeExistsError):
            make(driver, "vol")


class TestMountPoints:
    def test_a_mount_at_the_volumes_directory_keeps_it(self, scope: Path) -> None:
        from tests.local.test_scope import mount_tmpfs

        def attempt() -> tuple[list[str], list[str]]:
            driver = LocalDriver(scope)
            volume = driver.create("vol")
            other = driver.create("other")
            mount_tmpfs(scope / "volumes" / "vol")
            (scope / "volumes" / "vol" / "_data").mkdir()
            refusals = []
            for action in (
                lambda: driver.remove(volume),
                lambda: driver.rename(volume, "new"),
                lambda: driver.exchange(volume, other),
            ):
                try:
                    action()
                except VolumeInUseError as error:
                    refusals.append(str(error))
            return refusals, driver.names()

        refusals, names = in_namespace(attempt)
        assert len(refusals) == 3
        assert all(f"{scope}/volumes/vol" in refusal for refusal in refusals)
        assert names == ["other", "vol"]


def test_removal_keeps_the_data_with_who_and_when(driver: LocalDriver) -> None:
    write(driver.create("vol").path, "kept")
    driver.remove(driver.get("vol"), by="uid 1000")
    (entry,) = driver.trash.list()
    assert (entry.name, entry.by) == ("vol", "uid 1000")
    assert removed_contents(driver) == [("vol", "kept")]


def test_debug_and_info_are_all_that_is_logged_of_normal_work(
    driver: LocalDriver, scope: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (scope / "volumes" / "vol").mkdir()
    (scope / "volumes" / "vol" / "note").write_text("x")
    driver.remove(driver.create("vol"))
    driver.housekeep(lambda: False)
    driver.trash.purge()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
