"""Locker: a process that opens and locks files as it is told."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import struct
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from volfs.linux.syscalls import prctl

DEADLINE = 20.0
ANYWHERE = 0
"""As ``length`` of a lock: to the end of the file, wherever that is."""

_PR_SET_DUMPABLE = 4
_FLOCK = struct.Struct("hhqqi4x")
_NAMES = {**errno.errorcode, errno.EDEADLK: "EDEADLK", errno.EACCES: "EAGAIN"}


class Locker:
    """A process; leaving the context kills it.

    Calls return what the call returned, or the name of the errno that it failed with.
    """

    def __init__(self, uid: int | None = None) -> None:
        """``uid``: become this user."""
        self._pipe, theirs = multiprocessing.Pipe()
        self._ended = False
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._pipe.close()
                if uid is not None:
                    _become(uid)
                _serve(theirs)
            finally:
                os._exit(1)
        theirs.close()

    def __call__(self, name: str, *arguments: Any) -> Any:
        self.begin(name, *arguments)
        return self.result()

    def begin(self, name: str, *arguments: Any) -> None:
        """Have it begin a call that may take its time."""
        self._pipe.send((name, arguments))

    def result(self) -> Any:
        """Wait for the call that was begun."""
        if not self._pipe.poll(DEADLINE):
            raise TimeoutError(f"no answer in {DEADLINE} s")
        return self._pipe.recv()

    @property
    def busy(self) -> bool:
        """Whether the call that was begun goes on."""
        return not self._pipe.poll(0)

    @property
    def waits_for_a_lock(self) -> bool:
        """Whether it sleeps in fcntl(2) or flock(2)."""
        number = Path(f"/proc/{self.pid}/syscall").read_text().split()[0]
        return number in _LOCKING

    def interrupt(self) -> None:
        """Send it a signal that ends what it waits for."""
        os.kill(self.pid, signal.SIGUSR1)

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def exit(self) -> None:
        """Have it exit, and wait until it is gone."""
        self._pipe.send(("exit", ()))
        self._reap()

    def _reap(self) -> None:
        os.waitpid(self.pid, 0)
        self._ended = True

    def __enter__(self) -> Locker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()
        self._pipe.close()


# Numbers of fcntl and flock on x86_64 and on what uses the generic table, as aarch64.
_LOCKING = {"x86_64": ("72", "73"), "aarch64": ("25", "32")}.get(os.uname().machine, ())


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # As the programs of that user are. Who only became one is not to be looked at by them.
    prctl(_PR_SET_DUMPABLE, 1)


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGUSR1, _interrupted)
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        if name == "exit":
            os._exit(0)
        try:
            answer = _ORDERS[name](*arguments)
        except OSError as error:
            answer = _NAMES[error.errno or 0]
        pipe.send(answer)


def _interrupted(number: int, frame: object) -> None:
    raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))


def _flock(fd: int, kind: int, wait: bool = False) -> None:
    fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)


def _set(
    fd: int, kind: int, start: int = 0, length: int = ANYWHERE, *, command: int = fcntl.F_SETLK
) -> None:
    fcntl.fcntl(fd, command, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _waiting(fd: int, kind: int, start: int = 0, length: int = ANYWHERE) -> None:
    _set(fd, kind, start, length, command=fcntl.F_SETLKW)


def _by_description(fd: int, kind: int, start: int = 0, length: int = ANYWHERE) -> None:
    _set(fd, kind, start, length, command=fcntl.F_OFD_SETLK)


def _get(
    fd: int, kind: int, start: int = 0, length: int = ANYWHERE
) -> tuple[int, int, int, int] | None:
    answer = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    found, _, start, length, pid = _FLOCK.unpack(answer)
    return None if found == fcntl.F_UNLCK else (found, start, length, pid)


def _child_with_the_same_files(fd: int) -> tuple[int, str | None]:
    """A child that lives on; with it, what it got when it tried to lock."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _set(fd, fcntl.F_WRLCK)
            os.write(writing, b"-")
        except OSError as error:
            os.write(writing, _NAMES[error.errno or 0].encode())
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        while True:
            signal.pause()
    told = os.read(reading, 100).decode()
    os.close(reading)
    os.close(writing)
    return pid, None if told == "-" else told


def _in_thread(name: str, *arguments: Any) -> Any:
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(_ORDERS[name](*arguments))
        except OSError as error:
            answer.append(_NAMES[error.errno or 0])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return answer[0]


def _become_sleep(fd: int) -> None:
    """Become another program, in whose hands ``fd`` stays."""
    os.set_inheritable(fd, True)
    os.execvp("sleep", ["sleep", "1000"])


_ORDERS: dict[str, Callable[..., Any]] = {
    "open": lambda path, flags=os.O_RDWR: os.open(path, flags),
    "close": os.close,
    "dup": os.dup,
    "flock": _flock,
    "set": _set,
    "wait": _waiting,
    "set by description": _by_description,
    "get": _get,
    "fork": _child_with_the_same_files,
    "in thread": _in_thread,
    "exec": _become_sleep,
}
