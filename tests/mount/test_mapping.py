"""Mappings: one memory for all who map a file, and the same bytes for all who read or write it."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.children import OTHER, run_as
from tests.conftest import MountFactory, wait_for
from tests.mount.comparing import Pair, outcome
from tests.mount.conftest import make_pair
from tests.mount.open_files import ACCESSES, use
from tests.mount.test_reading_and_writing import content

pytestmark = pytest.mark.usefixtures("nothing_is_kept")

SIZE = 40_000

MAPPER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
print("mapped", flush=True)
for line in sys.stdin:
    what, place, rest = line.split()
    place = int(place)
    if what == "set":
        data = bytes.fromhex(rest)
        mapped[place : place + len(data)] = data
        print("done", flush=True)
    else:
        print(mapped[place : place + int(rest)].hex(), flush=True)
"""


class Mapper:
    """A process that has mapped a file and does with the mapping what it is told."""

    def __init__(self, path: Path | str, wrapped: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*wrapped, sys.executable, "-ISc", MAPPER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "mapped"

    def __enter__(self) -> Mapper:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()

    def __getitem__(self, place: slice) -> bytes:
        return bytes.fromhex(self._ask(f"get {place.start} {place.stop - place.start}"))

    def __setitem__(self, place: slice, data: bytes) -> None:
        assert self._ask(f"set {place.start} {data.hex()}") == "done"

    def _ask(self, line: str) -> str:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


def sandbox(directory: Path) -> tuple[str, ...]:
    """The words that run a command in a container of its own that has ``directory`` at /mnt."""
    if shutil.which("bwrap") is None:
        pytest.skip("not installed: bwrap")
    # With all that the interpreter needs, wherever that is.
    root = ("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev")
    return ("bwrap", "--die-with-parent", "--unshare-all", *root, "--bind", str(directory), "/mnt")


def agree(mappings: list[Mapper], random: Random) -> None:
    """Whatever one of them sets, all of them have at once."""
    expected = bytearray(mappings[0][0:SIZE])
    for step in range(60):
        place = random.randrange(SIZE - 3000)
        data = content(random.choice([1, 10, 3000]), step)
        random.choice(mappings)[place : place + len(data)] = data
        expected[place : place + len(data)] = data
        start = max(0, place - 10)
        for mapping in mappings:
            assert mapping[start : start + 3020] == expected[start : start + 3020], step
    for mapping in mappings:
        assert mapping[0:SIZE] == expected


def test_a_container_and_the_host_share_a_mapping(pair: Pair) -> None:
    (pair.mounted / "f").write_bytes(content(SIZE))
    wrapped = sandbox(pair.mounted)
    with Mapper("/mnt/f", wrapped) as container, Mapper(pair.mounted / "f") as host:
        agree([container, host], Random(1))
        last = host[0:SIZE]
    with (pair.mounted / "f").open("rb") as file:
        os.fsync(file.fileno())
    assert (pair.data / "f").read_bytes() == last


@pytest.mark.needs_passthrough
def test_the_tree_a_container_and_the_real_data_path_share_a_mapping(pair: Pair) -> None:
    path, behind = pair.mounted / "f", pair.data / "f"
    path.write_bytes(content(SIZE))
    wrapped = sandbox(pair.mounted)
    with (
        Mapper("/mnt/f", wrapped) as container,
        Mapper(path) as host,
        Mapper(behind) as real,
        path.open("r+b", buffering=0) as file,
        behind.open("r+b", buffering=0) as there,
    ):
        agree([container, host, real], Random(2))
        # And with read(2) and write(2) on both sides.
        for number, way in enumerate((file, there)):
            os.pwrite(way.fileno(), b"written%d" % number, 5000 * number + 4090)
            for mapping in (container, host, real):
                assert mapping[5000 * number + 4090 : 5000 * number + 4098] == b"written%d" % number
        host[0:4] = b"host"
        assert os.pread(there.fileno(), 4, 0) == os.pread(file.fileno(), 4, 0) == b"host"
        real[0:4] = b"real"
        assert os.pread(there.fileno(), 4, 0) == os.pread(file.fileno(), 4, 0) == b"real"


@pytest.mark.parametrize("reading", ACCESSES)
def test_read_write_and_a_mapping_are_one(pair: Pair, reading: str) -> None:
    """A mapping that is written is read, one that is read has been written, through any open."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(20_000))
        told: list[object] = []
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            other = os.open(path, ACCESSES[reading])
            late = os.open(path, os.O_RDWR)
            for place in (0, 4090, 12_288, 19_980):
                mapped[place : place + 10] = b"0123456789"
                told += [outcome(os.pread, fd, 20, place) for fd in (file.fileno(), other, late)]
                for fd in (file.fileno(), other, late):
                    told += [outcome(os.pwrite, fd, b"written", place), mapped[place : place + 10]]
            os.close(other)
            os.close(late)
        return [*told, path.read_bytes()]

    pair.same(operation)


def test_a_mapping_whose_file_is_closed_goes_on(pair: Pair) -> None:
    """And is of the same file as what is opened in any mode while only the mapping is left."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(20_000))
        file = path.open("r+b")
        mapped = mmap.mmap(file.fileno(), 0)
        file.close()
        told: list[object] = []
        for number, access in enumerate(ACCESSES.values()):
            fd = os.open(path, access)
            told += [*use(fd, b"%d" % number), mapped[90:150]]
            with path.open("rb") as reader, mmap.mmap(reader.fileno(), 0, prot=1) as again:
                mapped[5000:5001] = b"%d" % number
                told.append(again[4990:5010])
            os.close(fd)
            told.append(mapped[90:150])
        path.rename(top / "renamed")
        mapped[0:3] = b"one"
        told.append((top / "renamed").read_bytes())
        (top / "renamed").unlink()
        mapped[0:3] = b"two"
        mapped.flush()
        told.append(mapped[0:10])
        mapped.close()
        return told

    pair.same(operation)


def test_a_private_mapping_keeps_its_own(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(20_000))
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3) as private,
            path.open("r+b", buffering=0) as writer,
        ):
            private[0:5] = b"mine!"
            writer.write(b"theirs")
            os.pwrite(writer.fileno(), b"theirs", 8192)
            return [private[0:10], private[8190:8200], path.read_bytes()]

    pair.same(operation)


