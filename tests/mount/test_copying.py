"""copy_file_range(2) through the tree: copies that no byte leaves the kernel for."""

from __future__ import annotations

import errno
import hashlib
import itertools
import mmap
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import filesystems
from tests.children import Child, run_as
from tests.conftest import (
    Mounted,
    MountFactory,
    mounting,
    open_workspace,
    wait_for,
)
from tests.daemons import DEADLINE
from tests.mount.comparing import Pair, outcome
from volfs.linux import syscalls

pytestmark = pytest.mark.needs_tap

MIB = 1 << 20
GIB = 1 << 30
CONTENT = os.urandom(MIB) * 3 + b"the end"


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def copy_range(
    source: Path, target: Path, count: int, at: int | None = None, to: int | None = None
) -> int:
    """copy_file_range(2) once, into a new file."""
    with opened(source) as reading, opened(target, os.O_WRONLY | os.O_CREAT) as writing:
        return os.copy_file_range(reading, writing, count, at, to)


def requests(tree: Mounted, *names: str) -> int:
    """How many requests of these kinds have reached the daemon."""
    counts: dict[str, int] = tree.statistics()["requests"]
    return sum(counts.get(name, 0) for name in names)


def copies(tree: Mounted) -> int:
    """How many copies the daemon has been asked for."""
    return requests(tree, "COPY_FILE_RANGE", "COPY_FILE_RANGE_64")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- what is copied


@pytest.mark.parametrize(
    ("count", "at", "to"),
    [
        pytest.param(len(CONTENT), 0, 0, id="all"),
        pytest.param(2 * len(CONTENT), 0, 0, id="more than there is"),
        pytest.param(10, 0, 0, id="a few bytes"),
        pytest.param(MIB + 17, 4097, 0, id="from within"),
        pytest.param(MIB + 17, 4097, 333, id="to within"),
        pytest.param(MIB, 0, 20 * MIB, id="far past the end"),
        pytest.param(MIB, len(CONTENT), 0, id="nothing at the end"),
        pytest.param(MIB, len(CONTENT) + 1, 0, id="nothing past the end"),
        pytest.param(0, 0, 0, id="nothing"),
    ],
)
def test_a_range_arrives(pair: Pair, shared: Mounted, count: int, at: int, to: int) -> None:
    def copy(top: Path) -> object:
        (top / "source").write_bytes(CONTENT)
        (top / "target").write_bytes(b"what was there" * 100_000)
        done = copy_range(top / "source", top / "target", count, at, to)
        return done, (top / "target").stat().st_size, digest(top / "target")

    pair.same(copy)
    assert digest(pair.mounted / "target") == digest(pair.data / "target")


def test_the_daemon_is_asked_and_reads_and_writes_nothing(pair: Pair, shared: Mounted) -> None:
    (pair.mounted / "source").write_bytes(CONTENT)
    before = copies(shared), requests(shared, "READ", "WRITE")
    copy_range(pair.mounted / "source", pair.mounted / "target", len(CONTENT))
    assert (copies(shared), requests(shared, "READ", "WRITE")) == (before[0] + 1, before[1])


def test_positions_move_as_they_should(pair: Pair) -> None:
    def copy(top: Path) -> object:
        (top / "source").write_bytes(CONTENT)
        positions = []
        with (
            opened(top / "source") as source,
            opened(top / "target", os.O_RDWR | os.O_CREAT) as target,
        ):
            for at, to in itertools.product((None, 1000), repeat=2):
                os.copy_file_range(source, target, 5000, at, to)
                positions.append([os.lseek(fd, 0, os.SEEK_CUR) for fd in (source, target)])
        return positions, digest(top / "target")

    pair.same(copy)


def test_what_is_open_sees_the_copy(pair: Pair) -> None:
    (pair.mounted / "source").write_bytes(CONTENT)
    target = pair.mounted / "target"
    target.write_bytes(b"old" * 1000)
    with opened(target) as reading:
        assert os.pread(reading, 3, 0) == b"old"
        copy_range(pair.mounted / "source", target, len(CONTENT))
        assert os.fstat(reading).st_size == len(CONTENT)
        assert os.pread(reading, len(CONTENT), 0) == CONTENT


