"""What writing without privileges cannot do: keep setuid or capabilities, take the reserve.

With passthrough the kernel writes for the caller with credentials that the daemon lends it, so
this is where too much could be lent.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.children import OTHER, USER, Child, run_as
from tests.conftest import Mounted, MountFactory, mounting, open_workspace, wait_for
from tests.mount.comparing import Pair, outcome, owned
from tests.mount.conftest import make_pair
from tests.mount.filesystems import ext4
from tests.mount.test_ownership import CAPABILITY, MEMBERS
from tests.mount.test_reading_and_writing import content
from volfs import syscalls

SUID = ("nosuid", "suid")


@pytest.fixture(scope="module", params=SUID)
def trees(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A mount that remembers for long, without and with setuid bits that count."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(cache="always", suid=request.param == "suid")


@pytest.fixture
def remembering(trees: Mounted) -> Pair:
    """A volume in such a mount: what is seen at once is not only what timed out."""
    return make_pair(trees)


# -- changes


def write(fd: int, source: int) -> None:
    assert os.pwrite(fd, os.pread(source, 1 << 20, 0), 0)


def write_direct(fd: int, source: int) -> None:
    block = mmap.mmap(-1, 4096)
    block[:] = os.pread(source, 4096, 0).ljust(4096, b"\0")
    direct = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT)
    os.pwritev(direct, [block], 0)
    os.close(direct)
    os.pwrite(fd, os.pread(source, 1 << 20, 4096), 4096)


def append(fd: int, source: int) -> None:
    appender = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND)
    os.write(appender, b"more")
    os.close(appender)


def send(fd: int, source: int) -> None:
    os.sendfile(fd, source, 0, 1 << 20)


def splice(fd: int, source: int) -> None:
    out, into = os.pipe()
    while moved := os.splice(source, into, 1 << 16):
        os.splice(out, fd, moved)
    os.close(out)
    os.close(into)


def copy_range(fd: int, source: int) -> None:
    while os.copy_file_range(source, fd, 1 << 20):
        pass


def truncate_to_nothing(fd: int, source: int) -> None:
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC))
    write(fd, source)


def shrink(fd: int, source: int) -> None:
    os.ftruncate(fd, 10)


def shrink_by_name(fd: int, source: int) -> None:
    os.truncate(f"/proc/self/fd/{fd}", 10)


CHANGES: dict[str, Callable[[int, int], None]] = {
    function.__name__: function
    for function in (
        write,
        write_direct,
        append,
        send,
        splice,
        copy_range,
        truncate_to_nothing,
        shrink,
        shrink_by_name,
    )
}


def change(path: Path, source: Path, how: Callable[[int, int], None]) -> None:
    with path.open("r+b", buffering=0) as file, source.open("rb", buffering=0) as reader:
        how(file.fileno(), reader.fileno())


MODES = (0o4777, 0o2777, 0o6777, 0o6776, 0o4666)


@pytest.mark.parametrize("how", CHANGES)
def test_setuid_and_setgid_go_at_once_with_any_change(remembering: Pair, how: str) -> None:
    """Looked at before and right after, by the writer and by another, in the tree and behind."""

    def operation(top: Path) -> list[object]:
        top.chmod(0o777)
        source = top / "source"
        source.write_bytes(content(9000))
        told: list[object] = []
        for owner, mode in itertools.product((0, USER, OTHER), MODES):
            path = top / f"{owner} {mode:o}"
            path.write_bytes(content(5000, 2))
            os.chown(path, owner, owner)
            path.chmod(mode)
            assert owned(path)[0] == oct(stat.S_IFREG | mode)

            def work(path: Path = path) -> tuple[object, object]:
                return outcome(change, path, source, CHANGES[how]), owned(path)

            data = remembering.data / path.name if top == remembering.mounted else path
            told += [run_as(work), owned(path), owned(data)]
        return told

    told = remembering.same(operation)
    assert (None, (oct(stat.S_IFREG | 0o777), OTHER, OTHER)) in told


@pytest.mark.parametrize("how", CHANGES)
def test_setuid_goes_though_the_file_was_opened_before_it_came(remembering: Pair, how: str) -> None:
    """The descriptor is served as was right when it was opened, when there was nothing to clear."""

    def operation(top: Path) -> list[object]:
        source = top / "source"
        source.write_bytes(content(9000))
        told: list[object] = []
        for mode in MODES:
            path = top / f"{mode:o}"
            path.write_bytes(content(5000, 2))
            path.chmod(0o666)
            with path.open("r+b", buffering=0) as file, source.open("rb", buffering=0) as reader:
                path.chmod(mode)
                assert owned(path)[0] == oct(stat.S_IFREG | mode)

                def work() -> object:
                    return outcome(CHANGES[how], file.fileno(), reader.fileno())

                told += [run_as(work), owned(path)]
            told.append(owned(remembering.data / path.name if top != remembering.native else path))
        return told

    remembering.same(operation)


@pytest.mark.needs_tap
@pytest.mark.parametrize("mode", [0, 1, 3, 0x10 | 1], ids=["", "keep size", "punch", "zero"])
def test_setuid_and_capabilities_go_with_fallocate(remembering: Pair, mode: int) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for bits in MODES:
            path = top / f"{bits:o}"
            path.write_bytes(content(9000))
            os.chown(path, OTHER, OTHER)
            os.setxattr(path, "security.capability", CAPABILITY)
            path.chmod(bits)

            def work(path: Path = path) -> tuple[object, object]:
                with path.open("r+b") as file:
                    done = outcome(syscalls.fallocate, file.fileno(), mode, 100, 20_000)
                return done, owned(path)

            told += [run_as(work), owned(path), capability(path), path.stat().st_size]
            told.append(owned(remembering.data / path.name if top != remembering.native else path))
        return told

    remembering.same(operation)


def capability(path: Path) -> object:
    return outcome(os.getxattr, path, "security.capability")


@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
@pytest.mark.parametrize("how", CHANGES)
def test_file_capabilities_go_at_once_with_any_change(
    remembering: Pair, how: str, uid: int
) -> None:
    def operation(top: Path) -> list[object]:
        source, path = top / "source", top / "program"
        source.write_bytes(content(9000))
        told: list[object] = []
        for opened_before in (False, True):
            path.write_bytes(content(5000, 2))
            path.chmod(0o777)
            with ExitStack() as stack:
                if opened_before:
                    file = stack.enter_context(path.open("r+b", buffering=0))
                    reader = stack.enter_context(source.open("rb", buffering=0))
                    work = partial(CHANGES[how], file.fileno(), reader.fileno())
                else:
                    work = partial(change, path, source, CHANGES[how])
                os.setxattr(path, "security.capability", CAPABILITY)
                assert capability(path) == CAPABILITY
                run_as(work, uid)
                told.append(capability(path))
            behind = remembering.data / "program" if top != remembering.native else path
            told.append(capability(behind))
        return told

    assert remembering.same(operation) == ["ENODATA"] * 4


# -- the attack


@pytest.fixture
def programs(trees: Mounted) -> Pair:
    """A volume with two programs: "id", and a setuid "target" that everybody may write."""
    pair = make_pair(trees)
    for top in (pair.mounted, pair.native):
        top.chmod(0o777)
        shutil.copy(shutil.which("id") or "/usr/bin/id", top / "id")
        shutil.copy(shutil.which("true") or "/bin/true", top / "target")
    return pair


def user_of(program: Path) -> int:
    """Who the program, a copy of id(1), is when our user runs it."""
    command = [str(program), "-u"]
    return int(run_as(lambda: subprocess.run(command, check=True, stdout=-1).stdout))


@pytest.mark.parametrize("opened", ["before", "after"])
@pytest.mark.parametrize("how", ["write", "send", "splice", "copy_range", "truncate_to_nothing"])
def test_a_setuid_program_that_a_user_replaced_runs_as_the_user(
    programs: Pair, how: str, opened: str
) -> None:
    """At once, and without anybody having looked at the mode in between."""

    def operation(top: Path) -> int:
        target = top / "target"
        target.chmod(0o777)
        if opened == "after":
            target.chmod(0o4777)
        with target.open("r+b", buffering=0) as file, (top / "id").open("rb") as source:
            target.chmod(0o4777)
            run_as(partial(CHANGES[how], file.fileno(), source.fileno()))
        return user_of(target)

    assert programs.same(operation) == USER


def test_a_setuid_program_runs_as_its_owner_where_that_is_allowed(
    programs: Pair, trees: Mounted
) -> None:
    (programs.mounted / "id").chmod(0o4755)
    with_suid = not os.statvfs(trees.mnt).f_flag & os.ST_NOSUID
    assert user_of(programs.mounted / "id") == (0 if with_suid else USER)


def test_members_of_the_group_write_setgid_files(remembering: Pair) -> None:
    """As in the directory of a project: setgid of the directory stays, that of a file goes."""

    def operation(top: Path) -> list[object]:
        os.chown(top, USER, MEMBERS)
        top.chmod(0o2775)

        def work() -> None:
            (top / "f").write_bytes(b"content")
            (top / "f").chmod(0o2775)
            (top / "f").open("ab").write(b"more")

        run_as(work, OTHER, groups=[MEMBERS])
        return [owned(top / "f"), owned(top)]

    remembering.same(operation)


# -- the reserve and the end of space

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
            return told

        return run_as(reserve)

    assert full.same(operation) == ["ENOSPC", None, MIB]


def test_a_full_scope_is_served(full: Pair, small: Mounted, mount: MountFactory) -> None:
    """By a daemon that starts when there is no room any more, for anybody."""
    (full.mounted / "kept").write_bytes(content(10_000))
    fill(full.native / "f")
    there = mount(scope=small.scope).mnt / full.mounted.name / "kept"
    assert there.read_bytes() == content(10_000)
    with there.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:5] = b"again"
    assert (full.data / "kept").read_bytes()[:5] == b"again"
