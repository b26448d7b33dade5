"""Descriptors: what many open files cost the daemon, and who is told when there are no more."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.children import OTHER, USER, Child
from tests.conftest import Mounted, MountFactory, few_descriptors, wait_for

DESCRIPTORS = 20_000
FILES = 12_000


def make_and_hold(top: Path, go: int) -> list[object]:
    """Open FILES new files for writing; use them once a byte from ``go`` arrives."""
    opened = [os.open(top / str(n), os.O_RDWR | os.O_CREAT, 0o600) for n in range(FILES)]
    os.unlink(top / "1")
    for number, fd in enumerate(opened):
        os.write(fd, b"%d" % number)
    told: list[object] = []
    for number in (0, 1, 2, FILES - 1):  # what the daemon has to open again
        fd = opened[number]
        os.ftruncate(fd, 100)
        os.fsync(fd)
        os.posix_fallocate(fd, 0, 8192)
        os.fchmod(fd, 0o640)
        told.append((os.pread(fd, 10, 0).rstrip(b"\0"), os.fstat(fd).st_size, os.fstat(fd).st_mode))
    os.write(go, b"x")
    return told


@pytest.mark.needs_passthrough
def test_files_open_for_writing_cost_the_daemon_nothing(mount: MountFactory) -> None:
    """Two processes have more files open than the daemon may have descriptors."""
    tree = mount(prepare=few_descriptors(DESCRIPTORS))
    volume = tree.mnt / "vol"
    volume.mkdir()
    reader, writer = os.pipe()
    held_reader, held_writer = os.pipe()

    def hold(top: Path) -> list[object]:
        os.close(held_writer)
        told = make_and_hold(top, writer)
        os.read(held_reader, 1)  # ends when the test has looked
        return told

    for name in ("a", "b"):
        (volume / name).mkdir()
    with Child(lambda: hold(volume / "a")) as a, Child(lambda: hold(volume / "b")) as b:
        os.close(writer)
        assert (os.read(reader, 1), os.read(reader, 1)) == (b"x", b"x")
        counted = tree.statistics()
        assert counted["open_files"] == counted["backing_ids"] == 2 * FILES
        assert len(os.listdir(tree.mnt)) == 1
        assert (volume / "a/7").read_text() == "7"
        (volume / "new").mkdir()
        (volume / "new").rmdir()
        os.close(held_writer)
        for child in (a, b):
            told = child.result()
            assert told == [(b"%d" % number, 8192, 0o100640) for number in (0, 1, 2, FILES - 1)]
    os.close(reader)
    os.close(held_reader)
    wait_for(lambda: tree.statistics()["open_files"] == 0, "the files to be closed")


@pytest.mark.needs_passthrough
def test_a_file_is_opened_again_as_it_was(mount: MountFactory) -> None:
    """What needs a descriptor after all, where the one of the open was given back."""
    tree = mount()
    volume = tree.mnt / "vol"
    volume.mkdir()
    (volume / "f").write_bytes(b"content")
    (volume / "program").write_bytes(b"content")
    with ExitStack() as stack:

        def opened(name: str, flags: int) -> int:
            fd = os.open(volume / name, flags)
            stack.callback(os.close, fd)
            return fd

        file = opened("f", os.O_RDWR)
        appending = opened("f", os.O_WRONLY | os.O_APPEND)
        unlinked = opened("program", os.O_RDWR)
        (volume / "program").unlink()
        os.fchmod(unlinked, 0o4755)
        (volume / "f").chmod(0o000)
        for number in range(200):
            opened(str(number), os.O_RDWR | os.O_CREAT)
        assert tree.statistics()["open_files"] == 203
        assert len(held(tree)) < 100
        os.ftruncate(file, 3)
        os.posix_fallocate(file, 0, 100)
        os.write(appending, b"appended")
        os.posix_fallocate(appending, 0, 200)
        os.fdatasync(appending)
        os.ftruncate(unlinked, 5)
        os.pwrite(unlinked, b"CON", 0)
        assert os.pread(unlinked, 10, 0) == b"CONte"
        assert os.pread(file, 200, 0) == b"con" + bytes(97) + b"appended" + bytes(92)


@pytest.mark.needs_passthrough
def test_a_file_without_a_name_is_opened_again(volume: Path) -> None:
    with ExitStack() as stack:
        opened = []
        for _ in range(200):  # more than the daemon keeps descriptors for
            opened.append(os.open(volume, os.O_TMPFILE | os.O_RDWR, 0o600))
            stack.callback(os.close, opened[-1])
        for fd in opened:
            os.write(fd, b"content")
            os.fsync(fd)
            os.posix_fallocate(fd, 0, 20)
            assert os.pread(fd, 30, 0) == b"content" + bytes(13)


@pytest.mark.allow_warnings
def test_one_user_takes_most_descriptors_and_no_other_notices(mount: MountFactory) -> None:
    limit = 512
    tree = mount(prepare=few_descriptors(limit), no_passthrough=True)
    volume = tree.mnt / "vol"
    volume.mkdir(mode=0o777)
    volume.chmod(0o777)
    for number in range(2 * limit):
        (volume / str(number)).write_bytes(b"%d" % number)

    def open_all(first: int, most: int) -> tuple[list[int], str]:
        opened: list[int] = []
        for number in range(first, first + most):
            try:
                opened.append(os.open(volume / str(number), os.O_RDONLY))
            except OSError as error:
                return opened, errno.errorcode[error.errno or 0]
        return opened, ""

    def take() -> tuple[int, str]:
        opened, refused = open_all(0, limit)
        again = open_all(limit, 10)[1]
        assert again == refused
        os.write(told, b"x")
        os.read(asked, 1)
        assert [os.pread(fd, 9, 0) for fd in opened] == [b"%d" % n for n in range(len(opened))]
        return len(opened), refused

    tells, told = os.pipe()
    asked, asks = os.pipe()
    with Child(take, uid=USER) as taker:
        os.read(tells, 1)
        with Child(lambda: open_all(limit, 50)[1], uid=OTHER) as other:
            assert other.result() == ""
        # Look-ups, listings, changes and removals take none for long.
        assert all((volume / str(number)).stat().st_size for number in range(2 * limit))
        assert len(os.listdir(volume)) == 2 * limit
        (tree.mnt / "new").mkdir()
        (tree.mnt / "new/dir").mkdir()
        (tree.mnt / "new/dir/f").write_bytes(b"content")
        (tree.mnt / "new/dir").rename(tree.mnt / "new/moved")
        (tree.mnt / "new").rmdir()
        os.write(asks, b"x")
        count, refused = taker.result()
    for fd in (tells, told, asked, asks):
        os.close(fd)
    assert refused == "ENFILE"
    assert limit // 2 < count < limit * 3 // 4
    warnings = [line for line in tree.log.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert f"uid {USER}" in warnings[0]


def held(tree: Mounted) -> list[str]:
    """The files that the daemon has a descriptor of."""
    own = f"/proc/{tree.pid}/fd"
    names = [os.readlink(f"{own}/{number}") for number in os.listdir(own)]
    return [name for name in names if name.startswith(str(tree.scope / "volumes"))]
