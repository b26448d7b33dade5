"""What writing without privileges cannot do: keep setuid or capabilities.

With passthrough the kernel writes for the caller with credentials that the daemon lends it, so
this is where too much could be lent.
"""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.children import OTHER, USER, run_as
from tests.conftest import Mounted, mounting, open_workspace
from tests.mount.comparing import Pair, outcome, owned
from tests.mount.conftest import make_pair
from tests.mount.test_ownership import CAPABILITY, MEMBERS
from tests.mount.test_reading_and_writing import content
from volfs.linux import syscalls

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
@pytest.mark.parametrize("how", CHANGES)
def test_root_keeps_setuid_and_setgid_whatever_it_changes(remembering: Pair, how: str) -> None:
    """As for others, in the reverse: the kernel says that the writer may leave them."""

    def operation(top: Path) -> list[object]:
        source = top / "source"
        source.write_bytes(content(9000))
        told: list[object] = []
        for owner, mode in itertools.product((0, USER), (*MODES, 0o2767)):
            path = top / f"{owner} {mode:o}"
            path.write_bytes(content(5000, 2))
            os.chown(path, owner, owner)
            path.chmod(mode)
            told += [outcome(change, path, source, CHANGES[how]), owned(path)]
            told.append(owned(remembering.data / path.name if top != remembering.native else path))
        return told

    told = remembering.same(operation)
    assert (oct(stat.S_IFREG | 0o6777), 0, 0) in told


@pytest.mark.needs_tap
def test_root_keeps_setuid_and_setgid_with_fallocate(remembering: Pair) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for mode in MODES:
            path = top / f"{mode:o}"
            path.write_bytes(content(5000, 2))
            path.chmod(mode)
            with path.open("r+b") as file:
                told.append(outcome(syscalls.fallocate, file.fileno(), 0, 100, 20_000))
            told += [owned(path), path.stat().st_size]
        return told

    remembering.same(operation)


@pytest.mark.needs_tap
@pytest.mark.parametrize("how", CHANGES)
def test_root_without_the_capability_does_not(remembering: Pair, how: str) -> None:
    def operation(top: Path) -> list[object]:
        source = top / "source"
        source.write_bytes(content(9000))
        told: list[object] = []
        for mode in MODES:
            path = top / f"{mode:o}"
            path.write_bytes(content(5000, 2))
            path.chmod(mode)

            def work(path: Path = path) -> object:
                effective, permitted, inheritable = syscalls.capget()
                mask = ~(1 << syscalls.CAP_FSETID)
                syscalls.capset(effective & mask, permitted & mask, inheritable & mask)
                return outcome(change, path, source, CHANGES[how])

            told += [run_as(work, 0), owned(path)]
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
