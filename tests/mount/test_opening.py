"""How files are opened: every flag on every kind of file, races, programs run and held."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.children import USER, Child, run_as
from tests.conftest import Mounted, wait_for
from tests.mount.comparing import Pair, outcome

CONTENT = bytes(range(256)) * 64

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
