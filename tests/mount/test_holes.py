"""Holes seen through the tree: SEEK_DATA and SEEK_HOLE, and the programs that use them."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.comparing import Pair, outcome
from volfs.linux import syscalls

pytestmark = pytest.mark.needs_tap

KIB = 1 << 10
MIB = 1 << 20

Layout = tuple[int, list[tuple[int, int]]]

LAYOUTS: dict[str, Layout] = {
    "empty": (0, []),
    "one hole": (4 * MIB, []),
    "no hole": (256 * KIB, [(0, 256 * KIB)]),
    "data first": (4 * MIB, [(0, 64 * KIB)]),
    "data last": (4 * MIB, [(4 * MIB - 64 * KIB, 64 * KIB)]),
    "a byte": (1 << 34, [((1 << 33) + 5, 1)]),
    "a comb": (8 * MIB, [(start, 4 * KIB) for start in range(0, 8 * MIB, 512 * KIB)]),
    "off the blocks": (MIB + 77, [(100, 5000), (MIB, 77)]),
}


def make(path: Path, layout: Layout, *, synced: bool) -> Path:
    """Write a sparse file; unless it is synced its blocks are only promised yet."""
    size, data = layout
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.ftruncate(fd, size)
        for start, length in data:
            os.pwrite(fd, b"x" * length, start)
        if synced:
            os.fsync(fd)
    finally:
        os.close(fd)
    return path


def data_ranges(path: Path) -> list[tuple[int, int]]:
    """Where the data of a file begins and ends."""
    return list(_ranges(path))


def _ranges(path: Path) -> Iterator[tuple[int, int]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        end = 0
        while True:
            try:
                start = os.lseek(fd, end, os.SEEK_DATA)
            except OSError:  # ENXIO: no more
                return
            end = os.lseek(fd, start, os.SEEK_HOLE)
            yield start, end
    finally:
        os.close(fd)


def blocks(path: Path) -> int:
    status = path.stat()
    return status.st_blocks


@pytest.mark.parametrize("synced", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_map_is_the_files_own(pair: Pair, layout: Layout, synced: bool) -> None:
    ranges = pair.same(lambda top: data_ranges(make(top / "file", layout, synced=synced)))
    assert ranges == data_ranges(pair.data / "file")
    if layout[0] > MIB:
        assert (0, layout[0]) not in ranges, "a sparse file has holes"


def test_the_map_changes_with_the_file(pair: Pair) -> None:
    def change(top: Path) -> object:
        path = make(top / "file", LAYOUTS["no hole"], synced=True)
        maps = [data_ranges(path)]
        fd = os.open(path, os.O_WRONLY)
        try:
            syscalls.fallocate(
                fd,
                syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE,
                64 * KIB,
                64 * KIB,
            )
            maps.append(data_ranges(path))
            os.pwrite(fd, b"x", 100 * KIB)
            maps.append(data_ranges(path))
            os.ftruncate(fd, 70 * KIB)
            maps.append(data_ranges(path))
        finally:
            os.close(fd)
        return maps

    pair.same(change)


@pytest.mark.parametrize("offset", [-1, 0, 64 * KIB - 1, 64 * KIB, MIB - 1, MIB, MIB + 1, 1 << 62])
@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE, 99])
def test_every_answer_of_lseek(pair: Pair, offset: int, whence: int) -> None:
    def seek(top: Path) -> object:
        path = make(top / "file", (MIB, [(0, 64 * KIB)]), synced=True)
        fd = os.open(path, os.O_RDONLY)
        try:
            os.lseek(fd, 17, os.SEEK_SET)
            answer = outcome(os.lseek, fd, offset, whence)
            return answer, os.lseek(fd, 0, os.SEEK_CUR)
        finally:
            os.close(fd)

    pair.same(seek)


def test_offsets_belong_to_each_open_file(pair: Pair) -> None:
    """Looking for a hole moves nobody else's reads and writes."""
    path = make(pair.mounted / "file", (MIB, [(512 * KIB, 4 * KIB)]), synced=True)
    first, second = (os.open(path, os.O_WRONLY) for _ in range(2))
    try:
        os.lseek(first, 1000, os.SEEK_SET)
        assert os.lseek(second, 0, os.SEEK_DATA) == 512 * KIB
        os.write(first, b"first")
        os.write(second, b"second")
        assert os.lseek(first, 0, os.SEEK_CUR) == 1005
    finally:
        os.close(first)
        os.close(second)
    assert read(path, 1000, 1005) == b"first"
    assert read(path, 512 * KIB, 512 * KIB + 6) == b"second"


