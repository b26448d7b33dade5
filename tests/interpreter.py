"""An interpreter that has imported all of volfs and forks to run it, so that a start takes no time.

What it forks is what ``python -m volfs`` would be: it has one thread, nothing of pytest, and the
descriptors, the environment, the directory, the signals and the command line that the program
would have. Only that it has more modules is different.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from tests import unprivileged

ROOT = Path(__file__).parent.parent
PROGRAM = [sys.executable, "-m", "volfs"]
"""The program itself."""

_SERVE = "from tests.interpreter import serve; serve()"
_LONGEST = 1 << 18
"""Bytes of a message."""
_LONGEST_LINE = 1 << 14
"""Bytes of a command line."""


class Process(Protocol):
    """A process that runs volfs: what is used of subprocess.Popen."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class User:
    """Somebody who runs volfs, and where he mounts; see ``unprivileged``."""

    uid: int
    workspace: Path

    def command(self) -> list[str]:
        """The program itself, run by him."""
        return [sys.executable, "-m", "tests.unprivileged", str(self.uid), str(self.workspace)]


def start(
    *words: str | Path,
    stdout: int,
    stderr: int,
    stdin: int | None = None,
    environment: Mapping[str, str] | None = None,
    user: User | None = None,
    prepare: Callable[[], None] | None = None,
    execute: bool = False,
) -> Process:
    """Run ``volfs`` with these words and descriptors; without one, standard input is empty.

    ``environment`` is added to ours. ``prepare`` is called in the process before all else; it has
    to be one that pickles. With ``execute``, and in children of ours, whose namespaces may be
    others, the program itself is executed.
    """
    arguments = [str(word) for word in words]
    with_ours = {**os.environ, **(environment or {})}
    if execute or not _interpreter.is_ours:
        return subprocess.Popen(
            [*(user.command() if user else PROGRAM), *arguments],
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=stdout,
            stderr=stderr,
            env=with_ours,
            preexec_fn=prepare,
            cwd=ROOT,
        )
    descriptors = [stdout, stderr, *([] if stdin is None else [stdin])]
    return _interpreter.fork(_Order(arguments, with_ours, user, prepare), descriptors)


class Piped:
    """A process that runs volfs, and the other ends of its input and outputs."""

    def __init__(self, *words: str | Path, environment: Mapping[str, str] | None = None) -> None:
        stdin, to_stdin = os.pipe()
        from_stdout, stdout = os.pipe()
        from_stderr, stderr = os.pipe()
        self.stdin = os.fdopen(to_stdin, "wb")
        self.stdout = os.fdopen(from_stdout, "rb")
        self.stderr = os.fdopen(from_stderr, "rb")
        try:
            self._process = start(
                *words, stdin=stdin, stdout=stdout, stderr=stderr, environment=environment
            )
        except BaseException:
            self._close()
            raise
        finally:
            for end in (stdin, stdout, stderr):
                os.close(end)
        self.pid = self._process.pid
        self.wait = self._process.wait
        self.send_signal = self._process.send_signal
        self.kill = self._process.kill

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    @property
    def log(self) -> str:
        """All that it writes to standard error until its end."""
        return self.stderr.read().decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End it by SIGTERM, unless it has ended; and if it has not a while later, by SIGKILL."""
        try:
            self._process.terminate()
            self.wait(20)
        finally:
            self._process.kill()
            self._close()

    def _close(self) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            with suppress(BrokenPipeError):  # what was not flushed nobody reads
                file.close()


def run(
    *words: str | Path,
    environment: Mapping[str, str] | None = None,
    user: User | None = None,
    timeout: float = 60.0,
) -> subprocess.CompletedProcess[str]:
    """Run ``volfs`` with these words until it has ended and nobody has its output any more.

    Raises TimeoutExpired after these seconds.
    """
    with ExitStack() as stack:
        reading = selectors.DefaultSelector()
        stack.callback(reading.close)
        outputs = bytearray(), bytearray()
        ends = []
        for output in outputs:
            ours, theirs = os.pipe()
            stack.callback(os.close, ours)
            reading.register(ours, selectors.EVENT_READ, output)
            ends.append(theirs)
        try:
            process = start(
                *words, stdout=ends[0], stderr=ends[1], environment=environment, user=user
            )
        finally:
            for end in ends:
                os.close(end)
        latest = time.monotonic() + timeout
        while reading.get_map():
            ready = reading.select(latest - time.monotonic())
            if not ready:
                process.kill()
                raise subprocess.TimeoutExpired([*PROGRAM, *map(str, words)], timeout)
            for key, _ in ready:
                if part := os.read(key.fd, 1 << 16):
                    key.data.extend(part)
                else:
                    reading.unregister(key.fd)
        code = process.wait(latest - time.monotonic())
    out, err = (output.decode() for output in outputs)
    return subprocess.CompletedProcess([*PROGRAM, *map(str, words)], code, out, err)


def descriptors() -> int:
    """How many descriptors of this process lead to the interpreter: one, once it is started."""
    return _interpreter.is_running


def close() -> None:
    """End the interpreter; what it has forked lives on."""
    _interpreter.close()


# -- the side of the tests


@dataclass(frozen=True)
class _Order:
    arguments: Sequence[str]
    environment: Mapping[str, str]
    user: User | None
    prepare: Callable[[], None] | None


class _Forked:
    """A process that the interpreter forked, and waits for."""

    def __init__(self, pid: int, end: int) -> None:
        """From the descriptor ``end`` its status is read when it has ended."""
        self.pid = pid
        self._code: int | None = None
        self._end = end

    def __del__(self) -> None:
        if self._end >= 0:
            os.close(self._end)

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("volfs", timeout or 0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            # As with Popen, it may just have ended.
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self._code is None and select.select([self._end], [], [], timeout)[0]:
            self._code = os.waitstatus_to_exitcode(int(os.read(self._end, 16)))
            os.close(self._end)
            self._end = -1
        return self._code


class _Interpreter:
    """The process that forks. It is started when first needed."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    @property
    def is_ours(self) -> bool:
        """Whether it is in our namespaces, as it need not be in a child of who started it."""
        return self._owner in (0, os.getpid())

    @property
    def is_running(self) -> bool:
        return self._socket is not None

    def fork(self, order: _Order, descriptors: Sequence[int]) -> _Forked:
        """``descriptors``: standard output, standard error, and maybe standard input."""
        if self._socket is None:
            self._socket = self._start()
        end, status = os.pipe()
        try:
            socket.send_fds(self._socket, [pickle.dumps(order)], [status, *descriptors])
        finally:
            os.close(status)
        answer = self._socket.recv(_LONGEST)
        assert answer, "the interpreter has ended"
        return _Forked(int(answer), end)

    def close(self) -> None:
        if self._socket is not None and self._process is not None and self.is_ours:
            self._socket.close()
            self._process.wait()
            self._socket = None

    def _start(self) -> socket.socket:
        self._owner = os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE, str(theirs.fileno()), "-" * _LONGEST_LINE],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
            )
        return ours


