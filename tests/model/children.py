"""Running a part of a test in a process of its own: as another user, to be killed, to race."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import pytest

from volfs import syscalls

T = TypeVar("T")

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 0x40000


class Child:
    """A forked process that runs a function; ``result`` waits for what it returns."""

    def __init__(self, function: Callable[[], object], *, user: int = 0, mounts: bool = False):
        """``user`` is whom it runs as; with ``mounts`` it has a mount namespace of its own."""
        if (user or mounts) and os.geteuid() != 0:
            pytest.skip("needs root, to become another user or to mount")
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            _run(function, writer, user, mounts)
        os.close(writer)
        self._reader = reader

    def result(self) -> object:
        """Return what the function returned. Raises RuntimeError with its traceback."""
        with os.fdopen(self._reader, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if not data:
            raise RuntimeError(f"the child ended with status {os.waitstatus_to_exitcode(status)}")
        good, value = pickle.loads(data)
        if not good:
            raise RuntimeError(value)
        return value

    def was_killed(self) -> bool:
        """Wait for the end and return whether SIGKILL was it. Raises RuntimeError as result."""
        with os.fdopen(self._reader, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if data:
            good, value = pickle.loads(data)
            if not good:
                raise RuntimeError(value)
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def in_child(function: Callable[[], T], *, user: int = 0, mounts: bool = False) -> T:
    """Return what ``function`` returns in a process of its own: see Child."""
    return Child(function, user=user, mounts=mounts).result()  # type: ignore[return-value]


def all_at_once(functions: Sequence[Callable[[], T]]) -> list[T]:
    """Run each function in a process of its own, all started at one instant."""
    reader, writer = os.pipe()

    def waiting(function: Callable[[], T]) -> Callable[[], T]:
        def run() -> T:
            os.close(writer)
            os.read(reader, 1)  # ends for all when the last writer is closed
            return function()

        return run

    children = [Child(waiting(function)) for function in functions]
    os.close(writer)
    results = [child.result() for child in children]
    os.close(reader)
    return results  # type: ignore[return-value]


def _run(function: Callable[[], object], writer: int, user: int, mounts: bool) -> NoReturn:
    code = 1
    try:
        if mounts:
            syscalls.unshare(CLONE_NEWNS)
            syscalls.mount(b"", b"/", b"", MS_REC_PRIVATE, b"")
        if user:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        answer = pickle.dumps((True, function()))
        code = 0
    except BaseException:  # noqa: BLE001 - the parent raises it
        answer = pickle.dumps((False, traceback.format_exc()))
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(code)