def test_what_may_be_mapped_is_what_was_opened(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(5000))
        told: list[object] = []
        for access in ACCESSES.values():
            fd = os.open(path, access)
            for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
                for prot in (mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_EXEC):
                    made = outcome(mmap.mmap, fd, 0, flags, prot)
                    told.append(made if isinstance(made, str) else None)
            os.close(fd)
        return told

    assert "EACCES" in pair.same(operation)


# -- sizes that change


def death(call: Callable[[], object]) -> int | str:
    """With what a child that does this ends: "alive" or the signal that killed it."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        call()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else "alive"


@pytest.mark.parametrize("how", ["truncate", "ftruncate", "O_TRUNC", "O_TRUNC and O_CREAT"])
def test_a_mapped_file_shrinks_and_grows(pair: Pair, how: str) -> None:
    """By whatever way, while two have it mapped: beyond the end is SIGBUS, then zeros."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(20_000))
        told: list[object] = []
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[0:5] = b"dirty"
            mapped[12_000:12_005] = b"dirty"
            length = 5000
            if how == "truncate":
                os.truncate(path, length)
            elif how == "ftruncate":
                os.ftruncate(file.fileno(), length)
            else:
                length = 0
                flags = os.O_CREAT if "O_CREAT" in how else 0
                os.close(os.open(path, os.O_RDWR | os.O_TRUNC | flags, 0o644))
            told += [os.fstat(file.fileno()).st_size, path.stat().st_size, path.read_bytes()]
            for place in (0, 4999, 5001, 8191, 8192, 19_000):
                told.append(death(lambda place=place: mapped[place]))  # type: ignore[misc]
            os.pwrite(file.fileno(), b"again", 15_000)
            told += [mapped[0:15_010], path.stat().st_size]
            mapped[14_000:14_004] = b"more"
            told.append(path.read_bytes())
        return told

    told = pair.same(operation)
    assert signal.SIGBUS in told


