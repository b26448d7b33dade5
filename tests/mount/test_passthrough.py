"""Open files of every mode, side by side, whoever serves them: the kernel or the daemon.

The kernel serves an inode's opens on one backing file, or on none: what mixes them is refused to
whoever opens (EIO). So what is tested here is above all that nobody ever meets that.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.children import OTHER, USER, Child, run_as
from tests.conftest import Mounted, wait_for
from tests.mount.comparing import Pair, outcome
from tests.mount.test_reading_and_writing import content

ACCESSES = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR}


def wait_until_idle(tree: Mounted) -> None:
    """Wait for the releases to arrive, and for the kernel to give all backing files back."""

    def held() -> dict[str, int]:
        tree.drop_caches()
        counted = tree.statistics()
        names = ("open_files", "open_directories", "backing_ids")
        return {name: counted[name] for name in names if counted.get(name)}

    wait_for(lambda: not held(), f"{tree.mnt} to hold nothing, which holds {held()}", 5.0)


@pytest.fixture(autouse=True)
def nothing_is_kept(shared: Mounted) -> Iterator[None]:
    """When a test has closed its files, nobody holds a backing file any more."""
    yield
    wait_until_idle(shared)


def use(fd: int, letter: bytes) -> list[object]:
    """What comes of everything that can be done with an open file."""
    return [
        outcome(os.pread, fd, 50, 90),
        outcome(os.pwrite, fd, letter * 20, 100),
        outcome(os.pread, fd, 50, 90),
        outcome(os.pwrite, fd, letter, 4096 + ord(letter)),
        os.fstat(fd).st_size,
    ]


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


# -- flags


@pytest.mark.parametrize("block", [512, 4096])
def test_direct_reads_and_writes_in_whole_blocks(pair: Pair, block: int) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        buffer = mmap.mmap(-1, 16 * block)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
        buffered = os.open(path, os.O_RDWR)
        told: list[object] = []
        buffer[:] = content(len(buffer))
        told += [os.pwritev(fd, [buffer], 0), os.pwritev(fd, [buffer], 3 * block)]
        told += [os.fstat(fd).st_size, os.pread(buffered, 1 << 20, 0)]
        os.pwrite(buffered, b"buffered", block + 7)
        told += [os.preadv(fd, [buffer], block), buffer[:]]
        told += [os.preadv(fd, [buffer], 18 * block), buffer[:block]]
        with mmap.mmap(buffered, 0) as mapped:
            mapped[2 * block : 2 * block + 6] = b"mapped"
            told += [os.preadv(fd, [buffer], block), buffer[:]]
            buffer[:] = bytes(len(buffer))
            told += [os.pwritev(fd, [buffer], block), mapped[:]]
        os.ftruncate(fd, 5)
        told += [os.preadv(fd, [buffer], 0), buffer[:5]]
        os.close(fd)
        os.close(buffered)
        return told

    pair.same(operation)


def test_flags_changed_by_fcntl(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(5000))
        fd = os.open(path, os.O_RDWR)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
        told: list[object] = [os.write(fd, b"one"), os.pwrite(fd, b"two", 0)]
        told += [path.read_bytes(), fcntl.fcntl(fd, fcntl.F_GETFL) ^ flags]
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        told += [os.pwrite(fd, b"three", 0), path.read_bytes()]
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        buffer = mmap.mmap(-1, 4096)
        told += [os.preadv(fd, [buffer], 0), buffer[:]]
        buffer[:5] = b"four!"
        told += [os.pwritev(fd, [buffer], 0), path.read_bytes()]
        os.close(fd)
        return told

    pair.same(operation)


def test_flags_of_a_single_write(pair: Pair) -> None:
    """pwritev2(2)."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(5000))
        fd = os.open(path, os.O_RDWR)
        told: list[object] = [os.pwritev(fd, [b"appended"], 3, os.RWF_APPEND)]
        told += [os.pwritev(fd, [b"synced"], 3, flag) for flag in (os.RWF_DSYNC, os.RWF_SYNC)]
        told += [os.fstat(fd).st_size, path.read_bytes()]
        os.close(fd)
        return told

    pair.same(operation)


RECORD = 513


