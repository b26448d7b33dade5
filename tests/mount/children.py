"""Functions run in another process, as another user if asked."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, NoReturn, TypeVar

import pytest

T = TypeVar("T")

USER = 1000
OTHER = 1001


class Child(Generic[T]):
    """A forked process that runs ``call``, which begins at once.

    ``uid`` None stays root; ``gid`` None is the same number as ``uid``. Leaving the context
    kills what still runs.
    """

    def __init__(
        self,
        call: Callable[[], T],
        *,
        uid: int | None = None,
        gid: int | None = None,
        groups: Sequence[int] = (),
        umask: int = 0o022,
    ) -> None:
        self._reader, writer = os.pipe()
        self._ended = False
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _run(call, writer, uid, gid, groups, umask)
        os.close(writer)

    def result(self) -> T:
        """Wait for the end and return what ``call`` returned, or raise what it raised."""
        with os.fdopen(self._reader, "rb") as reader:
            reply = reader.read()
        self._reader = -1
        _, status = os.waitpid(self.pid, 0)
        self._ended = True
        if not reply:
            pytest.fail(f"the child process ended with status {status:#x}")
        kind, value = pickle.loads(reply)
        if kind == "error":
            raise value
        if kind == "failure":
            pytest.fail(value)
        result: T = value
        return result

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


def _run(
    call: Callable[[], T],
    writer: int,
    uid: int | None,
    gid: int | None,
    groups: Sequence[int],
    umask: int,
) -> NoReturn:
    status = 1
    try:
        reply: tuple[str, object]
        try:
            os.umask(umask)
            if uid is not None:
                os.setgroups(groups)
                gid = uid if gid is None else gid
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
