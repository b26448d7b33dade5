"""Removal works when nothing else does, and what cannot be deleted keeps nothing else."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.children import NOBODY, USER, in_namespace, needs_root, run_as
from tests.cli.running import volfs
from tests.filesystems import ext4
from tests.linux.test_deletion import immutable, make_read_only, make_subvolume, make_tree
from tests.local.scopes import OpenDriver, hidden_entries, write
from tests.local.test_scope import mount_tmpfs
from volfs.linux import identity
from volfs.linux.deletion import never
from volfs.linux.identity import owning
from volfs.local import LocalDriver
from volfs.volume import NewVolume, Owner


def use_up_inodes(place: Path) -> None:
    for number in range(os.statvfs(place).f_ffree + 1):
        try:
            (place / f"filler{number}").touch()
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return
    raise AssertionError("there is no end of inodes")


def use_up_blocks(place: Path) -> None:
    fd = os.open(place / "filler", os.O_WRONLY | os.O_CREAT, 0o600)
    for size in (1 << 20, 4096, 1):
        try:
            while os.write(fd, bytes(size)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    os.fsync(fd)
    os.close(fd)


class TestNoRoom:
    """On an ext4 with few inodes, or no block."""

    @pytest.fixture
    def place(self, workspace: Path) -> Iterator[Path]:
        with ext4(workspace / "small", size=16 << 20, inodes=64) as place:
            yield place

    @pytest.mark.parametrize("using_up", [use_up_inodes, use_up_blocks])
    def test_removed_restored_and_purged(self, place: Path, using_up: object) -> None:
        assert callable(using_up)
        driver = LocalDriver(place / "scope", keep_free=0)
        for name in ("old", "vol", "other one", "x" * 250):
            write(driver.create(name).path, f"in {name}")
        driver.remove(driver.get("old"))
        using_up(place)
        with pytest.raises(OSError, match="No space left") as caught:
            (place / "scope" / "more").mkdir()
        assert caught.value.errno == errno.ENOSPC

        for name in ("vol", "other one", "x" * 250):
            driver.remove(driver.get(name), by="me")
        assert driver.names() == []
        # Nothing had to go for it.
        found = [entry.name for entry in driver.removed()]
        assert found[1:] == ["other one", "vol", "old"]
        assert all(datetime.now(UTC) - e.removed_at < timedelta(60) for e in driver.removed())
        assert Path(driver.restore("vol").path, "file").read_text() == "in vol"
        assert Path(driver.restore(driver.removed()[0].id, "long").path).is_dir()
        driver.remove(driver.get("vol"))
        driver.housekeep(never)
        assert [entry.name for entry in driver.removed()] == ["vol", "other one", "old"]
        assert [entry.name for entry in driver.purge()] == ["old", "other one", "vol"]
        assert os.listdir(place / "scope" / "trash") == []
        assert driver.names() == ["long"]
        assert driver.create("new").name == "new"
        driver.close()

    def test_its_time_comes_too(self, place: Path) -> None:
        driver = LocalDriver(place / "scope", keep_free=0, keep_removed=0)
        write(driver.create("vol").path, "x")
        use_up_inodes(place)
        driver.remove(driver.get("vol"))
        assert len(driver.removed()) == 1
        driver.housekeep(never)
        assert os.listdir(place / "scope" / "trash") == []
        driver.close()

    @needs_root
    def test_at_the_end_of_a_quota(
        self, driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the trash's owner may have no more inodes."""
        volume = driver.create("vol")
        mkdir = os.mkdir

        def refuse(*args: object, **kwargs: object) -> None:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(os, "mkdir", refuse)
        driver.remove(volume)
        monkeypatch.setattr(os, "mkdir", mkdir)
        assert [entry.name for entry in driver.removed()] == ["vol"]
        assert driver.restore("vol").name == "vol"


