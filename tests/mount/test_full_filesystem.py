"""A filesystem that fills up: the reserve is root's, the errors are as natively, nothing is lost.

With passthrough the kernel writes for the caller with credentials that the daemon lends it, so
the reserve could be lent too.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.children import OTHER, USER, Child, run_as
from tests.conftest import Mounted, MountFactory, mounting, open_workspace, wait_for
from tests.filesystems import ext4
from tests.mount.comparing import Pair, outcome
from tests.mount.conftest import make_pair
from tests.mount.test_reading_and_writing import content
from volfs.linux import syscalls

MIB = 1 << 20
BLOCK = 4096
NEARLY = 32 * BLOCK
"""What may be left: ext4 counts free blocks for each processor, and asks for what it may need."""


@pytest.fixture(scope="module")
def small() -> Iterator[Mounted]:
    """A mount of a scope on an ext4 of 24 MiB, of which a tenth is reserved for root."""
    with (
        open_workspace() as workspace,
        ext4(workspace / "small", size=24 * MIB, reserved=10) as place,
        mounting(workspace) as mount,
    ):
        (place / "scope").mkdir()
        yield mount(scope=place / "scope")


@pytest.fixture
def full(small: Mounted) -> Iterator[Pair]:
    """A volume and a plain directory there, which everybody can fill; emptied afterwards."""
    pair = make_pair(small)
    pair.chmod(0o777)
    available = room(pair.native)[0]
    yield pair
    for path in (*pair.mounted.iterdir(), *pair.native.iterdir()):
        path.unlink()
    # The space of a removed file is there again, since nobody has it open.
    wait_for(lambda: room(pair.native)[0] >= available - NEARLY, "the space", 5.0)


def fill(path: Path, piece: int = 65_536) -> tuple[int, str]:
    """Write until there is no more room: how much there was, and the errno."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    done = 0
    try:
        while True:
            wanted = content(piece, done // piece)[done % piece :]
            count = outcome(os.write, fd, wanted)
            if isinstance(count, str):
                return done, count
            done += count
    finally:
        os.close(fd)


def assert_filled(path: Path, size: int, piece: int = 65_536) -> None:
    """The file has what ``fill`` wrote, and only that."""
    assert path.stat().st_size == size
    with path.open("rb") as file:
        for number, start in enumerate(range(0, size, piece)):
            assert file.read(piece) == content(piece, number)[: size - start], start


def room(path: Path) -> tuple[int, int]:
    """Bytes available to users, and to root."""
    fd = os.open(path, os.O_RDONLY)
    ctypes.CDLL(None).syncfs(fd)  # deleted files give their blocks back with the journal
    os.close(fd)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize, status.f_bfree * status.f_frsize


def test_a_user_fills_the_filesystem_up_to_the_reserve(full: Pair) -> None:
    """As natively; root's tenth stays."""
    available, free = room(full.native)
    assert free - available > 2 * MIB
    expected, code = run_as(partial(fill, full.native / "f"))
    left, reserve = room(full.native)
    assert code == "ENOSPC" and left <= NEARLY and reserve >= free - available
    (full.native / "f").unlink()
    assert room(full.native)[0] == available

    written, code = run_as(partial(fill, full.mounted / "f"))
    assert code == "ENOSPC"
    assert abs(written - expected) <= NEARLY
    left, reserve = room(full.native)
    assert left <= NEARLY and reserve >= free - available
    assert_filled(full.mounted / "f", written)
    assert_filled(full.data / "f", written)
    # Nor does any other way of writing, by a descriptor that root opened.
    block = mmap.mmap(-1, NEARLY)
    with (full.mounted / "f").open("r+b", buffering=0) as file:
        direct = os.open(full.mounted / "f", os.O_WRONLY | os.O_DIRECT)

        def more() -> None:
            for number in range(32):
                at = 24 * MIB + number * NEARLY
                outcome(os.pwrite, file.fileno(), b"x" * NEARLY, at)
                outcome(os.pwritev, direct, [block], at + 32 * NEARLY)

        run_as(more)
        os.close(direct)
    assert room(full.native)[1] >= free - available
    (full.mounted / "f").unlink()
    wait_for(lambda: room(full.native)[0] == available, "the space", 5.0)


@pytest.mark.parametrize("size", [0, 64 * MIB], ids=["growing", "into a hole"])
def test_a_direct_write_says_that_there_is_no_room(full: Pair, size: int) -> None:
    """As natively, whether it makes the file longer or not; not EIO, as for a broken disk."""

    def fill_directly(path: Path) -> object:
        # In pieces that are one request each, the last of which is written in part.
        block = mmap.mmap(-1, 239 * BLOCK)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o666)
        try:
            os.truncate(path, size)
            for start in range(0, 48 * MIB, len(block)):
                count = outcome(os.pwritev, fd, [block], start)
                if isinstance(count, str):
                    return count
        finally:
            os.close(fd)
        return None

    expected = run_as(partial(fill_directly, full.native / "f"))
    (full.native / "f").unlink()
    wait_for(lambda: room(full.native)[0] > 8 * MIB, "the space", 5.0)
    assert expected == "ENOSPC"
    assert run_as(partial(fill_directly, full.mounted / "f")) == "ENOSPC"


