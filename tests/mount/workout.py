"""What programs do with files every day, a little of everything, to be done anywhere.

Each function works in a directory that it finds empty and returns what must be the same in the
tree and on the backing filesystem.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.children import Child
from tests.mount.comparing import outcome
from tests.mount.test_reading_and_writing import content


def reading_and_writing(top: Path) -> list[object]:
    path = top / "f"
    data = content(1_500_001)
    path.write_bytes(data)
    told: list[object] = [path.read_bytes() == data, path.stat().st_size]
    with path.open("r+b", buffering=0) as file:
        for start in range(0, 1_600_000, 99_991):
            file.seek(start)
            told.append(file.write(content(5003, start)))
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
        told += [os.pread(file.fileno(), 5003, 99_991), os.pread(file.fileno(), 9, 1 << 30)]
    return [*told, path.read_bytes()]


def several_opens(top: Path) -> list[object]:
    path = top / "f"
    creator = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    opened = [os.open(path, access) for access in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)]
    opened.append(os.open(path, os.O_WRONLY | os.O_APPEND))
    os.link(path, top / "link")
    opened.append(os.open(top / "link", os.O_RDWR))
    told: list[object] = []
    for number, fd in enumerate((creator, *opened)):
        told += [outcome(os.write, fd, b"%d" % number * 99), outcome(os.pread, fd, 1000, 0)]
    os.close(creator)
    path.unlink()
    for number, fd in enumerate(opened):
        told += [outcome(os.write, fd, b"%d" % number * 99), outcome(os.pread, fd, 1000, 0)]
        told += [os.fstat(fd).st_nlink, os.fstat(fd).st_size]
        os.close(fd)
    return [*told, (top / "link").read_bytes()]


def mapping(top: Path) -> list[object]:
    path = top / "f"
    path.write_bytes(content(20_000))
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as mapped:

        def other() -> bytes:
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as there:
                there[10_000:10_005] = b"other"
                return there[0:10]

        mapped[0:6] = b"mapped"
        told: list[object] = [run_in_child(other), mapped[9_990:10_010]]
        told += [os.pread(file.fileno(), 10, 0), file.write(b"written"), mapped[0:10]]
        mapped[19_990:20_000] = b"0123456789"
        mapped.flush()
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as private:
            private[0:7] = b"private"
            told += [private[0:10], mapped[0:10]]
        told.append(path.read_bytes())
        path.unlink()
        told += [mapped[0:10], os.fstat(file.fileno()).st_nlink]
    return told


def run_in_child(call: Callable[[], bytes]) -> bytes:
    """In another process, as the same user."""
    with Child(call) as child:
        return child.result()


def appending(top: Path) -> object:
    path = top / "log"
    path.touch()

    def append(letter: bytes) -> None:
        with path.open("ab", buffering=0) as file:
            for _ in range(100):
                file.write(letter * 513)

    with Child(partial(append, b"a")) as one, Child(partial(append, b"b")) as two:
        one.result()
        two.result()
    written = path.read_bytes()
    return sorted(written[start : start + 513] for start in range(0, len(written), 513))


def truncation(top: Path) -> list[object]:
    path = top / "f"
    path.write_bytes(content(50_000))
    told: list[object] = []
    with path.open("r+b", buffering=0) as file:
        for size in (30_001, 60_001, 4096, 0, 1 << 32, 5):
            file.truncate(size)
            told += [os.fstat(file.fileno()).st_size, os.pread(file.fileno(), 20, size - 10)]
        os.truncate(path, 8)
        told += [path.read_bytes(), file.write(b"123"), path.read_bytes()]
        with path.open("wb"):
            told += [os.fstat(file.fileno()).st_size, file.write(b"456"), path.read_bytes()]
    return told


def renaming_and_unlinking(top: Path) -> list[object]:
    (top / "d").mkdir()
    one, two = top / "one", top / "d" / "two"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    with one.open("r+b", buffering=0) as first, two.open("r+b", buffering=0) as second:
        one.rename(two)
        told: list[object] = [two.read_bytes(), second.read(), first.write(b"ONE")]
        told += [two.read_bytes(), os.fstat(second.fileno()).st_nlink, second.write(b"more")]
        two.unlink()
        told += [os.pread(first.fileno(), 9, 0), os.pread(second.fileno(), 9, 0)]
        told += [outcome(two.stat), os.listdir(top / "d")]
        (top / "d").rename(top / "e")
        (top / "e").rmdir()
    return [*told, os.listdir(top)]


def direct_io(top: Path) -> list[object]:
    path = top / "f"
    path.write_bytes(content(16_384))
    buffer = mmap.mmap(-1, 8192)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    told: list[object] = [os.preadv(fd, [buffer], 4096), buffer[:]]
    buffer[:6] = b"direct"
    told += [os.pwritev(fd, [buffer], 16_384), path.read_bytes()]
    os.close(fd)
    return told


def programs(top: Path) -> list[object]:
    program = top / "echo"
    shutil.copy(shutil.which("echo") or "/bin/echo", program)
    script = top / "script"
    script.write_text(f"#!{program} interpreted\n")
    script.chmod(0o755)
    told: list[object] = []
    for path in (program, script):
        with path.open("rb"):
            told.append(subprocess.run([path], check=True, stdout=-1).stdout.split()[:1])
    return told


def copying(top: Path) -> list[object]:
    data = content(700_001)
    (top / "source").write_bytes(data)
    with (top / "source").open("rb") as reader, (top / "sent").open("wb") as writer:
        done = 0
        while count := os.sendfile(writer.fileno(), reader.fileno(), done, len(data)):
            done += count
    with (top / "source").open("rb") as reader, (top / "copied").open("wb") as writer:
        while os.copy_file_range(reader.fileno(), writer.fileno(), len(data)):
            pass
    subprocess.run(["cp", "-a", top / "source", top / "by cp"], check=True)
    return [done, *((top / n).read_bytes() == data for n in ("sent", "copied", "by cp"))]


def locking(top: Path) -> list[object]:
    path = top / "f"
    path.touch()

    def attempt() -> list[object]:
        with path.open("r+b") as file:
            how = fcntl.LOCK_EX | fcntl.LOCK_NB
            return [outcome(fcntl.flock, file, how), outcome(fcntl.lockf, file, how)]

    told: list[object] = []
    with path.open("r+b") as file:
        for lock in (fcntl.flock, fcntl.lockf):
            lock(file, fcntl.LOCK_EX)
            with Child(attempt) as child:
                told.append(child.result())
            lock(file, fcntl.LOCK_UN)
    return told


def access_beyond_the_end(top: Path) -> list[object]:
    path = top / "f"
    path.write_bytes(content(10_000))

    def touch(place: int) -> bytes:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            os.truncate(path, 4097)
            return mapped[place : place + 3]

    told: list[object] = []
    for place in (4090, 4097, 8192):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            os._exit(0 if touch(place) else 1)
        told.append(os.waitpid(pid, 0)[1])
        path.write_bytes(content(10_000))
    return told


WORKOUT: dict[str, Callable[[Path], object]] = {
    "reading and writing": reading_and_writing,
    "several opens": several_opens,
    "mapping": mapping,
    "appending": appending,
    "truncation": truncation,
    "renaming and unlinking": renaming_and_unlinking,
    "direct io": direct_io,
    "programs": programs,
    "copying": copying,
    "locking": locking,
    "access beyond the end": access_beyond_the_end,
}
