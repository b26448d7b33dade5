"""Copies of trees: whole, of one point in time, reflinked where that can be."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import resource
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.children import NOBODY, Child, in_namespace, needs_root, run_as
from tests.conftest import open_workspace
from tests.model.scopes import age, hidden_entries
from tests.model.test_scope import mount_tmpfs
from tests.model.trees import depth_of, make_chain, make_tree, seen
from tests.mount.filesystems import bound, btrfs, program, tmpfs, xfs
from volfs import syscalls
from volfs.copying import CopyReport, copy_tree
from volfs.errors import (
    OptionConflictError,
    UnknownOptionError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from volfs.local import LocalDriver
from volfs.trash import never
from volfs.watching import Watch

pytestmark = pytest.mark.any_level

FS_IOC_FIEMAP = 0xC020660B
FIEMAP_EXTENT_SHARED = 0x2000

KINDS = [
    "disk",
    pytest.param("xfs", marks=needs_root),
    pytest.param("btrfs", marks=needs_root),
]


@pytest.fixture(scope="module")
def filesystems() -> Iterator[Callable[[str], Path]]:
    """A directory of a filesystem of that kind: made once."""
    with ExitStack() as stack:
        workspace = stack.enter_context(open_workspace())
        found: dict[str, Path] = {"disk": workspace}

        def get(kind: str) -> Path:
            if kind not in found:
                make = {"xfs": xfs, "btrfs": btrfs}[kind]
                found[kind] = stack.enter_context(make(workspace / kind))
            return found[kind]

        yield get


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest, filesystems: Callable[[str], Path], tmp_path: Path
) -> Path:
    """An empty directory on each kind of filesystem in turn."""
    path = filesystems(request.param) / tmp_path.name
    path.mkdir()
    return path


@pytest.fixture
def source(workspace: Path) -> Path:
    path = workspace / "source"
    path.mkdir()
    return path


@contextmanager
def descriptors(*paths: Path) -> Iterator[list[int]]:
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in paths]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def copy(
    source: Path,
    target: Path,
    *,
    only_reflinked: bool = False,
    on_progress: Callable[[int], None] | None = None,
    stopping: Callable[[], bool] = never,
) -> CopyReport:
    scratch = target.with_name(target.name + ".scratch")
    target.mkdir()
    scratch.mkdir()
    with descriptors(source, target, scratch) as (src, dst, aside):
        return copy_tree(
            src,
            dst,
            aside,
            only_reflinked=only_reflinked,
            on_progress=on_progress,
            stopping=stopping,
        )


def shared_extents(path: Path) -> list[bool]:
    """Whether each extent of a file is shared with another one."""
    with path.open("rb") as file:
        os.fsync(file)
        asked = bytearray(struct.pack("=QQIIII", 0, 2**64 - 1, 0, 0, 64, 0) + bytes(56 * 64))
        fcntl.ioctl(file, FS_IOC_FIEMAP, asked)
    (count,) = struct.unpack_from("=I", asked, 20)
    return [
        bool(struct.unpack_from("=I", asked, 32 + 56 * number + 40)[0] & FIEMAP_EXTENT_SHARED)
        for number in range(count)
    ]


def change_something(top: Path, chance: random.Random, number: int) -> None:
    """Make, replace, move, exchange or link whatever comes up in a tree of few names."""
    directories = [top, *(path for path in top.rglob("*") if path.is_dir())]
    first, second = (chance.choice(directories) / chance.choice("abc") for _ in "12")
    with suppress(OSError):  # not everything is possible everywhere
        match chance.randrange(9):
            case 0 | 1:
                first.mkdir()
            case 2:
                first.write_text(f"{number}")
            case 3:
                first.rename(second)
            case 4 | 5:
                names = os.fsencode(first), os.fsencode(second)
                syscalls.renameat2(-100, names[0], -100, names[1], syscalls.RENAME_EXCHANGE)
            case 6:
                os.link(first, second, follow_symlinks=False)
            case 7:
                first.rmdir() if first.is_dir() else first.unlink()
            case 8:
                first.symlink_to(f"{number}")


class TestWhole:
    def test_all_that_a_directory_can_hold(self, place: Path) -> None:
        source, target = place / "source", place / "target"
        source.mkdir()
        make_tree(source)
        expected = seen(source)
        assert expected["sparse"].sparse and len(expected["data"].names) == 3
        report = copy(source, target)
        assert report.is_point_in_time
        assert seen(target) == expected
        assert seen(source) == expected

    def test_access_times(self, source: Path) -> None:
        make_tree(source)
        names = ["data", "dir", "fifo", "."]  # links are read, and their times may show it
        expected = [(source / name).lstat().st_atime_ns for name in names]
        copy(source, source.with_name("target"))
        found = [(source.with_name("target") / name).lstat().st_atime_ns for name in names]
        assert found == expected

    @needs_root
    @pytest.mark.parametrize("kind", ["xfs", "btrfs"])
    def test_data_is_shared_where_it_can_be(
        self, filesystems: Callable[[str], Path], kind: str, tmp_path: Path
    ) -> None:
        place = filesystems(kind) / tmp_path.name
        source = place / "source"
        source.mkdir(parents=True)
        for number in range(4):
            (source / f"file{number}").write_bytes(os.urandom(20 << 20))
        os.sync()
        before = os.statvfs(place)
        report = copy(source, place / "target", only_reflinked=True)
        assert (report.is_reflinked, report.cloned, report.copied) == (True, 4, 0)
        assert all(shared_extents(place / "target" / "file0"))
        os.sync()
        after = os.statvfs(place)
        assert (before.f_bfree - after.f_bfree) * after.f_bsize < 10 << 20
        (place / "target" / "file0").write_bytes(b"mine")
        assert (source / "file0").stat().st_size == 20 << 20

    def test_elsewhere_it_is_copied(self, source: Path) -> None:
        make_tree(source)
        report = copy(source, source.with_name("target"))
        assert not report.is_reflinked
        assert report.copied >= 3
        assert 3 << 20 <= report.size < 64 << 20  # no holes

    @needs_root
    def test_to_another_filesystem(self, source: Path) -> None:
        make_tree(source)
        with tmpfs(source.with_name("memory")) as other:
            assert copy(source, other / "target").is_point_in_time
            assert seen(other / "target") == seen(source)

    def test_depth_costs_neither_descriptors_nor_recursion(self, source: Path) -> None:
        def attempt() -> tuple[bool, int]:
            mount_tmpfs(source)  # for speed
            (source / "deep").mkdir()
            make_chain(source / "deep", 3_000)
            spare = len(os.listdir("/proc/self/fd")) + 64
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare, spare))
            report = copy(source / "deep", source / "target")
            return report.is_point_in_time, depth_of(source / "target")

        assert in_namespace(attempt) == (True, 3_000)

    def test_a_file_with_as_many_names_as_there_can_be(
        self, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As with 65000 on ext4."""
        (source / "a").write_text("x")
        for name in ("b", "c"):
            os.link(source / "a", source / name)
        link = os.link

        def limited(src: str, dst: str, *, src_dir_fd: int, **others: Any) -> None:
            if os.stat(src, dir_fd=src_dir_fd).st_nlink == 3:
                raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
            link(src, dst, src_dir_fd=src_dir_fd, **others)

        time.sleep(0.05)  # so that one round is enough
        monkeypatch.setattr(os, "link", limited)
        copy(source, source.with_name("target"))
        monkeypatch.undo()
        assert seen(source.with_name("target")) == seen(source)

    @needs_root
    def test_what_is_mounted_inside_stays_outside(self, source: Path) -> None:
        (source / "below").mkdir()
        (source / "covered").write_text("of the volume")
        (source / "kept").write_text("kept")
        outside = source.with_name("outside")
        outside.mkdir()
        (outside / "file").write_text("of another filesystem")
        target = source.with_name("target")
        with bound(outside, source / "below"), bound(outside / "file", source / "covered"):
            report = copy(source, target)
        assert report.is_point_in_time
        assert sorted(os.listdir(target)) == ["below", "kept"]
        assert os.listdir(target / "below") == []

    @needs_root
    def test_subvolumes_of_btrfs_are_part_of_it(
        self, filesystems: Callable[[str], Path], tmp_path: Path
    ) -> None:
        source = filesystems("btrfs") / tmp_path.name
        source.mkdir()
        create = [program("btrfs", "btrfs-progs"), "subvolume", "create"]
        subprocess.run([*create, source / "sub"], check=True, capture_output=True)
        (source / "sub" / "file").write_text("x" * 100_000)
        target = source.with_name(tmp_path.name + "-target")
        assert copy(source, target).is_reflinked
        assert (target / "sub" / "file").read_text() == "x" * 100_000

    def test_a_user_copies_what_is_theirs(self, workspace: Path) -> None:
        def attempt() -> bool:
            os.mkdir(workspace / "mine" / "source")
            make_tree(workspace / "mine" / "source")
            copy(workspace / "mine" / "source", workspace / "mine" / "target")
            return seen(workspace / "mine" / "target") == seen(workspace / "mine" / "source")

        (workspace / "mine").mkdir()
        os.chown(workspace / "mine", NOBODY, NOBODY)
        assert run_as(attempt, NOBODY)

    @needs_root
    @pytest.mark.parametrize("what", ["owner", "device", "forbidden"])
    def test_what_only_root_can_copy_is_named(self, source: Path, what: str) -> None:
        (source / "dir").mkdir()
        file = source / "dir" / "file"
        if what == "device":
            os.mknod(file, 0o20666, os.makedev(1, 3))
        else:
            file.touch(0o600 if what == "forbidden" else 0o644)
        target = source.with_name("mine")
        target.mkdir(0o777)
        target.chmod(0o777)
        for path in (source, source / "dir"):
            os.chown(path, NOBODY, NOBODY)

        def attempt() -> str:
            try:
                copy(source, target / "copy")
            except PermissionError as error:
                return f"{error.filename}"
            return "copied"

        assert run_as(attempt, NOBODY) == "dir/file"


