"""What only the tap answers, from a daemon that is not root's, to the user whose it is."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.children import NOBODY, run_as
from tests.conftest import Mounted, MountFactory
from tests.mount.comparing import outcome
from tests.mount.test_inode_flags import FS_IMMUTABLE_FL, FS_NODUMP_FL, change, get
from tests.mount.test_unnamed import name_it, unnamed
from volfs.linux import syscalls

pytestmark = [pytest.mark.needs_tap, pytest.mark.no_data]

MIB = 1 << 20


@pytest.fixture
def own(mount: MountFactory) -> Mounted:
    """A mount of an unprivileged user with a volume."""
    tree = mount(user=NOBODY)
    run_as(lambda: (tree.mnt / "vol").mkdir(), NOBODY)
    return tree


def as_owner(tree: Mounted, call: Callable[[Path], object]) -> list[object]:
    """What comes of ``call``, as the user, in a plain directory and in the volume."""
    plain = tree.scope / "plain"
    run_as(plain.mkdir, NOBODY)
    return [run_as(lambda top=top: call(top), NOBODY) for top in (plain, tree.mnt / "vol")]  # type: ignore[misc]


def test_ranges(own: Mounted) -> None:
    def call(top: Path) -> object:
        source = os.open(top / "source", os.O_WRONLY | os.O_CREAT)
        target = os.open(top / "target", os.O_WRONLY | os.O_CREAT)
        reading = os.open(top / "source", os.O_RDONLY)
        os.pwrite(source, b"x" * 4096, MIB)
        syscalls.fallocate(source, 0, 0, 4 * MIB)
        hole = syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE
        syscalls.fallocate(source, hole, 2 * MIB, MIB)
        os.fsync(source)
        return [
            os.lseek(reading, 0, os.SEEK_DATA),
            os.lseek(reading, MIB, os.SEEK_HOLE),
            os.copy_file_range(reading, target, 2 * MIB, 0, 0),
            os.stat(top / "source").st_blocks,
            (top / "target").read_bytes(),
            outcome(syscalls.fallocate, source, 0, 0, 1 << 62),
        ]

    plain, volume = as_owner(own, call)
    assert volume == plain


def test_unnamed_files(own: Mounted) -> None:
    def call(top: Path) -> object:
        with unnamed(top, mode=0o640) as fd:
            os.write(fd, b"content")
            name_it(fd, top / "name")
        return (top / "name").read_bytes(), os.stat(top / "name").st_mode, os.listdir(top)

    plain, volume = as_owner(own, call)
    assert volume == plain


def test_inode_flags(own: Mounted) -> None:
    def call(top: Path) -> object:
        path = top / "file"
        path.touch()
        before = get(path)
        change(path, before | FS_NODUMP_FL)
        return get(path), outcome(change, path, before | FS_IMMUTABLE_FL)

    plain, volume = as_owner(own, call)
    assert volume == plain
    assert isinstance(volume, tuple)
    assert volume[1] == errno.errorcode[errno.EPERM]


def test_space_and_birth_times(own: Mounted) -> None:
    def call(top: Path) -> object:
        (top / "file").touch()
        command = ["stat", "--format=%w", str(top / "file")]
        born = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return os.statvfs(top).f_blocks, born.strip() != "-"

    plain, volume = as_owner(own, call)
    assert volume == plain
