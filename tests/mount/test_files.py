"""What programs do with open files, names and links."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import resource
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.conftest import Mounted, MountFactory, wait_for
from tests.mount.children import USER, Child, run_as
from tests.mount.comparing import Pair, outcome
from volfs import syscalls

_libc = ctypes.CDLL(None, use_errno=True)

CONTENT = bytes(range(256)) * 64


def content(length: int, seed: int = 1) -> bytes:
    """Bytes in which no two places look alike."""
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(length)


# -- open


ACCESSES = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3]
FLAGS = {
    "none": 0,
    "append": os.O_APPEND,
    "create": os.O_CREAT,
    "exclusive": os.O_CREAT | os.O_EXCL,
    "truncate": os.O_TRUNC,
    "create and truncate": os.O_CREAT | os.O_TRUNC,
    "directory": os.O_DIRECTORY,
    "create directory": os.O_CREAT | os.O_DIRECTORY,
    "no follow": os.O_NOFOLLOW,
    "path": os.O_PATH,
    "sync": os.O_SYNC,
    "data sync": os.O_DSYNC,
    "no atime": os.O_NOATIME,
    "non-blocking": os.O_NONBLOCK,
    "direct": os.O_DIRECT,
}


def make_targets(top: Path) -> list[str]:
    (top / "file").write_bytes(CONTENT)
    (top / "directory").mkdir()
    (top / "to file").symlink_to("file")
    (top / "to directory").symlink_to("directory")
    (top / "dangling").symlink_to("created through a link")
    (top / "loop").symlink_to("loop")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(top / "socket"))
    return [path.name for path in sorted(top.iterdir())] + ["missing", "file/", "missing/"]


def use(path: str, flags: int) -> list[object]:
    """Open, try everything with the descriptor, tell what came of it."""
    fd = os.open(path, flags, 0o644)
    try:
        status = os.fstat(fd)
        told: list[object] = [stat.S_IFMT(status.st_mode), status.st_size]
        if stat.S_ISREG(status.st_mode):
            if not flags & os.O_DIRECT:
                told.append(outcome(os.pread, fd, 5, 3))
                told.append(outcome(os.write, fd, b"written"))
                told.append(outcome(os.pwrite, fd, b"positioned", 1))
                told.append(outcome(os.lseek, fd, 0, os.SEEK_CUR))
            told.append(outcome(os.ftruncate, fd, 20))
            told.append(outcome(os.fsync, fd))
        if stat.S_ISDIR(status.st_mode):
            told.append(outcome(os.listdir, fd))
            told.append(outcome(os.read, fd, 1))
            told.append(outcome(os.fsync, fd))
        told.append(fcntl.fcntl(fd, fcntl.F_GETFL) & ~0o100000)
        return told
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS.keys())
def test_open_flags_on_every_kind_of_file(pair: Pair, flags: int) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for number, access in enumerate(ACCESSES):
            here = top / str(number)
            here.mkdir()
            for name in make_targets(here):
                if name == "fifo" and not flags & (os.O_PATH | os.O_NONBLOCK):
                    continue  # would wait for the other end
                told.append((name, access, outcome(use, f"{here}/{name}", access | flags)))
            left = [(path.name, path.lstat().st_size) for path in sorted(here.iterdir())]
            told.append([(name, size) for name, size in left if "directory" not in name])
            told.append((here / "file").read_bytes())
        return told

    pair.same(operation)


def test_direct_io_needs_no_alignment_and_sees_the_same_bytes(pair: Pair) -> None:
    path = pair.mounted / "f"
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


def test_of_many_exclusive_creators_one_wins(pair: Pair) -> None:
    pair.mounted.chmod(0o777)
    rounds = 30

    def race() -> list[int]:
        won = []
        for number in range(rounds):
            try:
                os.close(os.open(pair.mounted / str(number), os.O_CREAT | os.O_EXCL, 0o644))
            except FileExistsError:
                continue
            won.append(number)
        return won

    children = [Child(race, uid=USER + number) for number in range(4)]
    won = []
    for child in children:
        with child:
            won += child.result()
    assert sorted(won) == list(range(rounds))


def test_shell_redirections_and_noclobber(pair: Pair) -> None:
    script = "set -C; echo one > f; echo two > f; echo three >> f; set +C; echo four > g; cat f g"

    def operation(top: Path) -> tuple[str, int]:
        done = subprocess.run(["sh", "-c", script], cwd=top, stdout=-1, stderr=-1, text=True)
        return done.stdout, done.returncode

    pair.same(operation)


# -- reading and writing


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


def test_reading_and_writing_sides_are_kept_apart(pair: Pair) -> None:
    """One inode, opened by two with different access: neither gets the other's."""
    path = pair.mounted / "f"
    path.write_bytes(b"content")
    first = os.open(path, os.O_RDONLY)
    second = os.open(path, os.O_WRONLY)
    third = os.open(path, os.O_RDWR | os.O_APPEND)
    assert os.write(second, b"CON") == 3
    assert os.read(first, 10) == b"CONtent"
    assert os.write(third, b"!") == 1
    assert os.pread(third, 10, 0) == b"CONtent!"
    os.close(second)
    assert os.pread(first, 10, 0) == b"CONtent!"
    for fd in (first, third):
        os.close(fd)