def test_the_source_has_been_read(pair: Pair) -> None:
    """Its time of access is new at once."""

    def operation(top: Path) -> bool:
        source = top / "source"
        source.write_bytes(CONTENT)
        os.utime(source, (1, 1))
        copy_range(source, top / "target", 100)
        return os.stat(source).st_atime > 1

    assert pair.same(operation) is True


def test_mappings_take_part(pair: Pair) -> None:
    """Pages that a mapping wrote are copied, and mapped pages of the target are the new ones."""

    def copy(top: Path) -> object:
        for name in ("source", "target"):
            (top / name).write_bytes(bytes(MIB))
        with (
            opened(top / "source", os.O_RDWR) as source,
            opened(top / "target", os.O_RDWR) as target,
            mmap.mmap(source, MIB) as from_map,
            mmap.mmap(target, MIB) as to_map,
        ):
            from_map[1000:1006] = b"source"
            to_map[1000:1006] = to_map[500_000:500_006] = b"target"
            os.copy_file_range(source, target, 300_000, 0, 0)
            seen = to_map[1000:1006], to_map[500_000:500_006]
        return seen, digest(top / "target")

    pair.same(copy)
    assert digest(pair.mounted / "target") == digest(pair.data / "target")


def test_within_one_file(pair: Pair) -> None:
    def copy(top: Path) -> object:
        path = top / "file"
        path.write_bytes(CONTENT)
        with opened(path, os.O_RDWR) as fd:
            apart = outcome(os.copy_file_range, fd, fd, MIB, 0, len(CONTENT))
            overlapping = outcome(os.copy_file_range, fd, fd, MIB, 0, MIB // 2)
        return apart, overlapping, digest(path)

    pair.same(copy)


def test_refusals(pair: Pair) -> None:
    def refusals(top: Path) -> object:
        source, target = top / "source", top / "target"
        source.write_bytes(CONTENT)
        target.write_bytes(b"")
        os.mkfifo(top / "fifo")
        answers = []
        for reading, writing in (
            ((source, os.O_WRONLY), (target, os.O_WRONLY)),
            ((source, os.O_RDONLY), (target, os.O_RDONLY)),
            ((source, os.O_RDONLY), (target, os.O_WRONLY | os.O_APPEND)),
            ((top, os.O_RDONLY), (target, os.O_WRONLY)),
            ((top / "fifo", os.O_RDWR), (target, os.O_WRONLY)),
        ):
            with opened(*reading) as first, opened(*writing) as second:
                answers.append(outcome(os.copy_file_range, first, second, 10, 0, 0))
        return answers, target.stat().st_size

    pair.same(refusals)


def test_setuid_does_not_survive_an_unprivileged_copy(pair: Pair) -> None:
    def copy(top: Path) -> object:
        (top / "source").write_bytes(CONTENT)
        target = top / "target"
        target.write_bytes(b"")
        target.chmod(0o6777)
        run_as(lambda: copy_range(top / "source", target, 100))
        return oct(target.stat().st_mode)

    pair.same(copy)
    assert oct((pair.data / "target").stat().st_mode) == "0o100777"


def test_between_volumes(shared: Mounted) -> None:
    for name in ("from", "to"):
        (shared.mnt / name).mkdir()
    (shared.mnt / "from" / "file").write_bytes(CONTENT)
    before = copies(shared)
    done = copy_range(shared.mnt / "from" / "file", shared.mnt / "to" / "file", len(CONTENT))
    assert done == len(CONTENT)
    assert (shared.data("to") / "file").read_bytes() == CONTENT
    assert copies(shared) == before + 1


def test_between_filesystems(workspace: Path) -> None:
    """The backing filesystems cannot, so the kernel reads and writes."""
    scope = workspace / "scope"
    data = scope / "volumes" / "elsewhere" / "_data"
    data.parent.mkdir(parents=True)
    with filesystems.tmpfs(data), mounting(workspace) as mount:
        tree = mount(scope=scope)
        (tree.mnt / "here").mkdir()
        for source, target in (("here", "elsewhere"), ("elsewhere", "here")):
            (tree.mnt / source / "file").write_bytes(CONTENT)
            subprocess.run(
                ["cp", tree.mnt / source / "file", tree.mnt / target / "copy"], check=True
            )
            assert (tree.data(target) / "copy").read_bytes() == CONTENT


# -- long copies


@pytest.fixture
def in_memory() -> Iterator[Mounted]:
    """A mount on a filesystem in memory, which nothing is cached of."""
    with (
        open_workspace() as workspace,
        filesystems.tmpfs(workspace / "memory", size="5g") as memory,
        mounting(workspace) as mount,
    ):
        (memory / "scope").mkdir()
        tree = mount(scope=memory / "scope", cache="never")
        (tree.mnt / "vol").mkdir()
        yield tree


def sparse(tree: Mounted, size: int) -> Path:
    path = tree.mnt / "vol" / "source"
    path.touch()
    os.truncate(path, size)
    return path


@pytest.mark.alone
def test_others_are_answered_during_a_long_copy(in_memory: Mounted) -> None:
    source = sparse(in_memory, GIB // 2)
    target = in_memory.mnt / "vol" / "target"
    took: list[float] = []

    def copy() -> None:
        start = time.monotonic()
        copy_range(source, target, GIB // 2)
        took.append(time.monotonic() - start)

    thread = threading.Thread(target=copy)
    thread.start()
    waits: list[float] = []
    while thread.is_alive():
        start = time.monotonic()
        with pytest.raises(FileNotFoundError):
            os.stat(in_memory.mnt / "vol" / f"absent{len(waits)}")
        waits.append(time.monotonic() - start)
    thread.join()
    target.unlink()
    assert took[0] > 0.1, "too short a copy to tell"
    assert len(waits) > 20
    assert max(waits) < took[0] / 2


def big_copy(source: Path, target: Path) -> int:
    """A copy that is interrupted by SIGALRM, and says how far it got."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    return copy_range(source, target, 64 * GIB)


def test_a_signal_cuts_a_copy_short(in_memory: Mounted) -> None:
    source = sparse(in_memory, 64 * GIB)
    target = in_memory.mnt / "vol" / "target"
    with Child(lambda: big_copy(source, target)) as child:
        grown = in_memory.data("vol") / "target"
        wait_for(lambda: grown.exists() and grown.stat().st_size > 50 * MIB, "the copy to begin")
        os.kill(child.pid, signal.SIGALRM)
        copied = child.result()
    assert 50 * MIB < copied < 4 * GIB
    assert grown.stat().st_size == target.stat().st_size == copied


def test_a_killed_copy_ends(in_memory: Mounted) -> None:
    source = sparse(in_memory, 64 * GIB)
    target = in_memory.mnt / "vol" / "target"
    grown = in_memory.data("vol") / "target"
    with Child(lambda: big_copy(source, target)) as child:
        wait_for(lambda: grown.exists() and grown.stat().st_size > 50 * MIB, "the copy to begin")
        os.kill(child.pid, signal.SIGKILL)
        start = time.monotonic()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert time.monotonic() - start < 5
    # The last step may still be under way; then it is over for good.
    wait_for(lambda: in_memory.statistics()["open_files"] == 0, "the files to be closed")
    size = grown.stat().st_size
    assert size < 4 * GIB
    copy_range(source, in_memory.mnt / "vol" / "other", 10 * MIB)
    assert grown.stat().st_size == size


def test_a_copy_does_not_keep_the_daemon(in_memory: Mounted) -> None:
    source = sparse(in_memory, 64 * GIB)
    target = in_memory.mnt / "vol" / "target"
    grown = in_memory.data("vol") / "target"
    with Child(lambda: big_copy(source, target)) as child:
        wait_for(lambda: grown.exists() and grown.stat().st_size > 50 * MIB, "the copy to begin")
        in_memory.process.terminate()
        copied = child.result()
        in_memory.process.wait(DEADLINE)
    assert 50 * MIB < copied < 4 * GIB
    assert grown.stat().st_size == copied


def test_a_copy_ends_where_the_space_does(workspace: Path) -> None:
    with (
        filesystems.tmpfs(workspace / "memory", size="64m") as memory,
        mounting(workspace) as mount,
    ):
        (memory / "scope").mkdir()
        tree = mount(scope=memory / "scope")
        (tree.mnt / "vol").mkdir()
        source = sparse(tree, GIB)
        target = tree.mnt / "vol" / "target"
        copied = copy_range(source, target, GIB)
        assert 32 * MIB < copied < 64 * MIB
        assert target.stat().st_size == copied
        with pytest.raises(OSError) as caught:
            copy_range(source, target, GIB, 0, copied)
        assert caught.value.errno == errno.ENOSPC


# -- reflinks


@pytest.fixture(scope="module")
def on_xfs() -> Iterator[Mounted]:
    """A mount whose scope is on an XFS of 300 MB."""
    with (
        open_workspace() as workspace,
        filesystems.xfs(workspace / "disk") as disk,
        mounting(workspace) as mount,
    ):
        (disk / "scope").mkdir()
        yield mount(scope=disk / "scope")


def free(path: Path) -> int:
    """Free bytes, of what has reached the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        syscalls.syncfs(fd)
        status = os.fstatvfs(fd)
        return status.f_bfree * status.f_bsize
    finally:
        os.close(fd)


@pytest.fixture
def reflinkable(on_xfs: Mounted) -> Iterator[Path]:
    """A file of 64 MiB in a volume on XFS."""
    top = on_xfs.mnt / "vol"
    top.mkdir(exist_ok=True)
    path = top / "source"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    yield path
    for name in os.listdir(top):
        (top / name).unlink()


def test_copies_share_blocks(on_xfs: Mounted, reflinkable: Path) -> None:
    target = reflinkable.with_name("target")
    before = free(on_xfs.scope)
    assert copy_range(reflinkable, target, 64 * MIB) == 64 * MIB
    assert before - free(on_xfs.scope) < 4 * MIB
    assert digest(target) == digest(reflinkable)
    with target.open("r+b") as file:
        file.write(b"changed")
    assert digest(target) != digest(reflinkable)
    assert (on_xfs.data("vol") / "target").read_bytes()[:7] == b"changed"


def test_cp_shares_blocks(on_xfs: Mounted, reflinkable: Path) -> None:
    target = reflinkable.with_name("target")
    before = free(on_xfs.scope)
    subprocess.run(["cp", "--reflink=auto", reflinkable, target], check=True)
    assert before - free(on_xfs.scope) < 4 * MIB
    assert digest(target) == digest(reflinkable)


def test_a_copy_off_the_blocks_is_right_all_the_same(on_xfs: Mounted, reflinkable: Path) -> None:
    target = reflinkable.with_name("target")
    done = 0
    with opened(reflinkable) as reading, opened(target, os.O_WRONLY | os.O_CREAT) as writing:
        while done < 20 * MIB:
            done += os.copy_file_range(reading, writing, 20 * MIB - done, 1000 + done, 333 + done)
    with reflinkable.open("rb") as file:
        file.seek(1000)
        expected = bytes(333) + file.read(20 * MIB)
    assert target.read_bytes() == expected


def test_many_small_copies(mount: MountFactory) -> None:
    tree = mount()
    (tree.mnt / "vol").mkdir()
    source = tree.mnt / "vol" / "source"
    source.write_bytes(CONTENT)
    for number in range(50):
        copy_range(source, tree.mnt / "vol" / f"copy{number}", 64 << 10)
    assert {path.read_bytes() for path in tree.data("vol").glob("copy*")} == {CONTENT[: 64 << 10]}
