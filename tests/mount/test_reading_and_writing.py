"""Reading, writing, copying and syncing the content of files, past the cache too."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.children import Child, run_as
from tests.conftest import Mounted
from tests.mount.comparing import Pair, outcome

_libc = ctypes.CDLL(None, use_errno=True)

CONTENT = bytes(range(256)) * 64


def content(length: int, seed: int = 1) -> bytes:
    """Bytes in which no two places look alike."""
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(length)


def test_direct_io_needs_no_alignment_and_sees_the_same_bytes(shared: Mounted, pair: Pair) -> None:
    path = pair.mounted / "f"
    if shared.level == "passthrough":
        # Then it does what the backing file's own does.
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o644)
        with pytest.raises(OSError) as raised:
            os.write(fd, b"not a block")
        os.close(fd)
        assert raised.value.errno == errno.EINVAL
        return
    data = content(100_001)
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644)
    for start in range(0, len(data), 3333):
        part = data[start : start + 3333]
        assert os.pwrite(fd, part, start) == len(part)
    assert os.fstat(fd).st_size == len(data)
    assert os.pread(fd, 777, 12_345) == data[12_345 : 12_345 + 777]
    assert os.pread(fd, 4096, len(data) - 5) == data[-5:]
    buffered = os.open(path, os.O_RDWR)
    assert os.pread(buffered, 1 << 20, 0) == data
    os.pwrite(buffered, b"through the cache", 7)
    assert os.pread(fd, 17, 7) == b"through the cache"
    os.pwrite(fd, b"past the cache!!!", 7)
    assert os.pread(buffered, 17, 7) == b"past the cache!!!"
    aligned = mmap.mmap(-1, 8192)
    assert os.preadv(fd, [aligned], 4096) == 8192
    assert bytes(aligned) == data[4096:12288]
    os.close(fd)
    os.close(buffered)
    assert (pair.data / "f").stat().st_size == len(data)


def test_appends_of_two_processes_leave_every_record_whole(pair: Pair) -> None:
    path = pair.mounted / "log"
    path.touch()
    rounds, size = 300, 513

    def append(letter: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for _ in range(rounds):
            assert os.write(fd, letter * size) == size

    with Child(partial(append, b"a")) as one, Child(partial(append, b"b")) as two:
        one.result()
        two.result()
    written = (pair.data / "log").read_bytes()
    records = [written[start : start + size] for start in range(0, len(written), size)]
    assert sorted(records) == [b"a" * size] * rounds + [b"b" * size] * rounds


def test_large_reads_and_writes(pair: Pair) -> None:
    data = content(5 << 20)
    path = pair.mounted / "f"
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    assert os.write(fd, data) == len(data)
    assert os.pread(fd, len(data) + 1, 0) == data
    os.close(fd)
    assert (pair.data / "f").read_bytes() == data
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    parts = [bytearray(1), bytearray(1 << 20), bytearray(4097), bytearray(3 << 20)]
    assert os.preadv(fd, parts, 5) == sum(map(len, parts))
    assert b"".join(parts) == data[5 : 5 + sum(map(len, parts))]
    os.close(fd)


def test_reading_around_the_end(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        fd = os.open(top / "f", os.O_CREAT | os.O_RDWR, 0o644)
        told: list[object] = [os.pread(fd, 10, 0), os.pread(fd, 10, 1 << 40)]
        os.write(fd, b"0123456789")
        told += [os.pread(fd, size, start) for size in (0, 1, 10, 4096) for start in (0, 9, 10, 99)]
        told += [outcome(os.pread, fd, 1, -1), outcome(os.lseek, fd, -1, os.SEEK_SET)]
        told += [os.lseek(fd, 5, os.SEEK_END), os.read(fd, 5), os.write(fd, b"x")]
        told += [os.pread(fd, 100, 0), os.fstat(fd).st_size]
        os.close(fd)
        return told

    pair.same(operation)


def test_offsets_beyond_four_gigabytes(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        fd = os.open(top / "f", os.O_CREAT | os.O_RDWR, 0o644)
        places = [(1 << 32) - 3, 1 << 33, (1 << 40) + 1]
        for place in places:
            os.pwrite(fd, b"island", place)
        told: list[object] = [os.pread(fd, 8, place - 1) for place in places]
        told += [os.fstat(fd).st_size, os.pread(fd, 4, 1 << 35)]
        os.fsync(fd)
        told.append(os.fstat(fd).st_blocks)
        os.ftruncate(fd, 1 << 33)
        told += [os.fstat(fd).st_size, os.pread(fd, 8, (1 << 33) - 1)]
        told.append(outcome(os.pwrite, fd, b"x", (1 << 63) - 1))
        told.append(outcome(os.ftruncate, fd, 1 << 62))
        os.close(fd)
        return told

    pair.same(operation)


def test_file_size_limits_hold(pair: Pair) -> None:
    def limited(top: Path) -> list[object]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        fd = os.open(top / "f", os.O_CREAT | os.O_RDWR, 0o644)
        return [
            outcome(os.write, fd, b"x" * 900),
            outcome(os.write, fd, b"x" * 900),
            outcome(os.write, fd, b"x" * 900),
            outcome(os.ftruncate, fd, 1001),
            os.fstat(fd).st_size,
        ]

    pair.same(lambda top: run_as(partial(limited, top), 0))


def test_sendfile_splice_and_copying(pair: Pair) -> None:
    data = content(300_000)
    source, target = pair.mounted / "source", pair.mounted / "target"
    source.write_bytes(data)
    with source.open("rb") as reader, target.open("wb") as writer:
        sent = 0
        while sent < len(data):
            sent += os.sendfile(writer.fileno(), reader.fileno(), sent, len(data) - sent)
    assert (pair.data / "target").read_bytes() == data
    reading, writing = os.pipe()
    with source.open("rb") as reader, (pair.mounted / "spliced").open("wb") as writer:
        done = 0
        while moved := os.splice(reader.fileno(), writing, 1 << 16):
            while moved:
                count = os.splice(reading, writer.fileno(), moved)
                moved -= count
                done += count
    os.close(reading)
    os.close(writing)
    assert done == len(data)
    assert (pair.data / "spliced").read_bytes() == data
    with source.open("rb") as reader, (pair.mounted / "ranged").open("wb") as writer:
        done = 0
        while count := os.copy_file_range(reader.fileno(), writer.fileno(), len(data)):
            done += count
    assert (pair.data / "ranged").read_bytes() == data
    subprocess.run(["cp", "--sparse=always", source, pair.mounted / "copied"], check=True)
    assert (pair.data / "copied").read_bytes() == data


@pytest.mark.parametrize("call", [os.fsync, os.fdatasync], ids=["fsync", "fdatasync"])
def test_synced_data_is_in_the_data_path(pair: Pair, call: Callable[[int], None]) -> None:
    fd = os.open(pair.mounted / "f", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(fd, CONTENT)
    call(fd)
    assert (pair.data / "f").read_bytes() == CONTENT
    assert _libc.syncfs(fd) == 0
    directory = os.open(pair.mounted, os.O_RDONLY)
    call(directory)
    os.close(directory)
    os.close(fd)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_way_to_a_files_bytes_sees_the_same(shared: Mounted, pair: Pair, seed: int) -> None:
    """Reads, writes, appends, direct I/O, maps and truncation of one file, all mixed."""
    random = Random(seed)
    path = pair.mounted / "f"
    expected = bytearray(content(20_000, seed))
    path.write_bytes(expected)
    flags = {"plain": 0, "direct": os.O_DIRECT, "synchronous": os.O_SYNC}
    if shared.level == "passthrough":
        del flags["direct"]  # which then asks for alignment
    ways = {name: os.open(path, os.O_RDWR | flag) for name, flag in flags.items()}
    appender = os.open(path, os.O_WRONLY | os.O_APPEND)
    history = []
    for step in range(400):
        action = random.choice(["read", "write", "write", "append", "truncate", "map", "reopen"])
        way = random.choice(list(ways))
        start = random.randrange(len(expected) + 3000)
        piece = content(random.choice([1, 100, 4096, 5000]), seed * 1000 + step)
        history.append((action, way, start, len(piece)))
        if action == "write":
            assert os.pwrite(ways[way], piece, start) == len(piece)
            expected.extend(bytes(max(0, start - len(expected))))
            expected[start : start + len(piece)] = piece
        elif action == "append":
            assert os.write(appender, piece) == len(piece)
            expected.extend(piece)
        elif action == "truncate":
            size = min(start, 60_000)
            os.ftruncate(ways[way], size)
            expected.extend(bytes(max(0, size - len(expected))))
            del expected[size:]
        elif action == "map" and expected:
            start %= len(expected)
            piece = piece[: len(expected) - start]
            with mmap.mmap(ways["plain"], 0) as mapped:
                assert mapped[:] == expected, history
                mapped[start : start + len(piece)] = piece
            expected[start : start + len(piece)] = piece
        elif action == "reopen":
            os.close(ways[way])
            ways[way] = os.open(path, os.O_RDWR | flags[way])
        assert os.pread(ways[way], 100_000, 0) == expected, history
        assert os.fstat(ways[way]).st_size == len(expected), history
    for fd in (*ways.values(), appender):
        os.fsync(fd)
        os.close(fd)
    assert (pair.data / "f").read_bytes() == expected
