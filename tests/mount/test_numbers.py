"""Inode numbers of filesystems mounted inside volumes: small enough, apart, and always the same."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.conftest import Mounted, MountFactory, few_descriptors, open_workspace
from tests.filesystems import bound, btrfs, ext4, overlay, program, tmpfs

LARGEST = 1 << 48


@contextmanager
def filled(tree: Mounted) -> Iterator[Path]:
    """A volume with two filesystems in it, whose files have the same numbers."""
    (tree.mnt / "vol").mkdir()
    data = tree.data("vol")
    with tmpfs(data / "one"), tmpfs(data / "two"), ext4(data / "disk", size=16 << 20):
        for name in ("one", "two", "disk"):
            (data / name / "file").write_text(name)
        yield data


def numbers(volume: Path) -> dict[str, int]:
    return {
        str(path.relative_to(volume)): path.lstat().st_ino
        for path in volume.rglob("*")
        if path.name != "disk.image"
    }


def test_small_apart_and_listed_as_they_are(mount: MountFactory) -> None:
    """Programs that have numbers as doubles must not take two files for one."""
    tree = mount()
    with filled(tree):
        found = numbers(tree.mnt / "vol")
        assert len(found) == len(set(found.values())) >= 7
        assert max(found.values()) < LARGEST
        for directory in ("one", "two", "disk"):
            with os.scandir(tree.mnt / "vol" / directory) as entries:
                for entry in entries:
                    assert entry.inode() == found[f"{directory}/{entry.name}"]
        tree.stop()


def test_the_same_after_a_remount_in_another_order(mount: MountFactory) -> None:
    """As far as the filesystem says which one it is: statfs(2) has f_fsid."""
    tree = mount()
    with filled(tree):
        first = {name: (tree.mnt / "vol" / name / "file").stat().st_ino for name in ("one", "disk")}
        tree.stop()
        again = mount(scope=tree.scope)
        second = {
            name: (again.mnt / "vol" / name / "file").stat().st_ino for name in ("disk", "one")
        }
        assert first == second
        again.stop()


def test_numbers_that_are_large_already(mount: MountFactory) -> None:
    """A tree in a tree has numbers of more than 32 bits; as a filesystem in a volume, too."""
    below = mount()
    with filled(below), ExitStack() as stack:
        # The tree below, bound into a volume of another tree.
        above = mount()
        (above.mnt / "vol").mkdir()
        target = above.data("vol") / "below"
        target.mkdir()
        stack.enter_context(bound(below.mnt / "vol", target))
        found = numbers(above.mnt / "vol" / "below")
        assert len(found) == len(set(found.values()))
        assert max(found.values()) < LARGEST
        for directory in ("one", "two"):
            with os.scandir(above.mnt / "vol" / "below" / directory) as entries:
                for entry in entries:
                    assert entry.inode() == found[f"{directory}/{entry.name}"]
        above.stop()
        stack.close()
        below.stop()


def test_numbers_of_64_bits(mount: MountFactory, workspace: Path) -> None:
    """As an overlay has them that says by the upper bits which layer a file is in."""
    tree = mount()
    (tree.mnt / "vol").mkdir()
    with tmpfs(workspace / "lower") as lower, tmpfs(workspace / "layers") as layers:
        for number in range(9):
            (lower / f"file{number}").touch()
        top = tree.data("vol") / "overlay"
        with overlay(top, layers, lower=lower, options="xino=on"):
            (top / "new").touch()
            assert (top / "file0").stat().st_ino > 1 << 62
            found = numbers(tree.mnt / "vol")
            assert len(found) == len(set(found.values())) == 11
            assert max(found.values()) < LARGEST
            with os.scandir(tree.mnt / "vol/overlay") as entries:
                for entry in entries:
                    assert entry.inode() == found[f"overlay/{entry.name}"]
            tree.stop()


def test_many_subvolumes_need_no_descriptor_each(mount: MountFactory) -> None:
    """Each has a device number of its own, and all are on one mount."""
    with open_workspace() as workspace, btrfs(workspace / "disk") as disk:
        scope = disk / "scope"
        scope.mkdir()
        tree = mount(scope=scope, prepare=few_descriptors(256))
        create = program("btrfs", "btrfs-progs")
        for number in range(400):
            volume = scope / "volumes" / f"v{number}"
            volume.mkdir()
            subprocess.run(
                [create, "-q", "subvolume", "create", volume / "_data"],
                check=True,
                capture_output=True,
            )
            (volume / "_data" / "file").write_text(str(number))
        for number in range(400):
            assert (tree.mnt / f"v{number}" / "file").read_text() == str(number)
        assert len(os.listdir(tree.mnt)) == 400
        assert len(os.listdir(f"/proc/{tree.pid}/fd")) < 256
        tree.stop()