def append(path: Path, letter: bytes, rounds: int = 300) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    for _ in range(rounds):
        assert os.write(fd, letter * RECORD) == RECORD
    os.close(fd)


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(False, id="in the tree"),
        # Without the tap a write at the begin of a page may be taken for one of a mapping.
        pytest.param(True, id="one behind it", marks=pytest.mark.needs_tap),
    ],
)
def test_two_processes_append_whole_records(pair: Pair, behind: bool) -> None:
    """In the tree, and one in the tree and one on the real data path: none is lost."""
    (pair.data / "log").touch()
    there = (pair.data if behind else pair.mounted) / "log"
    with (
        Child(partial(append, pair.mounted / "log", b"a")) as one,
        Child(partial(append, there, b"b")) as two,
    ):
        one.result()
        two.result()
    written = (pair.data / "log").read_bytes()
    records = [written[start : start + RECORD] for start in range(0, len(written), RECORD)]
    assert sorted(records) == [b"a" * RECORD] * 300 + [b"b" * RECORD] * 300


def test_a_file_is_truncated_renamed_and_unlinked_while_open(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path, elsewhere = top / "f", top / "d" / "g"
        path.write_bytes(content(300_000))
        (top / "d").mkdir()
        reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
        told: list[object] = [os.lseek(reader, 200_000, os.SEEK_SET)]
        os.truncate(path, 100_000)
        told += [os.read(reader, 10), os.pread(reader, 10, 99_995), os.fstat(reader).st_size]
        told += [os.pwrite(writer, b"beyond", 150_000), os.pread(reader, 1 << 20, 99_990)]
        os.ftruncate(writer, 50)
        told += [os.pread(reader, 100, 0), path.stat().st_size, path.stat().st_blocks]
        path.rename(elsewhere)
        told += [os.pwrite(writer, b"renamed", 60), elsewhere.read_bytes()]
        again = os.open(elsewhere, os.O_RDWR)
        elsewhere.unlink()
        told += [os.pwrite(again, b"unlinked", 0), os.pread(reader, 100, 0)]
        told += [os.fstat(reader).st_nlink, outcome(elsewhere.stat)]
        os.ftruncate(again, 3)
        told += [os.pread(reader, 100, 0), os.fstat(writer).st_size]
        for fd in (reader, writer, again):
            os.fsync(fd)
            os.close(fd)
        return told

    pair.same(operation)


def test_truncation_by_opening_while_others_have_it_open(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        told: list[object] = []
        for access in ACCESSES.values():
            path.write_bytes(content(20_000))
            held = os.open(path, access)
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
            told += [os.fstat(held).st_size, *use(held, b"1"), *use(fd, b"2")]
            created = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            told += [os.fstat(held).st_size, *use(created, b"3"), *use(held, b"4")]
            for each in (held, fd, created):
                os.close(each)
        return told

    pair.same(operation)


# -- other ways to move bytes


def test_bytes_move_between_the_tree_and_elsewhere_in_the_kernel(pair: Pair) -> None:
    """sendfile(2), splice(2) and copy_file_range(2), in the tree, into it and out of it."""
    data = content(3_000_001)
    outside = pair.native / "outside"
    outside.write_bytes(data)
    inside = pair.mounted / "inside"

    def send(reader: int, writer: int) -> None:
        done = 0
        while count := os.sendfile(writer, reader, done, len(data) - done):
            done += count

    def splice(reader: int, writer: int) -> None:
        out, into = os.pipe()
        while moved := os.splice(reader, into, 1 << 16):
            while moved:
                moved -= os.splice(out, writer, moved)
        os.close(out)
        os.close(into)

    def copy(reader: int, writer: int) -> None:
        while os.copy_file_range(reader, writer, len(data)):
            pass

    for move in (send, splice, copy):
        routes = [(outside, inside), (inside, pair.native / "back"), (inside, pair.mounted / "to")]
        for source, target in routes:
            if move is copy and pair.native in (source.parent, target.parent):
                continue  # EXDEV between filesystems of different types, by the manual page
            shutil.copyfile(outside, source) if source == inside else None
            with source.open("rb") as reader, target.open("wb") as writer:
                move(reader.fileno(), writer.fileno())
            assert target.read_bytes() == data, (move, source, target)
        assert (pair.data / "inside").read_bytes() == data
        assert (pair.data / "to").read_bytes() == data


def test_sending_to_a_socket(pair: Pair) -> None:
    """As a web server does, with the file changing in place meanwhile."""
    path = pair.mounted / "f"
    path.write_bytes(content(500_000))
    out, into = os.pipe()
    with path.open("rb") as file, path.open("r+b", buffering=0) as changing:
        assert os.sendfile(into, file.fileno(), 0, 4096) == 4096
        changing.write(b"changed")
        assert os.sendfile(into, file.fileno(), 0, 4096) == 4096
        found = os.read(out, 8192)
    os.close(out)
    os.close(into)
    assert found[4096:4103] == b"changed"
    assert found[4103:] == content(500_000)[7:4096]


# -- times


@pytest.mark.parametrize("way", ["read", "map"])
def test_reading_sets_the_access_time(pair: Pair, way: str) -> None:
    """By relatime: when it is older than the last change, as after a write."""

    def operation(top: Path) -> tuple[bool, bool]:
        path = top / "f"
        path.write_bytes(content(10_000))
        os.utime(path, ns=(10**18, 10**18))
        before = path.stat().st_atime_ns
        with path.open("rb") as file:
            if way == "read":
                file.read()
            else:
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    bytes(mapped)
            after = os.fstat(file.fileno()).st_atime_ns
        behind = pair.data / "f" if top == pair.mounted else path
        return before == after, after == behind.stat().st_atime_ns

    pair.same(operation)


# -- programs


@pytest.fixture
def sleeper(pair: Pair) -> Path:
    """A program in the volume that runs for long, or not at all."""
    program = pair.mounted / "sleeper"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    return program


def test_a_program_runs_while_it_is_open_and_mapped(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        program = top / "echo"
        shutil.copy(shutil.which("echo") or "/bin/echo", program)
        told: list[object] = []
        with program.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=1) as mapped:
            for uid in (0, USER):
                run = partial(subprocess.run, [program, "ran"], check=True, stdout=-1)
                told += [run_as(run, uid).stdout, mapped[:4]]
        with subprocess.Popen([program, "ran"], stdout=-1) as child, program.open("rb") as file:
            told += [file.read(4), child.communicate()[0]]
        os.link(program, top / "other name")
        done = subprocess.run([top / "other name", "ran"], check=True, stdout=-1)
        program.unlink()
        return [*told, done.stdout]

    assert "ran" in str(pair.same(operation))


def test_a_program_written_just_now_runs(pair: Pair) -> None:
    """As after a link editor, again and again: nobody has it open for writing any more."""
    program = pair.mounted / "program"
    original = Path(shutil.which("echo") or "/bin/echo").read_bytes()
    for number in range(20):
        program.write_bytes(original)
        program.chmod(0o755)
        done = subprocess.run([program, str(number)], check=True, stdout=-1)
        assert done.stdout == b"%d\n" % number
        if number % 2:
            program.unlink()


def test_a_program_that_runs_behind_the_mount_is_busy_in_the_tree(
    pair: Pair, sleeper: Path
) -> None:
    """It says so as natively, to each way of opening for writing; reading goes on."""
    with subprocess.Popen([pair.data / "sleeper", "60"]) as running:
        try:
            for access in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
                assert outcome(os.open, sleeper, access) == "ETXTBSY"
            assert outcome(os.open, sleeper, os.O_WRONLY | os.O_TRUNC) == "ETXTBSY"
            assert outcome(os.truncate, sleeper, 0) == "ETXTBSY"
            assert sleeper.read_bytes() == (pair.data / "sleeper").read_bytes() != b""
        finally:
            running.kill()
    with sleeper.open("r+b") as file:
        file.write(b"\x7fELF")


def test_a_program_open_for_writing_in_the_tree_does_not_run(pair: Pair, sleeper: Path) -> None:
    with sleeper.open("r+b"):
        for path in (sleeper, pair.data / "sleeper"):
            with pytest.raises(OSError) as caught:
                subprocess.run([path, "0"], check=True)
            assert caught.value.errno == errno.ETXTBSY
    assert subprocess.run([sleeper, "0"], check=True).returncode == 0

    def runs() -> bool:  # once the daemon has heard of the close
        return outcome(lambda: subprocess.run([pair.data / "sleeper", "0"])) != "ETXTBSY"

    wait_for(runs, "the program to be run behind the mount", 5.0)


def test_a_program_that_runs_in_the_tree_can_be_written_behind_it(
    pair: Pair, sleeper: Path
) -> None:
    """A known difference: that it runs is known of the file in the tree only."""
    with subprocess.Popen([sleeper, "60"]) as running:
        try:
            assert outcome(lambda: sleeper.open("r+b").close()) == "ETXTBSY"
            with (pair.data / "sleeper").open("r+b") as behind:
                behind.write(b"\x7fELF")
        finally:
            running.kill()