class TestPointInTime:
    def test_what_changes_meanwhile_is_copied_again(self, source: Path) -> None:
        make_tree(source)
        (source / "late").write_text("old")
        changed: list[int] = []

        def change(count: int) -> None:
            """Something of each kind of change, once something was copied."""
            if changed:
                return
            changed.append(count)
            (source / "late").write_text("new")
            (source / "text").write_text("HELLO")
            (source / "added").mkdir()
            (source / "added" / "file").write_text("added")
            (source / "fifo").unlink()
            (source / "dir" / "deeper").rename(source / "moved")
            (source / "empty").chmod(0o640)
            (source / "sparse").unlink()
            (source / "sparse").mkdir()
            os.link(source / "hole", source / "hole too")
            os.setxattr(source / "dir", "user.note", b"changed")

        report = copy(source, source.with_name("target"), on_progress=change)
        assert changed
        assert report.is_point_in_time
        assert seen(source.with_name("target")) == seen(source)

    def test_a_change_in_the_same_tick_with_the_same_size(self, source: Path) -> None:
        """As a program does that keeps the modification time."""
        (source / "file").write_text("old")
        status = (source / "file").stat()
        done: list[int] = []

        def change(count: int) -> None:
            if not done:
                done.append(count)
                (source / "file").write_text("new")
                os.utime(source / "file", ns=(status.st_atime_ns, status.st_mtime_ns))

        report = copy(source, source.with_name("target"), on_progress=change)
        assert report.is_point_in_time
        assert (source.with_name("target") / "file").read_text() == "new"

    def test_what_never_rests_is_told(self, source: Path) -> None:
        for number in range(10):
            (source / f"still{number}").write_text("still")
        (source / "dir").mkdir()
        (source / "dir" / "busy").write_bytes(bytes(8 << 20))
        number = 0

        def change(count: int) -> None:
            nonlocal number
            number += 1
            with (source / "dir" / "busy").open("r+b") as file:
                file.write(b"%d" % number)

        report = copy(source, source.with_name("target"), on_progress=change)
        assert not report.is_point_in_time
        assert (report.changed, report.examples) == (1, ("dir/busy",))

    @pytest.mark.parametrize("kind", KINDS)
    def test_two_files_that_a_writer_keeps_equal(
        self, filesystems: Callable[[str], Path], kind: str, tmp_path: Path
    ) -> None:
        """A writer changes one file, then the other, now and then: a copy that is said to be
        of one point in time has them at most one step apart, and in that order."""
        source = filesystems(kind) / tmp_path.name / "source"
        source.mkdir(parents=True)
        for name in ("a", "b"):
            (source / name).write_text("0")
        for number in range(300):
            (source / f"other{number}").write_text("x")
        ended = threading.Event()

        def write() -> None:
            number = 0
            while not ended.wait(0.04):
                number += 1
                for name in ("a", "b"):
                    (source / f".{name}").write_text(f"{number}")
                    (source / f".{name}").rename(source / name)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(8):
                target = source.with_name(f"target{number}")
                report = copy(source, target)
                a, b = (int((target / name).read_text()) for name in ("a", "b"))
                if report.is_point_in_time:
                    assert a - b in (0, 1)
        finally:
            ended.set()
            writer.join()

    def test_links_put_in_the_place_of_directories_lead_nowhere(self, source: Path) -> None:
        outside = source.with_name("outside")
        outside.mkdir()
        (outside / "secret").write_text("secret")
        for number in range(40):
            (source / f"dir{number}").mkdir()
            (source / f"dir{number}" / "file").write_text("x")
        (source / "link").symlink_to(outside)

        def swap() -> None:
            fd = os.open(source, os.O_RDONLY)
            while True:
                for number in range(40):
                    name = b"dir%d" % number
                    syscalls.renameat2(fd, name, fd, b"link", syscalls.RENAME_EXCHANGE)

        with Child(swap):
            for number in range(3):
                target = source.with_name(f"target{number}")
                report = copy(source, target)
                assert not report.is_point_in_time
                assert not list(target.rglob("secret"))

    def test_a_directory_taken_out_of_the_tree_does_not_lead_out(self, source: Path) -> None:
        """Deep below it, the way back up is another one than the way down."""
        outside = source.with_name("outside")
        make_chain(source, 60)
        for number in range(8):
            (outside / f"name{number}").mkdir(parents=True)
            (outside / f"name{number}" / "secret").write_text("secret")
            (source / f"d/d/d/name{number}").mkdir()
        target = source.with_name("target")
        met = 0
        leaked: list[Path] = []

        def stopping() -> bool:
            nonlocal met
            met += 1
            if met == 120:  # about 50 levels deep
                (source / "d/d/d/d").rename(outside / "d")
            if met > 120:
                leaked.extend(target.glob("d/d/d/*/secret"))
            return False

        report = copy(source, target, stopping=stopping)
        assert (outside / "d").is_dir()
        assert leaked == []
        assert report.is_point_in_time
        assert seen(target) == seen(source)

    def test_directories_exchanged_to_and_fro(self, source: Path) -> None:
        """Inode numbers of what is replaced in the copy must not come to mean something else."""
        for name in ("a", "b"):
            (source / name).mkdir()
            (source / name / "file").write_text(name)
        time.sleep(0.1)
        count = 0

        def change(_: int) -> None:
            nonlocal count
            count += 1
            if count in (2, 3):  # when both were copied, and when one of them was once more
                with descriptors(source) as (fd,):
                    syscalls.renameat2(fd, b"a", fd, b"b", syscalls.RENAME_EXCHANGE)

        target = source.with_name("target")
        report = copy(source, target, on_progress=change)
        assert report.is_point_in_time
        assert seen(target) == seen(source)

    @pytest.mark.parametrize("seed", range(12))
    def test_after_any_changes_it_is_one_of_the_states_that_there_were(
        self, source: Path, seed: int
    ) -> None:
        chance = random.Random(seed)
        for number in range(6):
            change_something(source, chance, number)
        time.sleep(0.05)
        left = iter(range(6, chance.choice((10, 60, 200))))
        states = [seen(source)]

        def stopping() -> bool:
            if chance.random() < 0.3 and (number := next(left, None)) is not None:
                change_something(source, chance, number)
                states.append(seen(source))
            return False

        target = source.with_name("target")
        report = copy(source, target, stopping=stopping)
        assert report.is_point_in_time or len(states) > 5
        if report.is_point_in_time:
            assert seen(target) in states

    def test_written_through_mappings(self, source: Path) -> None:
        """A page that is dirty can be written without a change of the file's times."""
        step = 0

        def change(count: int) -> None:
            nonlocal step
            step += 1
            if step < 3:  # one of the two was copied, or both
                for mapping in mappings:
                    mapping[0:1] = b"%d" % step
                time.sleep(0.1)  # then that change is none of this tick

        for name in ("a", "b"):
            (source / name).write_bytes(bytes(1 << 20))
        time.sleep(0.1)
        with ExitStack() as stack:
            files = [stack.enter_context((source / name).open("r+b")) for name in ("a", "b")]
            mappings = [stack.enter_context(mmap.mmap(file.fileno(), 0)) for file in files]
            report = copy(source, source.with_name("target"), on_progress=change)
        assert report.is_point_in_time
        assert [(source.with_name("target") / name).read_bytes()[:1] for name in "ab"] == [b"2"] * 2

    def test_what_was_changed_just_now_is_not_trusted(self, source: Path) -> None:
        """Its next change may have the same time, where times are those of clock ticks."""
        (source / "file").write_text("x")
        time.sleep(0.1)
        assert copy(source, source.with_name("later")).copied == 1
        (source / "file").write_text("y")
        assert copy(source, source.with_name("at once")).copied == 2

    def test_a_watch_tells_what_changed(self, source: Path) -> None:
        make_tree(source)
        with descriptors(source) as (top,):
            watch = Watch(top)
            watch.begin()
            assert watch.end() == (0, ())
            (source / "text").write_text("other")
            (source / "dir" / "new").mkdir()
            count, names = watch.end()
            assert (count, sorted(names)) == (3, ["dir", "dir/new", "text"])