# -- unlinked and renamed while open


def test_an_unlinked_file_stays_readable_and_writable(pair: Pair, shared: Mounted) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(b"content")
        fd = os.open(path, os.O_RDWR)
        path.unlink()
        told: list[object] = [os.listdir(top), os.read(fd, 100), os.fstat(fd).st_nlink]
        os.write(fd, b" and more")
        told += [os.pread(fd, 100, 0), os.fstat(fd).st_size]
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        told.append(os.read(again, 100))
        os.close(again)
        path.write_bytes(b"another")
        told += [os.pread(fd, 100, 0), path.read_bytes(), path.stat().st_nlink]
        os.ftruncate(fd, 3)
        os.fsync(fd)
        told += [os.pread(fd, 100, 0)]
        os.close(fd)
        return told

    pair.same(operation)
    if pair.mounted.is_relative_to(shared.mnt):
        assert shared.statistics()["open_files"] == 0


def test_the_space_of_an_unlinked_file_comes_back_at_the_last_close(
    pair: Pair, shared: Mounted
) -> None:
    path = pair.mounted / "f"
    path.write_bytes(CONTENT)
    number = path.stat().st_ino
    fd = os.open(path, os.O_RDONLY)
    path.unlink()
    assert holds(shared.pid, number)
    assert os.read(fd, len(CONTENT)) == CONTENT
    os.close(fd)
    wait_for(lambda: not holds(shared.pid, number), "the daemon to close the file", 5.0)


