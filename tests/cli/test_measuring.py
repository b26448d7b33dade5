"""Measuring directories, compared with du(1)."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import pytest

from tests.conftest import open_descriptors
from volfs.cli.measuring import Space, measure

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")


def du(path: Path) -> int:
    return int(subprocess.check_output(["du", "-s", "-x", "-B1", path], text=True).split()[0])


def test_as_du_counts(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 2**20)
    os.link(tmp_path / "big", tmp_path / "the same")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**30)
    (tmp_path / "dir/deeper").mkdir(parents=True)
    (tmp_path / "dir/deeper/file").write_text("x")
    (tmp_path / "dir/link").symlink_to("/usr")
    os.mkfifo(tmp_path / "dir/pipe")
    before = open_descriptors()
    assert measure(str(tmp_path)) == Space(du(tmp_path), 8)
    assert open_descriptors() == before


@needs_root
def test_other_filesystems_are_not_entered(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "disk", tmp_path / "disk"], check=True)
    try:
        (tmp_path / "disk/file").write_bytes(b"x" * 2**20)
        assert measure(str(tmp_path)) == Space(du(tmp_path), 1)
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        measure(str(tmp_path / "nothing"))
    (tmp_path / "link").symlink_to("/usr")
    with pytest.raises(OSError):
        measure(str(tmp_path / "link"))


def test_tells_how_far_it_has_come(tmp_path: Path) -> None:
    for number in range(1200):
        (tmp_path / str(number)).touch()
    told: list[Space] = []
    total = measure(str(tmp_path), told.append)
    assert [space.entries for space in told] == [500, 1000]
    assert total.entries == 1201
    assert all(space.size <= total.size for space in told)


def test_deeper_than_there_are_descriptors(tmp_path: Path) -> None:
    """It says so: half of a tree must not pass for the whole."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 10
    here = tmp_path
    for _ in range(limit):
        here /= "d"
        here.mkdir()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            measure(str(tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert measure(str(tmp_path)).entries == limit + 1
