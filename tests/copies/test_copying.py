"""Copies of trees: whole, reflinked where that can be, and broken off."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.children import NOBODY, in_namespace, needs_root, run_as
from tests.copies.copying import KINDS, copy
from tests.copies.trees import depth_of, make_chain, make_tree, seen
from tests.filesystems import bound, program, tmpfs
from tests.local.test_scope import mount_tmpfs

pytestmark = pytest.mark.any_level

FS_IOC_FIEMAP = 0xC020660B
FIEMAP_EXTENT_SHARED = 0x2000


@pytest.fixture(params=KINDS)
def place(
    request: pytest.FixtureRequest, filesystems: Callable[[str], Path], tmp_path: Path
) -> Path:
    """An empty directory on each kind of filesystem in turn."""
    path = filesystems(request.param) / tmp_path.name
    path.mkdir()
    return path


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