class TestStopping:
    def test_it_ends_soon(self, source: Path) -> None:
        make_tree(source)
        left = iter(range(7))
        with pytest.raises(InterruptedError):
            copy(source, source.with_name("target"), stopping=lambda: next(left, None) is None)

    def test_within_a_file(self, source: Path) -> None:
        (source / "large").write_bytes(bytes(100 << 20))
        done: list[int] = []
        with pytest.raises(InterruptedError):
            copy(
                source,
                source.with_name("target"),
                on_progress=done.append,
                stopping=lambda: bool(done),
            )
        assert done[0] < 100 << 20


class TestVolumes:
    def test_starts_as_a_copy(self, driver: LocalDriver) -> None:
        source = driver.create("source", labels={"a": "b"})
        make_tree(Path(source.path))
        volume = driver.create("copy", {"from": "source"}, labels={"c": "d"})
        assert seen(Path(volume.path)) == seen(Path(source.path))
        assert (volume.labels, volume.options) == ({"c": "d"}, {"from": "source"})
        assert driver.get("copy").options == {"from": "source"}

    @needs_root
    def test_owner_and_mode_as_told_else_as_in_the_source(self, driver: LocalDriver) -> None:
        source = driver.create("source", {"uid": "7", "gid": "8", "mode": "2750"})
        (Path(source.path) / "file").touch()
        plain = os.stat(driver.create("plain", {"from": "source"}).path)
        assert (plain.st_uid, plain.st_gid, plain.st_mode & 0o7777) == (7, 8, 0o2750)
        told = os.stat(driver.create("told", {"from": "source", "gid": "9", "mode": "700"}).path)
        assert (told.st_uid, told.st_gid, told.st_mode & 0o7777) == (7, 9, 0o700)

    def test_again_it_is_the_one_that_is_there(self, driver: LocalDriver) -> None:
        source = driver.create("source")
        (Path(source.path) / "file").write_text("x")
        volume = driver.create("copy", {"from": "source"})
        driver.remove(driver.get("source"))
        (Path(volume.path) / "file").write_text("mine")
        assert driver.create("copy", {"from": "source"}) == volume
        assert driver.create("copy") == volume
        assert (Path(volume.path) / "file").read_text() == "mine"
        with pytest.raises(OptionConflictError):
            driver.create("copy", {"from": "other"})

    def test_a_source_that_is_not_there_is_named(self, driver: LocalDriver, scope: Path) -> None:
        with pytest.raises(VolumeNotFoundError, match="'source'"):
            driver.create("copy", {"from": "source"})
        with pytest.raises(VolumeNotFoundError, match="'copy'"):
            driver.create("copy", {"from": "copy"})
        assert driver.names() == []
        assert hidden_entries(scope) == []

    def test_a_clone_has_labels_and_options_of_its_source(self, driver: LocalDriver) -> None:
        source = driver.create("source", {"mode": "711", "path": "native"}, labels={"a": "1"})
        os.chmod(source.path, 0o710)
        volume, report = driver.clone("source", "copy", labels={"b": "2"})
        assert report.is_point_in_time
        assert volume.labels == {"a": "1", "b": "2"}
        assert volume.options == {"mode": "711", "path": "native", "from": "source"}
        assert os.stat(volume.path).st_mode & 0o777 == 0o710
        with pytest.raises(VolumeExistsError):
            driver.clone("source", "copy")
        with pytest.raises(UnknownOptionError):
            driver.clone("source", "other", {"color": "red"})

    def test_a_source_elsewhere(self, driver: LocalDriver, workspace: Path) -> None:
        """An administrator made its data path a link."""
        source = Path(driver.create("source").path)
        source.rmdir()
        (workspace / "elsewhere").mkdir()
        (workspace / "elsewhere" / "file").write_text("x")
        source.symlink_to(workspace / "elsewhere")
        volume = driver.create("copy", {"from": "source"})
        assert not Path(driver.scope, "volumes", "copy", "_data").is_symlink()
        assert (Path(volume.path) / "file").read_text() == "x"
        (workspace / "elsewhere").rename(workspace / "unmounted")
        with pytest.raises(VolumeNotFoundError, match="elsewhere"):
            driver.create("other", {"from": "source"})

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
        monkeypatch.setattr("volfs.staging._TOUCH", 0.0)
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

    def test_a_snapshot_goes_when_it_was_used(
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
            with driver.snapshot("source") as snapshot:
                assert snapshot is not None
                data, report = snapshot
                assert report.is_point_in_time
                (source / "text").write_text("changed")
                found = seen(Path(os.readlink(f"/proc/self/fd/{data}")))
                assert found == expected
            assert hidden_entries(scope) == []
        finally:
            driver.close()

    def test_without_reflinks_there_is_no_snapshot(self, driver: LocalDriver, scope: Path) -> None:
        make_tree(Path(driver.create("source").path))
        with driver.snapshot("source") as snapshot:
            assert snapshot is None
            assert hidden_entries(scope) == []
