"""statfs(2) through the tree: each volume shows the filesystem that its data is on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import filesystems
from tests.conftest import Mounted, mounting, open_workspace, wait_for

pytestmark = [pytest.mark.needs_tap, pytest.mark.no_data]

MIB = 1 << 20

FIELDS = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax")


@pytest.fixture(scope="module")
def apart() -> Iterator[Mounted]:
    """A mount with three volumes: "here" on the scope's filesystem, "there" on another that an
    administrator mounted on its data path, "linked" on a third that its data path leads to."""
    with ExitStack() as stack:
        workspace = stack.enter_context(open_workspace())
        scope = workspace / "scope"
        volumes = scope / "volumes"
        for name in ("here", "there", "linked"):
            (volumes / name).mkdir(parents=True)
        (volumes / "here" / "_data").mkdir()
        stack.enter_context(filesystems.tmpfs(volumes / "there" / "_data", size="8m"))
        disk = stack.enter_context(filesystems.ext4(workspace / "disk", size=16 * MIB, reserved=10))
        (disk / "data").mkdir()
        (volumes / "linked" / "_data").symlink_to(disk / "data")
        yield stack.enter_context(mounting(workspace))(scope=scope)


def fields(path: Path) -> dict[str, int]:
    """What statvfs(3) says, without what is the mount's own: its flags and its id."""
    status = os.statvfs(path)
    return {name: getattr(status, f"f_{name}") for name in FIELDS}


@pytest.mark.parametrize("name", ["there", "linked"])
def test_a_volume_shows_its_own_filesystem(apart: Mounted, name: str) -> None:
    expected = fields(apart.data(name))
    # The kernel has no place in the protocol for what root may not use of the inodes.
    assert expected["favail"] == expected["ffree"]
    assert fields(apart.mnt / name) == expected


@pytest.mark.parametrize("name", ["there", "linked"])
def test_so_does_everything_below_it(apart: Mounted, name: str) -> None:
    top = apart.mnt / name
    (top / "below").mkdir(exist_ok=True)
    (top / "below" / "file").write_bytes(bytes(3 * MIB))
    descriptor = os.open(top / "below" / "file", os.O_RDONLY)
    try:
        expected = fields(apart.data(name))
        assert fields(top / "below") == fields(top / "below" / "file") == expected
        assert os.fstatvfs(descriptor).f_bfree == expected["bfree"]
    finally:
        os.close(descriptor)


def test_the_root_shows_the_scopes(apart: Mounted) -> None:
    blocks = {os.statvfs(apart.data(name)).f_blocks for name in ("there", "linked")}
    for path in (apart.mnt, apart.mnt / "here"):
        status, scope = os.statvfs(path), os.statvfs(apart.scope)
        assert (status.f_blocks, status.f_files) == (scope.f_blocks, scope.f_files)
        assert status.f_blocks not in blocks


def df(path: Path) -> list[str]:
    command = ["df", "--output=size,used,avail,itotal,iused", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("name", ["there", "linked"])
def test_df_of_a_volume(apart: Mounted, name: str) -> None:
    assert df(apart.mnt / name) == df(apart.data(name))
    assert df(apart.mnt / name) != df(apart.mnt)


def test_what_is_written_is_seen_at_once(apart: Mounted) -> None:
    top = apart.mnt / "there"
    before = os.statvfs(top)
    (top / "more").write_bytes(bytes(2 * MIB))
    after = os.statvfs(top)
    assert (before.f_bfree - after.f_bfree) * after.f_bsize == 2 * MIB
    assert before.f_ffree - after.f_ffree == 1
    (top / "more").unlink()
    # The blocks are free once the daemon was told to forget the file.
    wait_for(lambda: os.statvfs(top).f_bfree == before.f_bfree, "the blocks to be free")
    assert fields(top) == fields(apart.data("there"))


def test_an_open_file_that_was_deleted(apart: Mounted) -> None:
    path = apart.mnt / "there" / "deleted"
    with path.open("wb") as file:
        path.unlink()
        assert os.fstatvfs(file.fileno()).f_blocks == os.statvfs(apart.data("there")).f_blocks