_interpreter = _Interpreter()


# -- the interpreter's side


def serve() -> None:
    """Be the interpreter, and then what it forks: the socket's number is the first argument."""
    unprivileged.import_everything()
    # What is there now is left alone by collections, and so shared with all that are forked.
    gc.collect()
    gc.freeze()
    order = _serve(socket.socket(fileno=int(sys.argv[1])))
    if order is not None:
        _become(order)


def _serve(orders: socket.socket) -> _Order | None:
    """Fork as told. Returns its order in what is forked, and None when there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # typed at the tests' terminal
    waiting = select.poll()
    waiting.register(orders, select.POLLIN)
    running: dict[int, tuple[int, int]] = {}  # by pidfd: the pid, and where its end is awaited
    while True:
        for fd, _ in waiting.poll():
            if fd in running:
                pid, status = running.pop(fd)
                with suppress(BrokenPipeError):  # nobody wants to know
                    os.write(status, str(os.waitpid(pid, 0)[1]).encode())
                waiting.unregister(fd)
                os.close(fd)
                os.close(status)
                continue
            message, received, _, _ = socket.recv_fds(orders, _LONGEST, 4)
            if not message:
                return None
            status, *descriptors = received
            pid = os.fork()
            if pid == 0:
                for fd, place in zip(descriptors, (1, 2, 0), strict=False):
                    os.dup2(fd, place)
                orders.detach()
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                order: _Order = pickle.loads(message)
                return order
            for fd in descriptors:
                os.close(fd)
            pidfd = os.pidfd_open(pid)
            running[pidfd] = pid, status
            waiting.register(pidfd, select.POLLIN)
            orders.send(str(pid).encode())


def _become(order: _Order) -> None:
    """Be the program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order.prepare is not None:
        order.prepare()
    os.environ.clear()
    os.environ.update(order.environment)
    sys.argv = ["volfs", *order.arguments]
    _show_command_line([*PROGRAM, *order.arguments])
    if order.user is not None:
        unprivileged.become(order.user.uid, order.user.workspace)
    runpy.run_module("volfs", run_name="__main__", alter_sys=True)


def _show_command_line(words: Sequence[str]) -> None:
    """Have /proc show these as ours, in the place of those that the interpreter was given."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    line = b"".join(os.fsencode(word) + b"\0" for word in words)
    assert len(line) <= end - start
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)
