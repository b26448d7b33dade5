"""Every name that the disk takes, and trees deeper than a path can name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.children import USER, run_as
from tests.conftest import MountFactory, few_descriptors
from tests.mount.comparing import Pair, outcome
from volfs.linux import syscalls

pytestmark = pytest.mark.no_data

NAMES = {
    "one letter": b"a",
    "255 bytes": b"n" * 255,
    "255 bytes of umlauts": "ü".encode() * 127 + b"n",
    "256 bytes": b"n" * 256,
    "1023 bytes": b"n" * 1023,
    "1025 bytes": b"n" * 1025,
    "not UTF-8": b"\xff\xfe\x80name",
    "cut UTF-8": b"name\xc3",
    "spaces": b" . ",
    "newline": b"a\nb",
    "control": bytes(range(1, 32)),
    "dots": b"...",
    "dash": b"-rf",
    "backslash": b"a\\b",
    "colon": b"a:b",
    "wide": "漢字🙂".encode(),
    "decomposed": "é".encode(),
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_every_name_the_disk_takes(pair: Pair, name: bytes) -> None:
    def operation(top: Path) -> list[object]:
        path = os.fsencode(top) + b"/" + name
        other = path + b"2" if len(name) < 255 else path[:-1] + b"2"
        told: list[object] = [
            outcome(os.lstat, path) if len(name) > 255 else None,
            outcome(lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL))),
            outcome(lambda: sorted(os.listdir(os.fsencode(top)))),
            outcome(os.rename, path, other),
            outcome(os.link, other, path),
            outcome(os.unlink, path),
            outcome(os.mkdir, path),
            outcome(lambda: sorted(os.listdir(os.fsencode(top)))),
            outcome(os.rmdir, path),
            outcome(os.symlink, name[:255], path),
            outcome(os.readlink, path),
            outcome(os.mkfifo, path + b"3"),
        ]
        return told

    pair.same(operation)


def test_a_tree_deeper_than_a_path_can_name(pair: Pair) -> None:
    depth = 3000

    def build() -> tuple[bytes, str]:
        os.chdir(pair.mounted)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("bottom").write_bytes(b"reached")
        read = Path("bottom").read_bytes()
        Path("bottom").unlink()
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")
        return read, os.getcwd()

    assert run_as(build, 0) == (b"reached", str(pair.mounted))
    assert os.listdir(pair.data) == []


def test_tools_walk_and_remove_what_no_path_can_name(pair: Pair) -> None:
    name, depth = "directory" * 5, 150

    def build() -> None:
        os.chdir(pair.mounted)
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        Path("bottom").touch()

    run_as(build, 0)
    command = ["find", ".", "-name", "bottom", "-printf", "%d"]
    found = subprocess.run(command, cwd=pair.mounted, check=True, stdout=-1, text=True).stdout
    assert found == f"{depth + 1}"
    subprocess.run(["rm", "-r", name], cwd=pair.mounted, check=True)
    assert os.listdir(pair.data) == []


def test_a_deep_tree_with_few_descriptors_in_a_mount_of_a_user(mount: MountFactory) -> None:
    """Without file handles, an inode that lost its descriptor is reached from its parents."""
    tree = mount(user=USER, prepare=few_descriptors(256))
    depth = 1000

    def work() -> int:
        (tree.mnt / "v").mkdir()
        os.chdir(tree.mnt / "v")
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("bottom").write_bytes(b"reached")
        here = os.open(".", os.O_RDONLY | os.O_PATH)
        os.chdir(tree.mnt / "v")
        for number in range(300):  # which drives the others out
            os.mkdir(f"other{number}")
        for _ in range(3):
            os.stat("bottom", dir_fd=here)
            os.close(os.open("bottom", os.O_RDWR, dir_fd=here))
        size = os.stat("bottom", dir_fd=here).st_size
        os.chdir("/")
        return size

    assert run_as(work) == len(b"reached")
    subprocess.run(["rm", "-rf", tree.data("v") / "d"], check=True)


def test_what_was_renamed_is_found_again_in_a_mount_of_a_user(mount: MountFactory) -> None:
    """The same, when the names on the way have changed since."""
    tree = mount(user=USER, prepare=few_descriptors(256))

    def work() -> list[bytes]:
        top = tree.mnt / "v"
        held = {}
        for name in ("moved", "into", "one", "two", "over"):
            (top / name / "sub").mkdir(parents=True)
            (top / name / "sub" / "f").write_bytes(name.encode())
            held[name] = os.open(top / name / "sub", os.O_PATH)
        (top / "moved").rename(top / "renamed")
        (top / "into").rename(top / "renamed" / "into")
        syscalls.renameat2(
            syscalls.AT_FDCWD,
            os.fsencode(top / "one"),
            syscalls.AT_FDCWD,
            os.fsencode(top / "two" / "sub"),
            syscalls.RENAME_EXCHANGE,
        )
        (top / "empty").mkdir()
        (top / "over").rename(top / "empty")
        for number in range(300):
            (top / f"other{number}").mkdir()  # which drives the others out
        told = []
        for fd in held.values():
            file = os.open("f", os.O_RDONLY, dir_fd=fd)
            told.append(os.read(file, 10))
            os.close(file)
            os.close(fd)
        return told

    assert run_as(work) == [b"moved", b"into", b"one", b"two", b"over"]