def test_what_a_mapping_wrote_is_no_hole(pair: Pair) -> None:
    """The page may not have reached the file below yet: cp must not take it for a hole."""

    def write(top: Path) -> object:
        path = make(top / "file", (MIB, []), synced=True)
        fd = os.open(path, os.O_RDWR)
        with mmap.mmap(fd, MIB) as mapping:
            os.close(fd)
            mapping[512 * KIB : 512 * KIB + 4] = b"data"
            inside = any(start <= 512 * KIB < end for start, end in data_ranges(path))
            subprocess.run(["cp", "--sparse=auto", path, top / "copy"], check=True)
        return inside, read(top / "copy", 512 * KIB, 512 * KIB + 4), (top / "copy").stat().st_size

    assert pair.same(write) == (True, b"data", MIB)
    for path in (pair.mounted / "file", pair.data / "file"):  # closed, it is itself again
        assert data_ranges(path) == data_ranges(pair.native / "file")


def test_a_file_that_could_be_mapped_has_a_map_all_the_same(pair: Pair) -> None:
    """Never is data taken for a hole, whoever has the file open for reading and writing."""
    path = make(pair.mounted / "file", (MIB, [(512 * KIB, 4 * KIB)]), synced=True)
    fd = os.open(path, os.O_RDWR)
    try:
        start = os.lseek(fd, 0, os.SEEK_DATA)
        end = os.lseek(fd, start, os.SEEK_HOLE)
        with pytest.raises(OSError) as caught:
            os.lseek(fd, MIB, os.SEEK_DATA)
    finally:
        os.close(fd)
    assert start <= 512 * KIB
    assert end >= 516 * KIB
    assert caught.value.errno == errno.ENXIO


# -- programs

DIRECTIONS: dict[str, Callable[[Pair], tuple[Path, Path]]] = {
    "out of the tree": lambda pair: (pair.mounted, pair.native),
    "into the tree": lambda pair: (pair.native, pair.mounted),
    "within the tree": lambda pair: (pair.mounted, pair.mounted),
}
SPARSE: Layout = (1 << 30, [(0, 64 * KIB), (512 * MIB, 64 * KIB), ((1 << 30) - 100, 100)])


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_cp_keeps_holes(pair: Pair, direction: Callable[[Pair], tuple[Path, Path]]) -> None:
    source, target = direction(pair)
    path = make(source / "file", SPARSE, synced=True)
    copy = target / "copy"
    subprocess.run(["cp", "--sparse=auto", path, copy], check=True)
    subprocess.run(["sync", copy], check=True)
    assert copy.stat().st_size == path.stat().st_size
    assert data_ranges(copy) == data_ranges(path)
    assert blocks(copy) * 512 < MIB
    for start, end in data_ranges(path):
        assert read(copy, start, end) == read(path, start, end)


def read(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_tar_keeps_holes(pair: Pair, direction: Callable[[Pair], tuple[Path, Path]]) -> None:
    source, target = direction(pair)
    path = make(source / "file", SPARSE, synced=True)
    archive = target / "archive.tar"
    (target / "out").mkdir()
    options = ["--sparse", "--hole-detection=seek", "-C", str(source), "-f", str(archive)]
    subprocess.run(["tar", "-c", *options, "file"], check=True)
    assert archive.stat().st_size < MIB
    subprocess.run(["tar", "-x", "-C", target / "out", "-f", archive], check=True)
    copy = target / "out" / "file"
    subprocess.run(["sync", copy], check=True)
    assert copy.stat().st_size == path.stat().st_size
    assert blocks(copy) * 512 < MIB
    for start, end in itertools.chain(data_ranges(path), data_ranges(copy)):
        assert read(copy, start, end) == read(path, start, end)


def test_du_counts_blocks(pair: Pair) -> None:
    def du(top: Path, *options: str) -> int:
        command = ["du", "-k", *options, str(top / "file")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(done.stdout.split()[0])

    def sizes(top: Path) -> tuple[int, int]:
        make(top / "file", SPARSE, synced=True)
        return du(top), du(top, "--apparent-size")

    pair.same(sizes)
    taken, apparent = sizes(pair.mounted)
    assert taken < 1024 < apparent
