"""fallocate(2) through the tree: as on the filesystem below, down to its blocks."""

from __future__ import annotations

import errno
import hashlib
import itertools
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import filesystems
from tests.children import run_as
from tests.conftest import Mounted, mounting, open_workspace, wait_for
from tests.mount.comparing import Pair, outcome
from volfs.linux import syscalls

pytestmark = pytest.mark.needs_tap

KIB = 1 << 10
MIB = 1 << 20
KEEP = syscalls.FALLOC_FL_KEEP_SIZE
PUNCH = syscalls.FALLOC_FL_PUNCH_HOLE | KEEP
ZERO = syscalls.FALLOC_FL_ZERO_RANGE
COLLAPSE = syscalls.FALLOC_FL_COLLAPSE_RANGE
CONTENT = bytes(range(1, 256)) * 8224  # some 2 MiB without a zero

MODES = {
    "extending": (0, 1 * MIB, 3 * MIB),
    "inside": (0, 0, MIB),
    "keeping the size": (KEEP, 2 * MIB, 2 * MIB),
    "a hole": (PUNCH, 256 * KIB, MIB),
    "a hole off the blocks": (PUNCH, 1000, 300 * KIB + 7),
    "a hole past the end": (PUNCH, MIB, 10 * MIB),
    "zeros": (ZERO, 256 * KIB, MIB),
    "zeros off the blocks": (ZERO, 1001, 300 * KIB),
    "zeros past the end": (ZERO, MIB, 3 * MIB),
    "zeros past the end, keeping the size": (ZERO | KEEP, MIB, 3 * MIB),
}


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def state(path: Path) -> tuple[int, int, str]:
    """Size, blocks and content of a file."""
    status = path.stat()
    return status.st_size, status.st_blocks, hashlib.sha256(path.read_bytes()).hexdigest()


def written(top: Path, name: str = "file") -> Path:
    """A file whose blocks are on disk, so that their number does not change by itself."""
    path = top / name
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, CONTENT)
        os.fsync(fd)
    return path


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_every_mode_is_the_filesystems(pair: Pair, mode: tuple[int, int, int]) -> None:
    def allocate(top: Path) -> object:
        path = written(top)
        with opened(path) as fd:
            before = os.fstat(fd).st_mtime_ns
            syscalls.fallocate(fd, *mode)
            os.fsync(fd)
            return state(path), os.fstat(fd).st_mtime_ns > before

    pair.same(allocate)
    assert state(pair.mounted / "file") == state(pair.data / "file")


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_what_was_read_or_mapped_before_is_seen_as_it_is_now(
    pair: Pair, mode: tuple[int, int, int]
) -> None:
    path = written(pair.mounted)
    with opened(path) as fd, opened(path, os.O_RDONLY) as other:
        with mmap.mmap(fd, len(CONTENT)) as mapping:
            assert mapping[:] == os.pread(other, 4 * MIB, 0) == CONTENT
            syscalls.fallocate(fd, *mode)
            now = os.pread(other, 4 * MIB, 0)
            assert mapping[:] == now[: len(CONTENT)]
        assert now == (pair.data / "file").read_bytes()


def test_a_hole_gives_the_blocks_back(pair: Pair) -> None:
    path = written(pair.mounted)
    before = path.stat().st_blocks
    with opened(path) as fd:
        syscalls.fallocate(fd, PUNCH, 0, MIB)
    assert path.stat().st_size == len(CONTENT)
    assert path.stat().st_blocks <= before - MIB // 512
    assert (pair.data / "file").stat().st_blocks == path.stat().st_blocks