def test_a_full_filesystem_says_so_and_loses_nothing(full: Pair) -> None:
    """What was there stays, and room that is made is there at once."""
    kept = content(300_000, 7)
    (full.mounted / "kept").write_bytes(kept)
    written, code = run_as(partial(fill, full.mounted / "f"))
    assert code == "ENOSPC" and written > 15 * MIB
    assert_filled(full.data / "f", written)
    assert (full.mounted / "kept").read_bytes() == kept == (full.data / "kept").read_bytes()
    # A new file can be made, if not filled, and one that is there can be written over.
    assert run_as(lambda: outcome((full.mounted / "g").write_bytes, b"x" * 3 * MIB)) == "ENOSPC"
    with (full.mounted / "kept").open("r+b", buffering=0) as file:
        file.write(b"overwritten")
        os.fsync(file.fileno())
    assert (full.data / "kept").read_bytes() == b"overwritten" + kept[11:]
    os.truncate(full.mounted / "f", written // 2)
    (full.mounted / "g").unlink()
    wait_for(lambda: room(full.native)[0] > 2 * MIB, "the space", 5.0)
    run_as(partial((full.mounted / "h").write_bytes, content(MIB, 9)))
    assert (full.data / "h").read_bytes() == content(MIB, 9)


def test_two_fill_it_at_once(full: Pair) -> None:
    paths = [full.mounted / "one", full.mounted / "two"]
    with (
        Child(partial(fill, paths[0]), uid=USER) as one,
        Child(partial(fill, paths[1], 10_000), uid=OTHER) as two,
    ):
        (first, code), (second, other) = one.result(), two.result()
    assert code == other == "ENOSPC"
    assert first + second > 15 * MIB
    assert_filled(full.data / "one", first)
    assert_filled(paths[0], first)
    assert_filled(paths[1], second, 10_000)


@pytest.mark.needs_passthrough
def test_a_mapping_that_cannot_be_stored_is_a_bus_error(full: Pair) -> None:
    """At lower levels the mapping is the kernel's own, and it is msync(2) that fails."""

    def operation(top: Path) -> list[object]:
        path = top / "sparse"
        with path.open("w+b") as file:
            file.truncate(2 * MIB)
        path.chmod(0o666)
        _, code = run_as(partial(fill, top / "f"))
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            os.setuid(USER)
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
                for place in range(0, 2 * MIB, BLOCK):
                    mapped[place] = 1
            os._exit(0)
        killed = os.WTERMSIG(os.waitpid(pid, 0)[1])
        (top / "f").unlink()
        path.unlink()
        wait_for(lambda: room(full.native)[0] > 15 * MIB, "the space", 5.0)
        return [code, killed]

    assert full.same(operation) == ["ENOSPC", signal.SIGBUS]


@pytest.mark.needs_tap
def test_space_is_reserved_for_a_file_or_not_at_all(full: Pair) -> None:
    """fallocate(2)."""

    def operation(top: Path) -> list[object]:
        available = room(full.native)[0]

        def reserve() -> list[object]:
            told: list[object] = []
            for size in (available + 4 * MIB, MIB):
                with (top / "f").open("w+b") as file:
                    told.append(outcome(syscalls.fallocate, file.fileno(), 0, 0, size))
                    if size == MIB:
                        told.append(os.fstat(file.fileno()).st_size)
                (top / "f").unlink()
                # It had got some of what there was not enough of.
                wait_for(lambda: room(full.native)[0] >= available - NEARLY, "the space", 5.0)
            return told

        return run_as(reserve)

    assert full.same(operation) == ["ENOSPC", None, MIB]


@pytest.mark.needs_tap
@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
def test_the_reserve_is_roots_also_without_writing(full: Pair, uid: int) -> None:
    """By fallocate(2) and copy_file_range(2), of whose senders only the process tells who it is."""
    available, free = room(full.native)
    assert free - available > 2 * MIB

    def operation(top: Path) -> list[object]:
        def use() -> list[object]:
            with (top / "f").open("w+b") as file, (top / "copy").open("w+b") as copy:
                fd = file.fileno()
                os.pwrite(fd, content(MIB), 0)
                most = room(full.native)[0] - NEARLY
                told: list[object] = [
                    outcome(syscalls.fallocate, copy.fileno(), 0, 0, most),
                    outcome(syscalls.fallocate, copy.fileno(), 0, most, MIB // 2),
                    outcome(os.copy_file_range, fd, copy.fileno(), MIB, 0, most + MIB // 2) == MIB,
                ]
            for name in ("f", "copy"):
                (top / name).unlink()
            wait_for(lambda: room(full.native)[0] >= available - NEARLY, "the space", 5.0)
            return told

        return run_as(use, uid)

    assert full.same(operation) == ([None, None, True] if uid == 0 else [None, "ENOSPC", False])


def test_a_full_scope_is_served(full: Pair, small: Mounted, mount: MountFactory) -> None:
    """By a daemon that starts when there is no room any more, for anybody."""
    (full.mounted / "kept").write_bytes(content(10_000))
    fill(full.native / "f")
    there = mount(scope=small.scope).mnt / full.mounted.name / "kept"
    assert there.read_bytes() == content(10_000)
    with there.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:5] = b"again"
    assert (full.data / "kept").read_bytes()[:5] == b"again"


def test_neither_labels_nor_volumes_come_out_of_the_reserve(workspace: Path) -> None:
    """Removal may: it is there to free space."""
    with (
        ext4(workspace / "small", size=24 * MIB, reserved=10) as place,
        mounting(workspace) as mount,
    ):
        (place / "scope").mkdir()
        tree = mount(scope=place / "scope", root_mode="1777")
        volume = tree.mnt / "vol"
        available, free = room(place)

        def use_up() -> tuple[list[str | None], list[str | None]]:
            volume.mkdir()
            assert fill(volume / "f")[1] == "ENOSPC"
            labels = [
                outcome(os.setxattr, volume, f"volfs.label.{number}", b"x" * 60_000)
                for number in range(16)
            ]
            made = [outcome(os.mkdir, tree.mnt / f"vol{number}") for number in range(60)]
            return labels, made

        labels, made = run_as(use_up)
        assert labels[-1] == "ENOSPC"
        assert made[-1] == "ENOSPC"
        left, reserve = room(place)
        assert left <= NEARLY and reserve >= free - available
        # Removals are possible with not a block left for root either.
        assert fill(place / "scope" / "reserve", BLOCK)[1] == "ENOSPC"

        def remove_all() -> list[str]:
            for name in os.listdir(tree.mnt):
                os.rmdir(tree.mnt / name)
            return os.listdir(tree.mnt)

        assert run_as(remove_all) == []
        (place / "scope" / "reserve").unlink()
