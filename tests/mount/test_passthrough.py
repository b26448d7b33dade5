"""Open files of every mode, side by side, whoever serves them: the kernel or the daemon.

The kernel serves an inode's opens on one backing file, or on none: what mixes them is refused to
whoever opens (EIO). So what is tested here is above all that nobody ever meets that.
"""

from __future__ import annotations

import itertools
import mmap
import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.children import OTHER, USER, Child
from tests.conftest import Mounted
from tests.mount.comparing import Pair
from tests.mount.open_files import ACCESSES, use
from tests.mount.test_reading_and_writing import content

pytestmark = pytest.mark.usefixtures("nothing_is_kept")

# -- who serves


@pytest.mark.needs_passthrough
def test_the_kernel_reads_writes_and_maps_without_the_daemon(pair: Pair, shared: Mounted) -> None:
    def sent() -> list[int]:
        counts = shared.statistics()["requests"]
        return [counts.get(kind, 0) for kind in ("READ", "WRITE")]

    path = pair.mounted / "f"
    before = sent()
    with path.open("w+b") as file:
        file.write(content(300_000))
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[5:10] = b"12345"
            mapped.flush()
        file.seek(0)
        assert file.read()[5:10] == b"12345"
        assert shared.statistics()["backing_ids"] == 1
        with path.open("rb") as again:
            assert again.read(10)[5:] == b"12345"
            assert shared.statistics()["backing_ids"] == 1
    assert sent() == before


@pytest.mark.needs_passthrough
def test_an_id_is_kept_for_each_open_file_and_given_back(pair: Pair, shared: Mounted) -> None:
    with ExitStack() as stack:
        for number in range(30):
            path = pair.mounted / str(number)
            stack.enter_context(path.open("wb"))
            stack.enter_context(path.open("rb"))
        assert shared.statistics()["backing_ids"] == 30
    with (pair.mounted / "0").open("w+b") as file:
        file.truncate(4096)
        mapped = mmap.mmap(file.fileno(), 0)
    # What is mapped is still served; the others were closed, and may be kept for the next open.
    assert shared.statistics()["backing_ids"] >= 1
    mapped.close()


# -- several opens of one file


@pytest.mark.parametrize("second", ACCESSES)
@pytest.mark.parametrize("first", ACCESSES)
def test_two_opens_at_once(pair: Pair, first: str, second: str) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(10_000))
        one, two = os.open(path, ACCESSES[first]), os.open(path, ACCESSES[second])
        told = [*use(one, b"1"), *use(two, b"2"), *use(one, b"3")]
        third = os.open(path, os.O_RDWR)
        told += use(third, b"4")
        os.close(one)
        told += [*use(two, b"5"), *use(third, b"6")]
        os.close(third)
        told += use(two, b"7")
        fourth = os.open(path, ACCESSES[first])
        told += [*use(fourth, b"8"), *use(two, b"9")]
        os.close(two)
        told += use(fourth, b"a")
        os.close(fourth)
        return [*told, path.read_bytes()]

    pair.same(operation)
    assert (pair.data / "f").read_bytes() == (pair.native / "f").read_bytes()


@pytest.mark.parametrize("flag", ["O_APPEND", "O_DIRECT", "O_SYNC", "O_TRUNC", "O_NOATIME"])
@pytest.mark.parametrize("first", ACCESSES)
def test_an_open_with_a_flag_beside_one_without(pair: Pair, first: str, flag: str) -> None:
    """The flagged one second, then first."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        told: list[object] = []
        for order in (0, 1):
            path.write_bytes(content(10_000))
            flags = [ACCESSES[first], os.O_RDWR | getattr(os, flag)]
            one, two = (os.open(path, given) for given in (flags[order], flags[1 - order]))
            if flag == "O_DIRECT":
                plain = one if order == 0 else two
                told += use(plain, b"1")
            else:
                told += [*use(one, b"1"), *use(two, b"2"), *use(one, b"3")]
            os.close(one)
            os.close(two)
            told.append(path.read_bytes())
        return told

    pair.same(operation)


def test_a_file_being_created_is_opened_by_others(pair: Pair) -> None:
    """The creator's descriptor came with CREATE, those of the others with OPEN."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        told: list[object] = []
        for access in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY):
            creator = os.open(path, access | os.O_CREAT | os.O_EXCL, 0o444)
            others = [os.open(path, other) for other in ACCESSES.values()]
            for number, fd in enumerate((creator, *others)):
                told += use(fd, b"%d" % number)
            os.close(creator)
            for number, fd in enumerate(others):
                told += use(fd, b"%d" % number)
                os.close(fd)
            path.unlink()
        return told

    pair.same(operation)