def holds(pid: int, number: int) -> bool:
    """Whether a process has a descriptor on a deleted file with this inode number."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            status = descriptor.stat()
        except FileNotFoundError:
            continue
        if status.st_ino == number and status.st_nlink == 0:
            return True
    return False


def test_a_renamed_file_stays_the_same_open_file(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        (top / "d").mkdir()
        path = top / "f"
        path.write_bytes(b"content")
        fd = os.open(path, os.O_RDWR)
        path.rename(top / "d" / "moved")
        os.pwrite(fd, b"CON", 0)
        told: list[object] = [(top / "d" / "moved").read_bytes()]
        (top / "g").write_bytes(b"replaced")
        replaced = os.open(top / "g", os.O_RDONLY)
        (top / "d" / "moved").rename(top / "g")
        told += [os.read(replaced, 10), (top / "g").read_bytes(), os.pread(fd, 10, 0)]
        told += [os.fstat(fd).st_ino == (top / "g").stat().st_ino]
        os.close(fd)
        os.close(replaced)
        return told

    pair.same(operation)


# -- memory maps


def test_a_shared_map_is_shared_between_processes(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.write_bytes(bytes(3 * 4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as here:
        here[5000:5005] = b"hello"

        def other() -> bytes:
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as there:
                found = there[5000:5005]
                there[4094:4098] = b"back"
                return found

        assert run_as(other, 0) == b"hello"
        assert here[4094:4098] == b"back"
        assert os.pread(file.fileno(), 4, 4094) == b"back"
        os.pwrite(file.fileno(), b"written", 0)
        assert here[:7] == b"written"
        here[100:103] = b"end"
        here.flush()
        assert (pair.data / "f").read_bytes()[:103] == here[:103]
    assert (pair.data / "f").read_bytes()[4094:4098] == b"back"


def test_a_private_map_does_not_reach_the_file(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.write_bytes(b"content")
    path.chmod(0o444)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=3) as private,
    ):
        private[:3] = b"CON"
        assert private[:] == b"CONtent"
    assert path.read_bytes() == b"content"


def test_a_map_of_an_unlinked_file_lives_on(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.write_bytes(b"content" * 2000)
    file = path.open("r+b")
    shared = mmap.mmap(file.fileno(), 0)
    file.close()
    path.unlink()
    assert shared[7000:7007] == b"content"
    shared[0:3] = b"CON"
    shared.flush()
    assert shared[0:7] == b"CONtent"
    shared.close()


def test_mapped_writes_reach_the_file_without_msync(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.write_bytes(bytes(100_000))
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
    for start in range(0, 100_000, 5000):
        shared[start : start + 4] = b"mark"
    shared.close()
    os.sync()
    assert (pair.data / "f").read_bytes() == (b"mark" + bytes(4996)) * 20


def test_a_map_of_a_file_open_for_appending(pair: Pair) -> None:
    """What the kernel writes back goes to its place, not to the end."""

    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(b"a" * 8192)
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
        with mmap.mmap(fd, 0) as shared:
            shared[0:6] = b"mapped"
            shared[5000:5006] = b"mapped"
            shared.flush()
        os.write(fd, b"appended")
        told: list[object] = [os.fstat(fd).st_size]
        os.close(fd)
        data = pair.data / "f" if top == pair.mounted else path
        return [*told, data.read_bytes()]

    pair.same(operation)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_way_to_a_files_bytes_sees_the_same(pair: Pair, seed: int) -> None:
    """Reads, writes, appends, direct I/O, maps and truncation of one file, all mixed."""
    random = Random(seed)
    path = pair.mounted / "f"
    expected = bytearray(content(20_000, seed))
    path.write_bytes(expected)
    flags = {"plain": 0, "direct": os.O_DIRECT, "synchronous": os.O_SYNC}
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


# -- programs


def test_scripts_and_programs_run_from_the_tree(pair: Pair) -> None:
    pair.mounted.chmod(0o777)
    script = pair.mounted / "script"
    script.write_text("#!/bin/sh\necho script $1\n")
    script.chmod(0o755)
    program = pair.mounted / "program"
    shutil.copy("/bin/echo", program)
    for uid in (0, USER):

        def run(path: Path) -> str:
            return subprocess.run([path, "ran"], check=True, stdout=-1, text=True).stdout

        assert run_as(partial(run, script), uid) == "script ran\n"
        assert run_as(partial(run, program), uid) == "ran\n"
    script.chmod(0o644)
    with pytest.raises(PermissionError):
        subprocess.run([script], check=True)


def test_a_running_program_cannot_be_written(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        program = top / "program"
        shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
        with subprocess.Popen([program, "30"]) as running:
            try:
                told: list[object] = [
                    outcome(lambda: program.open("r+b").close()),
                    outcome(os.truncate, program, 0),
                    outcome(lambda: program.open("rb").close()),
                ]
                program.rename(top / "elsewhere")
                program.write_bytes(b"new")
                (top / "elsewhere").unlink()
            finally:
                running.kill()
        with program.open("r+b"):
            program.chmod(0o755)
            told.append(outcome(os.execv, program, ["program"]))
        return told

    assert pair.same(operation) == ["ETXTBSY", "ETXTBSY", None, "ETXTBSY"]


# -- locks


def try_lock(path: Path, how: str) -> object:
    """Try to take a lock without waiting, in a process of its own."""

    def attempt() -> object:
        with path.open("r+b") as file:
            if how == "flock":
                return outcome(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if how == "shared flock":
                return outcome(fcntl.flock, file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            start = 50 if how == "other range" else 0
            kind = fcntl.LOCK_SH if how == "read" else fcntl.LOCK_EX
            return outcome(fcntl.lockf, file, kind | fcntl.LOCK_NB, 10, start)

    return run_as(attempt, 0)


def test_locks_between_processes(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        path.write_bytes(b"content")
        told = []
        ways = ("flock", "shared flock", "write", "read", "other range")
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            told += [try_lock(path, how) for how in ways]
            fcntl.flock(file, fcntl.LOCK_SH)
            told += [try_lock(path, how) for how in ways]
            fcntl.flock(file, fcntl.LOCK_UN)
            fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
            told += [try_lock(path, how) for how in ways]
            fcntl.lockf(file, fcntl.LOCK_SH, 10, 0)
            told += [try_lock(path, how) for how in ways]
            with path.open("rb"):
                pass  # closing any descriptor drops the record locks of the process
            told += [try_lock(path, how) for how in ways]
        return told

    pair.same(operation)


def test_a_waiting_locker_is_woken(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.touch()
    ready, told = os.pipe()

    def wait() -> str:
        with path.open("r+b") as file:
            os.write(told, b"x")
            fcntl.lockf(file, fcntl.LOCK_EX)
        return "woken"

    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        with Child(wait) as child:
            os.read(ready, 1)
            fcntl.lockf(file, fcntl.LOCK_UN)
            assert child.result() == "woken"
    os.close(ready)
    os.close(told)


def test_the_lock_of_a_killed_process_goes(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.touch()
    ready, told = os.pipe()

    def hold() -> None:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            os.write(told, b"x")
            signal.pause()

    with Child(hold):
        os.read(ready, 1)
        assert try_lock(path, "write") in ("EAGAIN", "EACCES")
    assert try_lock(path, "write") is None
    os.close(ready)
    os.close(told)


def test_open_file_description_locks(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        first = os.open(top / "f", os.O_CREAT | os.O_RDWR, 0o644)
        second = os.open(top / "f", os.O_RDWR)
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
        told: list[object] = [
            outcome(fcntl.fcntl, first, fcntl.F_OFD_SETLK, lock) == lock,
            outcome(fcntl.fcntl, second, fcntl.F_OFD_SETLK, lock),
        ]
        os.close(first)
        told.append(outcome(fcntl.fcntl, second, fcntl.F_OFD_SETLK, lock) == lock)
        os.close(second)
        return told

    assert pair.same(operation) == [True, "EAGAIN", True]


def test_poll_finds_files_always_ready_and_pipes_work(pair: Pair) -> None:
    path = pair.mounted / "f"
    path.touch()
    with path.open("r+b") as file:
        poll = select.poll()
        poll.register(file, select.POLLIN | select.POLLOUT)
        assert poll.poll(0) == [(file.fileno(), select.POLLIN | select.POLLOUT)]
    os.mkfifo(pair.mounted / "fifo", 0o666)

    def write() -> None:
        with (pair.mounted / "fifo").open("wb") as pipe:
            pipe.write(b"through")

    with Child(write) as child:
        assert (pair.mounted / "fifo").read_bytes() == b"through"
        child.result()


def test_unix_sockets_connect_through_the_tree(pair: Pair) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(pair.mounted / "s"))
        server.listen()
        client.connect(str(pair.mounted / "s"))
        connection, _ = server.accept()
        client.sendall(b"hello")
        with connection:
            assert connection.recv(10) == b"hello"


# -- names

NAMES = {
    "one letter": b"a",
    "255 bytes": b"n" * 255,
    "255 bytes of umlauts": "ü".encode() * 127 + b"n",
    "256 bytes": b"n" * 256,
    "1023 bytes": b"n" * 1023,
    "1025 bytes": b"n" * 1025,
    "not UTF-8": b"\xff\xfe\x80name",
    "cut UTF-8": b"name\xc3",
    "spaces": b" . ",
    "newline": b"a\nb",
    "control": bytes(range(1, 32)),
    "dots": b"...",
    "dash": b"-rf",
    "backslash": b"a\\b",
    "colon": b"a:b",
    "wide": "漢字🙂".encode(),
    "decomposed": "é".encode(),
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_every_name_the_disk_takes(pair: Pair, name: bytes) -> None:
    def operation(top: Path) -> list[object]:
        path = os.fsencode(top) + b"/" + name
        other = path + b"2" if len(name) < 255 else path[:-1] + b"2"
        told: list[object] = [
            outcome(os.lstat, path) if len(name) > 255 else None,
            outcome(lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL))),
            outcome(lambda: sorted(os.listdir(os.fsencode(top)))),
            outcome(os.rename, path, other),
            outcome(os.link, other, path),
            outcome(os.unlink, path),
            outcome(os.mkdir, path),
            outcome(lambda: sorted(os.listdir(os.fsencode(top)))),
            outcome(os.rmdir, path),
            outcome(os.symlink, name[:255], path),
            outcome(os.readlink, path),
            outcome(os.mkfifo, path + b"3"),
        ]
        return told

    pair.same(operation)


def test_a_tree_deeper_than_a_path_can_name(pair: Pair) -> None:
    depth = 3000

    def build() -> tuple[bytes, str]:
        os.chdir(pair.mounted)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("bottom").write_bytes(b"reached")
        read = Path("bottom").read_bytes()
        Path("bottom").unlink()
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d")
        return read, os.getcwd()

    assert run_as(build, 0) == (b"reached", str(pair.mounted))
    assert os.listdir(pair.data) == []


def test_tools_walk_and_remove_what_no_path_can_name(pair: Pair) -> None:
    name, depth = "directory" * 5, 150

    def build() -> None:
        os.chdir(pair.mounted)
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
        Path("bottom").touch()

    run_as(build, 0)
    command = ["find", ".", "-name", "bottom", "-printf", "%d"]
    found = subprocess.run(command, cwd=pair.mounted, check=True, stdout=-1, text=True).stdout
    assert found == f"{depth + 1}"
    subprocess.run(["rm", "-r", name], cwd=pair.mounted, check=True)
    assert os.listdir(pair.data) == []


def test_a_deep_tree_with_few_descriptors_in_a_mount_of_a_user(mount: MountFactory) -> None:
    """Without file handles, an inode that lost its descriptor is reached from its parents."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    tree = mount(user=USER, preexec=limit)
    depth = 1000

    def work() -> int:
        (tree.mnt / "v").mkdir()
        os.chdir(tree.mnt / "v")
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("bottom").write_bytes(b"reached")
        here = os.open(".", os.O_RDONLY | os.O_PATH)
        os.chdir(tree.mnt / "v")
        for number in range(300):  # which drives the others out
            os.mkdir(f"other{number}")
        for _ in range(3):
            os.stat("bottom", dir_fd=here)
            os.close(os.open("bottom", os.O_RDWR, dir_fd=here))
        size = os.stat("bottom", dir_fd=here).st_size
        os.chdir("/")
        return size

    assert run_as(work) == len(b"reached")
    subprocess.run(["rm", "-rf", tree.data("v") / "d"], check=True)


