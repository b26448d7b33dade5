"""Running a part of a test in another process: as another user, to be killed, to race."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Generic, NoReturn, TypeVar

import pytest

from volfs.linux import syscalls

T = TypeVar("T")

USER = 1000
OTHER = 1001
NOBODY = 65534
MEMBERS = 2000
"""A group that the user is in beside its own."""
STRANGERS = 3000
"""A group that the user is not in."""

CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 0x40000

# It imports a module when first called, which a user whose child it is may not be able to read.
datetime.strptime("2000", "%Y")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")


class Child(Generic[T]):
    """A forked process that runs ``call``, which begins at once.

    ``uid`` None stays who we are; ``gid`` None is the same number as ``uid``. With ``mounts`` it
    has a mount namespace of its own. Leaving the context kills what still runs.
    """

    def __init__(
        self,
        call: Callable[[], T],
        *,
        uid: int | None = None,
        gid: int | None = None,
        groups: Sequence[int] = (),
        umask: int = 0o022,
        mounts: bool = False,
    ) -> None:
        if (uid not in (None, os.geteuid()) or mounts) and os.geteuid() != 0:
            pytest.skip("needs root, to become another user or to mount")
        self._reader, writer = os.pipe()
        self._ended = False
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _run(call, writer, uid, gid, groups, umask, mounts)
        os.close(writer)

    def result(self) -> T:
        """Wait for the end and return what ``call`` returned.

        An OSError that it raised is raised here; whatever else it raised fails the test.
        """
        reply, status = self._end()
        if not reply:
            pytest.fail(f"the child process ended with status {status:#x}")
        kind, value = pickle.loads(reply)
        if kind == "error":
            raise value
        if kind == "failure":
            pytest.fail(value)
        result: T = value
        return result

    def was_killed(self) -> bool:
        """Wait for the end and return whether SIGKILL was it; what ``call`` raised: see result."""
        reply, status = self._end()
        if reply:
            kind, value = pickle.loads(reply)
            if kind != "value":
                pytest.fail(str(value))
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

    def _end(self) -> tuple[bytes, int]:
        with os.fdopen(self._reader, "rb") as reader:
            reply = reader.read()
        self._reader = -1
        _, status = os.waitpid(self.pid, 0)
        self._ended = True
        return reply, status

    def __enter__(self) -> Child[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            if self._reader >= 0:
                os.close(self._reader)


def run_as(
    call: Callable[[], T],
    uid: int = USER,
    *,
    gid: int | None = None,
    groups: Sequence[int] = (),
    umask: int = 0o022,
) -> T:
    """Run ``call`` as another user in a process of its own; OSError comes back as it is."""
    with Child(call, uid=uid, gid=gid, groups=groups, umask=umask) as child:
        return child.result()


def in_namespace(call: Callable[[], T]) -> T:
    """Run ``call`` in a process of its own whose mounts nobody else sees."""
    with Child(call, mounts=True) as child:
        return child.result()


def all_at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run each call in a process of its own, all started at one instant."""
    reader, writer = os.pipe()

    def waiting(call: Callable[[], T]) -> Callable[[], T]:
        def run() -> T:
            os.close(writer)
            os.read(reader, 1)  # ends for all when the last writer is closed
            return call()

        return run

    children = [Child(waiting(call)) for call in calls]
    os.close(writer)
    results = [child.result() for child in children]
    os.close(reader)
    return results


def _run(
    call: Callable[[], T],
    writer: int,
    uid: int | None,
    gid: int | None,
    groups: Sequence[int],
    umask: int,
    mounts: bool,
) -> NoReturn:
    status = 1
    try:
        reply: tuple[str, object]
        try:
            os.umask(umask)
            if mounts:
                syscalls.unshare(CLONE_NEWNS)
                syscalls.mount(b"", b"/", b"", MS_REC_PRIVATE, b"")
            if uid is not None and os.geteuid() == 0:
                gid = uid if gid is None else gid
                os.setgroups(groups)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
            reply = ("value", call())
        except OSError as error:
            reply = ("error", error)
        except BaseException:  # noqa: BLE001 - told to the parent, whatever it is
            reply = ("failure", traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pickle.dumps(reply))
        status = 0
    finally:
        os._exit(status)