def test_a_kept_size_takes_blocks_all_the_same(pair: Pair) -> None:
    path = pair.mounted / "file"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        syscalls.fallocate(fd, KEEP, 0, MIB)
    for seen in (path, pair.data / "file"):
        assert (seen.stat().st_size, seen.stat().st_blocks) == (0, MIB // 512)


def test_a_range_is_not_taken_out(pair: Pair) -> None:
    """The kernel passes it to no FUSE filesystem."""
    path = written(pair.mounted)
    with opened(path) as fd, pytest.raises(OSError) as caught:
        syscalls.fallocate(fd, COLLAPSE, 0, 64 * KIB)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert path.read_bytes() == CONTENT


def test_posix_fallocate_writes_nothing(pair: Pair) -> None:
    """The C library would write into each block itself where fallocate(2) is not supported."""

    def allocate(top: Path) -> object:
        with opened(top / "file", os.O_WRONLY | os.O_CREAT) as fd:
            os.posix_fallocate(fd, 4096, 8 * MIB)
            with pytest.raises(OSError) as caught:
                os.lseek(fd, 0, os.SEEK_DATA)  # allocated, but not written
            return os.fstat(fd).st_size, os.fstat(fd).st_blocks, caught.value.errno

    pair.same(allocate)


def test_refusals(pair: Pair) -> None:
    def refusals(top: Path) -> object:
        path = written(top)
        os.mkfifo(top / "fifo")
        with opened(path) as fd, opened(path, os.O_RDONLY) as reading:
            answers: list[object] = [
                outcome(syscalls.fallocate, fd, 0, 0, 0),
                outcome(syscalls.fallocate, fd, 0, -1, 10),
                outcome(syscalls.fallocate, fd, 0, 0, 1 << 62),
                outcome(syscalls.fallocate, fd, PUNCH & ~KEEP, 0, 4096),
                outcome(syscalls.fallocate, fd, PUNCH | ZERO, 0, 4096),
                outcome(syscalls.fallocate, reading, 0, 0, 4096),
            ]
        with opened(top, os.O_RDONLY) as fd:
            answers.append(outcome(syscalls.fallocate, fd, 0, 0, 4096))
        with opened(top / "fifo") as fd:
            answers.append(outcome(syscalls.fallocate, fd, 0, 0, 4096))
        return answers, state(path)

    pair.same(refusals)


@pytest.mark.parametrize("mode", ["extending", "keeping the size", "a hole", "zeros"])
def test_setuid_does_not_survive_an_unprivileged_allocation(pair: Pair, mode: str) -> None:
    def allocate(top: Path) -> object:
        path = written(top)
        path.chmod(0o6777)

        def change() -> None:
            with opened(path) as fd:
                syscalls.fallocate(fd, *MODES[mode])

        run_as(change)
        return oct(path.stat().st_mode)

    pair.same(allocate)
    assert oct((pair.data / "file").stat().st_mode) == "0o100777"


def test_fallocate_the_program(pair: Pair) -> None:
    program = shutil.which("fallocate")
    assert program is not None

    def run(top: Path) -> object:
        path = written(top)
        states: list[object] = []
        for options in (
            ["--length", "3MiB"],
            ["--keep-size", "--offset", "3MiB", "--length", "1MiB"],
            ["--punch-hole", "--offset", "64KiB", "--length", "512KiB"],
            ["--zero-range", "--offset", "1MiB", "--length", "256KiB"],
            ["--posix", "--length", "5MiB"],
            ["--dig-holes"],
        ):
            subprocess.run([program, *options, path], check=True, capture_output=True)
            with opened(path) as fd:
                os.fsync(fd)
            states.append(state(path))
        return states

    pair.same(run)
    assert state(pair.mounted / "file") == state(pair.data / "file")


# -- a full filesystem


@pytest.fixture(scope="module")
def small() -> Iterator[Mounted]:
    """A mount on an ext4 of 32 MiB, a quarter of it reserved for root."""
    with (
        open_workspace() as workspace,
        filesystems.ext4(workspace / "disk", size=32 * MIB, reserved=25) as disk,
        mounting(workspace) as mount,
    ):
        (disk / "scope").mkdir()
        yield mount(scope=disk / "scope")


@pytest.fixture
def tops(small: Mounted) -> Iterator[tuple[Path, Path]]:
    """A volume and a plain directory of the same small disk, writable to all, both empty."""
    volume, plain = small.mnt / "vol", small.scope / "plain"
    for top in (volume, plain):
        top.mkdir()
        top.chmod(0o777)
    yield plain, volume
    shutil.rmtree(plain)
    shutil.rmtree(small.data("vol"), ignore_errors=True)
    shutil.rmtree(small.scope / "volumes" / "vol")


def fill(top: Path) -> int:
    """Allocate until there is no more; return how many bytes that were."""
    with opened(top / "filler", os.O_RDWR | os.O_CREAT) as fd:
        for number in itertools.count():
            try:
                syscalls.fallocate(fd, 0, number * 256 * KIB, 256 * KIB)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                return os.fstat(fd).st_blocks * 512
    raise AssertionError


def test_no_space(tops: tuple[Path, Path]) -> None:
    for top in tops:
        with opened(top / "file", os.O_RDWR | os.O_CREAT) as fd:
            with pytest.raises(OSError) as caught:
                syscalls.fallocate(fd, 0, 0, 100 * MIB)
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(OSError) as caught:
                os.posix_fallocate(fd, 0, 100 * MIB)
            assert caught.value.errno == errno.ENOSPC
        (top / "file").unlink()
    plain, volume = tops
    # close(2) does not wait for the daemon to hear of it.
    wait_for(lambda: os.statvfs(volume).f_bavail * 4096 > 10 * MIB, "what was taken")
    assert sorted(os.listdir(plain)) == sorted(os.listdir(volume)) == []


def test_a_user_is_left_without_the_reserve(tops: tuple[Path, Path]) -> None:
    taken: list[int] = []
    for top in tops:
        taken.append(run_as(as_filler(top)))
        free = os.statvfs(tops[0])
        assert free.f_bavail * free.f_frsize < MIB
        assert free.f_bfree * free.f_frsize > 6 * MIB
        (top / "filler").unlink()
    assert abs(taken[0] - taken[1]) < MIB


def test_nor_does_a_copy_of_a_users_take_it(tops: tuple[Path, Path]) -> None:
    for top in tops:
        with opened(top / "source", os.O_RDWR | os.O_CREAT) as fd:
            os.write(fd, b"x" * 2 * MIB)
        run_as(as_copier(top))
        free = os.statvfs(tops[0])
        assert free.f_bavail * free.f_frsize < MIB
        assert free.f_bfree * free.f_frsize > 6 * MIB
        for name in os.listdir(top):
            (top / name).unlink()


def as_copier(top: Path) -> Callable[[], None]:
    """Copies one file to the end of another until there is no space."""

    def copy() -> None:
        with (
            opened(top / "source", os.O_RDONLY) as reading,
            opened(top / "copy", os.O_RDWR | os.O_CREAT) as writing,
        ):
            try:
                while True:
                    os.copy_file_range(reading, writing, MIB // 2, 0)
            except OSError as error:
                assert error.errno == errno.ENOSPC

    return copy


def test_root_has_the_reserve(tops: tuple[Path, Path]) -> None:
    for top in tops:
        fill(top)
        free = os.statvfs(tops[0])
        assert free.f_bfree * free.f_frsize < MIB
        (top / "filler").unlink()


def as_filler(top: Path) -> Callable[[], int]:
    return lambda: fill(top)