def test_what_was_renamed_is_found_again_in_a_mount_of_a_user(mount: MountFactory) -> None:
    """The same, when the names on the way have changed since."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    tree = mount(user=USER, preexec=limit)

    def work() -> list[bytes]:
        top = tree.mnt / "v"
        held = {}
        for name in ("moved", "into", "one", "two", "over"):
            (top / name / "sub").mkdir(parents=True)
            (top / name / "sub" / "f").write_bytes(name.encode())
            held[name] = os.open(top / name / "sub", os.O_PATH)
        (top / "moved").rename(top / "renamed")
        (top / "into").rename(top / "renamed" / "into")
        syscalls.renameat2(
            syscalls.AT_FDCWD,
            os.fsencode(top / "one"),
            syscalls.AT_FDCWD,
            os.fsencode(top / "two" / "sub"),
            syscalls.RENAME_EXCHANGE,
        )
        (top / "empty").mkdir()
        (top / "over").rename(top / "empty")
        for number in range(300):
            (top / f"other{number}").mkdir()  # which drives the others out
        told = []
        for fd in held.values():
            file = os.open("f", os.O_RDONLY, dir_fd=fd)
            told.append(os.read(file, 10))
            os.close(file)
            os.close(fd)
        return told

    assert run_as(work) == [b"moved", b"into", b"one", b"two", b"over"]


# -- symlinks


TARGETS = {
    "one letter": "a",
    "the longest": "t" * 4095,
    "too long": "t" * 4096,
    "absolute": "/etc/hostname",
    "out of the tree": "../../../../../../etc/passwd",
    "dots": "..",
    "empty": "",
    "trailing slash": "directory/",
    "not UTF-8": os.fsdecode(b"\xff\xfe"),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_symlink_targets_are_data(pair: Pair, target: str) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "s"
        return [
            outcome(os.symlink, target, path),
            outcome(os.readlink, path),
            outcome(lambda: os.lstat(path).st_size),
            outcome(lambda: os.lstat(path).st_mode),
            outcome(lambda: [(entry.name, entry.is_symlink()) for entry in os.scandir(top)]),
        ]

    pair.same(operation)


def test_links_lead_where_the_caller_would_go(pair: Pair, shared: Mounted) -> None:
    """Resolution is the caller's: the daemon's own root and permissions do not count."""
    inside = pair.mounted / "inside"
    inside.write_bytes(b"in the tree")
    absolute = pair.mounted / "absolute"
    absolute.symlink_to(inside)
    relative = pair.mounted / "relative"
    relative.symlink_to(f"../{pair.mounted.name}/inside")
    secret = shared.scope.parent / "secret"
    secret.write_bytes(b"outside")
    secret.chmod(0o600)
    out = pair.mounted / "out"
    out.symlink_to(secret)
    magic = pair.mounted / "magic"
    magic.symlink_to("/proc/self/root")
    assert absolute.read_bytes() == relative.read_bytes() == b"in the tree"
    assert out.read_bytes() == b"outside"
    with pytest.raises(PermissionError):
        run_as(out.read_bytes)
    with pytest.raises(FileExistsError):
        os.mkdir(out)
    with pytest.raises(FileExistsError):
        os.close(os.open(out, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    os.lchown(out, 12, 34)
    os.utime(out, ns=(5, 5), follow_symlinks=False)
    assert secret.stat().st_uid == 0
    assert secret.stat().st_mtime_ns != 5
    out.rename(pair.mounted / "moved")
    (pair.mounted / "moved").unlink()
    assert secret.read_bytes() == b"outside"
    assert os.path.samestat(os.stat("/"), magic.stat())


def test_a_directory_replaced_by_a_link_behind_the_mount_is_not_followed(
    mount: MountFactory, workspace: Path
) -> None:
    """What a container does to trick a service on the host: swap a directory for a link.

    The user has no way into the place outside, but the daemon has.
    """
    tree = mount(cache="always")
    top = tree.mnt / "v"
    (top / "d").mkdir(parents=True)
    (top / "d" / "f").write_bytes(b"inside")
    for path in (top, top / "d", top / "d" / "f"):
        os.chown(path, USER, USER)
    outside = workspace / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"outside")
    outside.chmod(0o700)

    def trick() -> int:
        fd = os.open(top / "d", os.O_RDONLY)
        (tree.data("v") / "d").rename(tree.data("v") / "hidden")
        (tree.data("v") / "d").symlink_to(outside)
        done = 0
        for number in range(50):
            path = top / "d" / f"new{number}"
            for call in (
                path.touch,
                path.mkdir,
                (top / "d" / "f").read_bytes,
                (top / "d" / "f").unlink,
            ):
                outcome(call)
            done += outcome(lambda: os.close(os.open("f", os.O_CREAT, dir_fd=fd))) is None
        return done

    # The user can swap it as a container does that has the data path.
    os.chmod(tree.scope / "volumes", 0o755)
    for path in tree.data("v").parents[0], tree.scope:
        path.chmod(0o755)
    assert run_as(trick) > 0
    assert os.listdir(outside) == ["f"]
    assert (outside / "f").read_bytes() == b"outside"
    assert (tree.data("v") / "hidden" / "f").exists()


# -- what cannot be done, and says so


def test_temporary_files_without_a_name(pair: Pair) -> None:
    """A known difference: O_TMPFILE is not offered; tempfile and others fall back."""
    with pytest.raises(OSError) as caught:
        os.open(pair.mounted, os.O_TMPFILE | os.O_RDWR)
    assert caught.value.errno == errno.EOPNOTSUPP
    with tempfile.TemporaryFile(dir=pair.mounted) as file:
        file.write(b"works")
        file.seek(0)
        assert file.read() == b"works"


def test_preallocation_falls_back(pair: Pair) -> None:
    """posix_fallocate of the C library writes zeros where the file system cannot."""

    def operation(top: Path) -> list[object]:
        fd = os.open(top / "f", os.O_CREAT | os.O_RDWR, 0o644)
        os.write(fd, b"content")
        os.posix_fallocate(fd, 0, 100_000)
        told: list[object] = [os.fstat(fd).st_size, os.pread(fd, 10, 0)]
        os.close(fd)
        return told

    pair.same(operation)


def test_seeking_for_data_and_holes(pair: Pair) -> None:
    """Without the file system's help everything is data, which programs must expect."""
    with (pair.mounted / "f").open("wb") as file:
        file.truncate(1 << 20)
        fd = file.fileno()
        assert os.lseek(fd, 0, os.SEEK_DATA) in (0, 1 << 20)
        assert os.lseek(fd, 0, os.SEEK_HOLE) in (0, 1 << 20)
