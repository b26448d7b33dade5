"""Bench: a LockTable on real files, asked without a mount, and those who lock them outside."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing

from tests.conftest import wait_for
from volfs.fs.inodes import Device, FileHandle, Inode
from volfs.fs.locks import END, Lock, LockTable
from volfs.fs.locks.processes import locks_by_description

READ, WRITE, NONE = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
A, B, C = 101, 102, 103
"""Lock owners."""

NAMES = {**errno.errorcode, errno.EDEADLK: "EDEADLK"}
WHOLE = Lock(0, END, WRITE)
DEADLINE = 10.0


class Bench:
    """A LockTable and files that it locks."""

    def __init__(self, workspace: Path, *, slow: bool) -> None:
        self.workspace = workspace
        self.slow = slow
        directory = os.open(workspace, os.O_RDONLY)
        self.device = Device(os.fstat(directory).st_dev, directory, main=True)
        os.close(directory)
        self.device.slow = slow
        self.opened = 0
        self.refused: dict[int, int] = {}
        self.handles: list[FileHandle] = []
        self.table = LockTable(
            self._open_again, lambda handle: handle.fd, lambda handle, has: None, self._run
        )

    def _open_again(self, inode: Inode, flags: int) -> int:
        self.opened += 1
        if flags & os.O_ACCMODE in self.refused:
            number = self.refused[flags & os.O_ACCMODE]
            raise OSError(number, os.strerror(number))
        return os.open(self.path(inode), flags | os.O_CLOEXEC)

    async def _run(self, call: Callable[[], Any], inode: Inode) -> Any:
        assert self.slow, "local calls need no thread"
        return await trio.to_thread.run_sync(call)

    def path(self, inode: Inode) -> bytes:
        return os.fsencode(self.workspace) + b"/" + inode.name

    def file(self, name: str = "file") -> Inode:
        """A new file."""
        path = self.workspace / name
        path.write_bytes(b"content")
        status = path.stat()
        number = status.st_ino
        return Inode(number, number, self.device, number, None, name.encode())

    def open(self, inode: Inode, flags: int = os.O_RDWR) -> FileHandle:
        """Open a file, as the tree does upon a request."""
        handle = FileHandle(os.open(self.path(inode), flags), inode, flags, os.getpid())
        inode.opens = [*(inode.opens or []), handle]
        self.handles.append(handle)
        return handle

    async def release(self, handle: FileHandle) -> None:
        """Close a file, as the tree does when nobody has it open any more."""
        assert handle.inode.opens is not None
        handle.inode.opens.remove(handle)
        self.handles.remove(handle)
        os.close(handle.fd)
        await self.call(lambda: self.table.released(handle))

    async def flush(self, handle: FileHandle, owner: int) -> None:
        await self.call(lambda: self.table.flushed(handle.inode, owner))

    async def call(self, call: Callable[[], object]) -> None:
        if self.slow:
            await trio.to_thread.run_sync(call)
        else:
            call()

    async def lock(
        self, handle: FileHandle, owner: int, lock: Lock = WHOLE, **how: Any
    ) -> str | None:
        """Set a lock, and return None or the name of the errno."""
        try:
            await self.table.set(handle, owner, lock, **how)
        except OSError as error:
            return NAMES[error.errno or 0]
        return None

    async def unlock(self, handle: FileHandle, owner: int, **how: Any) -> None:
        assert await self.lock(handle, owner, Lock(0, END, NONE), **how) is None

    async def waits(self, count: int) -> None:
        """Wait until so many wait for a lock, and nothing else happens."""
        while True:
            await trio.testing.wait_all_tasks_blocked(0.001)
            if self.table.waiting == count:
                return

    def descriptors(self) -> int:
        """How many descriptors of files in the workspace this process has, but for handles."""
        count = -len(self.handles)
        for number in os.listdir("/proc/self/fd"):
            try:
                target = Path(f"/proc/self/fd/{number}").readlink()
            except FileNotFoundError:
                continue
            count += self.workspace in target.parents
        return count


@asynccontextmanager
async def prepared(workspace: Path, *, slow: bool) -> AsyncIterator[Bench]:
    """A bench with its table served; at the end nothing must be left of any lock."""
    bench = Bench(workspace, slow=slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.table.serve)
        with trio.fail_after(DEADLINE):
            yield bench
        nursery.cancel_scope.cancel()
    for handle in list(bench.handles):
        await bench.release(handle)
    assert bench.table.waiting == 0
    assert bench.descriptors() == 0, "descriptors for locks outlived all handles"
    bench.table.close()


@contextmanager
def outside(bench: Bench, inode: Inode) -> Iterator[int]:
    """A descriptor of the file that the table knows nothing of."""
    fd = os.open(bench.path(inode), os.O_RDWR)
    try:
        bench.handles.append(FileHandle(fd, inode, os.O_RDWR, 0))
        yield fd
    finally:
        bench.handles.pop()
        os.close(fd)


def record(fd: int, kind: int, start: int = 0, length: int = 0) -> str | None:
    """Set a record lock outside, and return None or the name of the errno."""
    order = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, order)
    except OSError as error:
        return NAMES[error.errno or 0]
    return None


def flock(fd: int, operation: int) -> str | None:
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except OSError as error:
        return NAMES[error.errno or 0]
    return None


@contextmanager
def asking_process(path: Path, command: int) -> Iterator[int]:
    """A process that waits in fcntl(2) with this command, as one that asks for a lock does."""
    path.touch()
    fd = os.open(path, os.O_RDWR)
    order = struct.pack("hhqqi4x", WRITE, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, order)
    pid = os.fork()
    if pid == 0:
        try:
            fcntl.fcntl(os.open(path, os.O_RDWR), command, order)
        finally:
            os._exit(0)
    try:
        wait_for(
            lambda: (
                Path(f"/proc/{pid}/stat").read_text().split()[2] == "S"
                and locks_by_description(pid) is not None
            ),
            "the process to wait",
        )
        yield pid
    finally:
        end(pid)
        os.close(fd)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