def test_two_links_of_a_file_are_one_file(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        one, two, three = (top / name for name in ("one", "two", "three"))
        one.write_bytes(content(10_000))
        first = os.open(one, os.O_RDWR)
        os.link(one, two)
        second = os.open(two, os.O_RDONLY)
        told = [*use(first, b"1"), *use(second, b"2")]
        one.unlink()
        (top / "d").mkdir()
        os.link(two, top / "d" / "three")
        third = os.open(top / "d" / "three", os.O_WRONLY)
        told += [*use(third, b"3"), *use(second, b"4"), *use(first, b"5")]
        two.unlink()
        (top / "d" / "three").rename(three)
        fourth = os.open(three, os.O_RDWR)
        for number, fd in enumerate((first, second, third, fourth)):
            told += use(fd, b"%d" % number)
            os.close(fd)
        return [*told, three.read_bytes(), three.stat().st_nlink]

    pair.same(operation)


def test_an_unlinked_file_is_opened_again(pair: Pair) -> None:
    """Through /proc: nothing but the inode is left to be opened."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(10_000))
        fd = os.open(path, os.O_RDONLY)
        path.unlink()
        path.write_bytes(b"another")
        told: list[object] = []
        for access in ACCESSES.values():
            again = os.open(f"/proc/self/fd/{fd}", access)
            told += [*use(again, b"1"), *use(fd, b"2")]
            os.close(again)
        os.close(fd)
        return [*told, path.read_bytes()]

    pair.same(operation)


@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777, 0o2767])
@pytest.mark.parametrize("other", ACCESSES)
def test_a_setuid_file_is_written_beside_others(pair: Pair, mode: int, other: str) -> None:
    """Whoever has it open already or mapped, in whatever order, and whoever comes after."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        told: list[object] = []
        top.chmod(0o777)
        for first, second in itertools.permutations((ACCESSES[other], os.O_WRONLY)):
            path.write_bytes(content(10_000))
            os.chown(path, OTHER, OTHER)
            path.chmod(mode)
            one, two = os.open(path, first), os.open(path, second)
            told += [*use(one, b"1"), *use(two, b"2")]
            path.chmod(mode)
            three = os.open(path, os.O_RDWR)
            with mmap.mmap(three, 0) as mapped:
                told += [mapped[90:150], *use(one, b"3"), mapped[90:150]]
                mapped[300:303] = b"map"
                told.append(os.pread(three, 3, 300))
                path.chmod(mode)
                four = os.open(path, os.O_WRONLY)
                told += [*use(four, b"4"), mapped[90:150]]
            for number, fd in enumerate((one, two, three, four)):
                told += use(fd, b"%d" % number)
                os.close(fd)
            told.append(path.read_bytes())
            path.unlink()
        return told

    pair.same(operation)


def test_a_file_becomes_setuid_while_it_is_open(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(10_000))
        told: list[object] = []
        writer = os.open(path, os.O_RDWR)
        path.chmod(0o4755)
        for access in ACCESSES.values():
            fd = os.open(path, access)
            told += [*use(fd, b"1"), *use(writer, b"2")]
            os.close(fd)
            path.chmod(0o4755)
        os.close(writer)
        return [*told, path.read_bytes()]

    pair.same(operation)


def test_many_processes_open_and_close_one_file_at_once(pair: Pair) -> None:
    """The last close of one races with the first open of another."""
    path = pair.mounted / "f"
    path.write_bytes(bytes(64))
    path.chmod(0o666)

    def work(slot: int) -> int:
        for number in range(250):
            access = (os.O_RDWR, os.O_WRONLY, os.O_RDONLY)[number % 3]
            fd = os.open(path, access | (os.O_CREAT if number % 5 == 0 else 0))
            if access != os.O_RDONLY:
                os.pwrite(fd, b"%08d" % number, slot * 8)
            if access != os.O_WRONLY:
                last = number if access == os.O_RDWR else number - 1
                assert os.pread(fd, 8, slot * 8) == b"%08d" % last
            os.close(fd)
        return slot

    children = [Child(partial(work, slot), uid=USER + slot) for slot in range(4)]
    with ExitStack() as stack:
        for child in children:
            stack.enter_context(child)
        assert [child.result() for child in children] == [0, 1, 2, 3]
    # The last that each wrote: 249 was a write, 247 was.
    assert (pair.data / "f").read_bytes()[:32] == b"%08d" % 249 * 4


def test_a_file_is_replaced_all_the_time_while_others_open_it(pair: Pair) -> None:
    """As caches and state files are: created beside and renamed over, or unlinked and made."""
    path = pair.mounted / "f"
    stop = pair.mounted / "stop"

    def replace() -> None:
        for number in range(150):
            record = b"%08d" % number
            new = pair.mounted / "new"
            new.write_bytes(record * 600)
            new.rename(path)
            if number % 3 == 0:
                path.unlink()
        stop.touch()

    def read() -> int:
        seen = 0
        while not stop.exists():
            try:
                with path.open("rb") as file:
                    found = file.read()
                    size = os.fstat(file.fileno()).st_size
            except FileNotFoundError:
                continue
            assert found == found[:8] * 600
            assert size == len(found)
            seen += 1
        return seen

    with Child(read) as one, Child(read) as two, Child(replace) as writer:
        writer.result()
        assert one.result() + two.result() > 0