class TestBrokenEntries:
    @needs_root
    def test_one_that_cannot_be_read_keeps_nobody(
        self, scope: Path, workspace: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Of a scope that is a user's, in which root made something."""
        workspace.chmod(0o777)

        def prepare() -> None:
            driver = LocalDriver(scope, keep_free=0)
            for name in ("first", "second", "third"):
                driver.remove(driver.create(name))
            driver.close()

        run_as(prepare)
        oldest, middle, _ = sorted(os.listdir(scope / "trash"))
        os.chown(scope / "trash" / oldest, 0, 0)
        (scope / "trash" / oldest).chmod(0o700)
        os.chown(scope / "trash" / middle / "removed.json", 0, 0)

        def keep_house() -> tuple[list[str], list[str], list[str]]:
            driver = LocalDriver(scope, keep_free=0, keep_removed=0)
            listed = [entry.name for entry in driver.removed()]
            for _ in range(3):
                driver.housekeep(never)
            driver.close()
            logged = [record.getMessage() for record in caplog.records]
            return listed, os.listdir(scope / "trash"), logged

        listed, left, logged = run_as(keep_house)
        assert listed == ["third", middle]
        assert left == [f".doomed-{oldest}"]
        assert all("Permission denied" in line for line in logged)
        assert [line.partition(scope.name)[2][7:].partition(": ")[0] for line in logged] == [
            f"{oldest} cannot be looked at",
            f"{middle} cannot be read",
            f".doomed-{oldest} cannot be deleted wholly",
        ]

    @needs_root
    def test_on_a_full_filesystem_too(self, scope: Path, workspace: Path) -> None:
        """What is to go early and cannot go is passed over, and does not make it wait for ever."""
        workspace.chmod(0o777)

        def prepare() -> None:
            driver = LocalDriver(scope, keep_free=0)
            for name in ("first", "second"):
                driver.remove(driver.create(name))
            driver.close()

        run_as(prepare)
        oldest, _ = sorted(os.listdir(scope / "trash"))
        os.chown(scope / "trash" / oldest, 0, 0)
        (scope / "trash" / oldest).chmod(0o755)

        def keep_house() -> list[str]:
            driver = LocalDriver(scope, keep_free=1.0)
            driver.housekeep(never)
            driver.close()
            return os.listdir(scope / "trash")

        os.chown(scope / "trash", 0, 0)
        (scope / "trash").chmod(0o1777)
        assert run_as(keep_house) == [oldest]


class TestWhatStays:
    def test_purge_names_it_and_fails(self, scope: Path, driver: LocalDriver) -> None:
        for name in ("web", "db"):
            volume = driver.create(name)
            make_tree(Path(volume.path), 3, 2)
        with immutable(Path(driver.get("web").path, "dir0", "file1")):
            for name in ("web", "db"):
                driver.remove(driver.get(name))
            result = volfs("purge", "--yes", "--scope", str(scope))
            assert result.code == 1
            assert "deleted db (" in result.out
            assert "web" not in result.out
            (line,) = result.err.splitlines()
            (stays,) = [path for path in (scope / "trash").rglob("*") if path.is_file()]
            assert line.startswith("volfs: web (")
            assert line.endswith(f"is not wholly deleted: {stays}: Operation not permitted")
            assert stays.name == "file1"
        driver.housekeep(never)
        assert hidden_entries(scope) == []
        assert volfs("purge", "--yes", "--scope", str(scope)).code == 0

    def test_as_json(self, scope: Path, driver: LocalDriver) -> None:
        volume = driver.create("web")
        write(volume.path, "x")
        with immutable(Path(volume.path, "file")):
            driver.remove(volume)
            result = volfs("purge", "--yes", "--json", "--scope", str(scope))
        assert result.code == 1
        (told,) = result.json
        assert told["name"] == "web"
        (left,) = told["left"]
        assert left.endswith("/file: Operation not permitted")

    def test_a_mount_inside_is_named(self, scope: Path) -> None:
        def attempt() -> tuple[int, str]:
            driver = LocalDriver(scope)
            volume = driver.create("web")
            place = Path(volume.path, "deep", "place")
            place.mkdir(parents=True)
            mount_tmpfs(place)
            driver.remove(volume)
            driver.close()
            result = volfs("purge", "--yes", "--scope", str(scope))
            return result.code, result.err

        code, said = in_namespace(attempt)
        assert code == 1
        assert "place: Device or resource busy" in said

    def test_kept_for_no_time_the_log_names_it(
        self, scope: Path, open_driver: OpenDriver, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        driver = open_driver(keep_removed=0)
        volume = driver.create("web")
        write(volume.path, "x")
        with immutable(Path(volume.path, "file")):
            driver.remove(volume)
            for _ in range(3):
                driver.housekeep(never)
            (message,) = [record.getMessage() for record in caplog.records]
        assert "cannot be deleted wholly" in message
        assert "/file: Operation not permitted" in message

    @needs_root
    def test_subvolumes_do_not_stay(self, filesystems_btrfs: Path) -> None:
        driver = LocalDriver(filesystems_btrfs / "scope")
        volume = driver.create("web")
        make_subvolume(Path(volume.path, "sub"))
        make_tree(Path(volume.path, "sub"), 2, 2)
        make_subvolume(Path(volume.path, "sub", "nested"))
        make_read_only(Path(volume.path, "sub", "nested"))
        driver.remove(volume)
        driver.close()
        result = volfs("purge", "--yes", "--scope", str(filesystems_btrfs / "scope"))
        assert (result.code, result.err) == (0, "")
        assert os.listdir(filesystems_btrfs / "scope" / "trash") == []

    @pytest.fixture
    def filesystems_btrfs(self, workspace: Path) -> Iterator[Path]:
        from tests.filesystems import btrfs

        with btrfs(workspace / "btrfs") as place:
            yield place


class TestWhoPays:
    """ext4 keeps a part of its blocks for root: nobody gets at it by way of labels or volumes."""

    @needs_root
    def test_what_is_kept_of_a_volume_is_its_owners(self, driver: LocalDriver, scope: Path) -> None:
        volume = driver.create(NewVolume("vol", owner=Owner(USER, NOBODY, 0o755)))
        sidecar = scope / "volumes" / "vol" / "volume.json"
        for _ in range(2):
            status = sidecar.stat()
            assert (status.st_uid, status.st_gid) == (USER, NOBODY)
            driver.set_labels(volume, {"a": "b"})
        top = (scope / "volumes" / "vol").stat()
        assert (top.st_uid, top.st_mode & 0o7777) == (os.geteuid(), 0o700)
        # Root's own may be labelled by whoever can write it: not from the reserve either.
        other = driver.create("other")
        driver.set_labels(other, {"a": "b"})
        status = (scope / "volumes" / "other" / "volume.json").stat()
        assert (status.st_uid, status.st_gid) == (0, 0)

    @needs_root
    def test_a_server_may_refuse_the_owner(
        self, driver: LocalDriver, scope: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As NFS does in a directory that only root may enter: then root makes it, and gives it."""

        @contextmanager
        def refused(uid: int, gid: int) -> Iterator[None]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            yield

        monkeypatch.setattr(identity, "owning", refused)
        volume = driver.create(NewVolume("vol", owner=Owner(USER, NOBODY, 0o755)))
        driver.set_labels(volume, {"a": "b"})
        assert driver.get("vol").labels == {"a": "b"}
        for path in (scope / "volumes" / "vol" / "volume.json", Path(volume.path)):
            assert (path.stat().st_uid, path.stat().st_gid) == (USER, NOBODY)
        assert (scope / "volumes" / "vol").stat().st_uid == 0

    @needs_root
    def test_permissions_stay_ours(self, workspace: Path) -> None:
        (workspace / "private").mkdir(mode=0o700)
        with owning(USER, USER):
            (workspace / "private" / "file").touch()
        status = (workspace / "private" / "file").stat()
        assert (status.st_uid, status.st_gid) == (USER, USER)
        (workspace / "file").touch()
        assert (workspace / "file").stat().st_uid == 0