def test_a_mapping_longer_than_the_file_sees_what_is_appended(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(100))
        told: list[object] = []
        with path.open("r+b") as file, path.open("ab", buffering=0) as appender:
            os.ftruncate(file.fileno(), 3 * 4096)
            with mmap.mmap(file.fileno(), 3 * 4096) as mapped:
                os.ftruncate(file.fileno(), 100)
                for number in range(5):
                    appender.write(b"%d" % number * 1000)
                    told.append(mapped[0 : 100 + number * 1000])
                mapped[4000:4006] = b"mapped"
                told += [path.read_bytes(), death(lambda: mapped[8192])]
        return told

    pair.same(operation)


# -- beside other ways to open


def test_a_mapped_file_is_opened_for_direct_io(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(16_384))
        buffer = mmap.mmap(-1, 4096)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[4096:4102] = b"mapped"
            direct = os.open(path, os.O_RDWR | os.O_DIRECT)
            told: list[object] = [os.preadv(direct, [buffer], 4096), buffer[:]]
            buffer[:6] = b"direct"
            told += [os.pwritev(direct, [buffer], 8192), mapped[:]]
            mapped[8192:8198] = b"mapped"
            told += [os.preadv(direct, [buffer], 8192), buffer[:]]
            os.close(direct)
        return told

    pair.same(operation)


def test_a_direct_descriptor_is_mapped(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(content(16_384))
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(direct, 0) as mapped, path.open("r+b", buffering=0) as file:
            mapped[0:6] = b"mapped"
            told: list[object] = [file.read(10), file.write(b"written"), mapped[0:20]]
        os.close(direct)
        return [*told, path.read_bytes()]

    pair.same(operation)


def test_a_mapped_file_that_is_setuid_is_opened_for_writing(pair: Pair) -> None:
    """As setuid or not when it was mapped; the mapping sees what is written."""

    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for before, after in ((0o4777, 0o4777), (0o777, 0o6777), (0o4777, 0o777)):
            path = top / f"{before:o} {after:o}"
            path.write_bytes(content(20_000))
            os.chown(path, OTHER, OTHER)
            path.chmod(before)
            with ExitStack() as stack:
                file = stack.enter_context(path.open("r+b"))
                mapped = stack.enter_context(mmap.mmap(file.fileno(), 0))
                path.chmod(after)
                for access in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND):
                    fd = os.open(path, access)
                    mapped[3:6] = b"map"
                    told += [outcome(os.pread, fd, 10, 0), outcome(os.pwrite, fd, b"x" * 9, 90)]
                    os.close(fd)
                    told += [mapped[:]]
                    path.chmod(after)
            told.append(path.read_bytes())
        return told

    pair.same(operation)


# -- times


@pytest.mark.parametrize("cache", ["never", "auto"])
def test_the_change_of_a_mapping_is_seen_in_the_time(mount: MountFactory, cache: str) -> None:
    """By make(1) and rsync(1): once it is synced and what is remembered has timed out."""
    pair = make_pair(mount(cache=cache))
    path = pair.mounted / "f"
    path.write_bytes(content(20_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        os.utime(path, ns=(10**18, 10**18))
        assert path.stat().st_mtime_ns == 10**18
        mapped[0:6] = b"mapped"
        mapped.flush()
        wait_for(lambda: path.stat().st_mtime_ns > 10**18, "the new time", 3.0)
        assert path.stat().st_mtime_ns == (pair.data / "f").stat().st_mtime_ns
    assert run_as(lambda: path.stat().st_mtime_ns > 10**18, 0)


# -- who uses a volume


def test_a_volume_is_in_use_while_one_of_its_files_is_mapped(pair: Pair) -> None:
    """Closed long since: the mapping is all that is left."""
    (pair.mounted / "f").write_bytes(content(5000))
    with (pair.mounted / "f").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    assert outcome(pair.mounted.rmdir) == "EBUSY"
    mapped[0:6] = b"mapped"
    assert (pair.mounted / "f").read_bytes()[:6] == b"mapped"
    mapped.close()
    pair.mounted.rmdir()
    assert not pair.data.exists()
