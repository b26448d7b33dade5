"""Performers: a process for each user, with the credentials that this user really has."""

from __future__ import annotations

import marshal
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from tests.mount.likeness.calls import USERS, Outcome, Step, User
from tests.mount.likeness.executor import Executor
from volfs.linux import syscalls

_DEADLINE = 60.0
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


class PerformerError(Exception):
    """A process did not answer, or answered with something else than what came of its steps."""


class Performer:
    """The parent's side of one user's process."""

    def __init__(self, user: int, inboxes: Sequence[tuple[socket.socket, socket.socket]]) -> None:
        self.user = USERS[user]
        self._pipe, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _serve(theirs, self._pipe, user, inboxes)
        theirs.close()

    def order(self, name: str, *arguments: Any) -> None:
        """Have it do something; ``reply`` gives what came of it."""
        self._pipe.send_bytes(marshal.dumps((name, arguments)))

    def reply(self) -> Any:
        try:
            if not self._pipe.poll(_DEADLINE):
                raise PerformerError(f"{self.user.name} has not answered in {_DEADLINE} s")
            kind, value = marshal.loads(self._pipe.recv_bytes())
        except EOFError:
            raise PerformerError(f"the process of {self.user.name} has ended") from None
        if kind == "failed":
            raise PerformerError(f"{self.user.name}: {value}")
        return value

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Company:
    """All users at one place, that is one Performer for each."""

    def __init__(self) -> None:
        inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in USERS]
        self.performers: list[Performer] = []
        try:
            for user in range(len(USERS)):
                self.performers.append(Performer(user, inboxes))
        except BaseException:
            self.close()
            raise
        finally:
            for pair in inboxes:
                for end in pair:
                    end.close()

    def all(self, name: str, *arguments: Any) -> None:
        """Have all do the same, one after the other."""
        for performer in self.performers:
            performer.order(name, *arguments)
            performer.reply()

    def order(self, steps: Sequence[Step]) -> None:
        """Have one user do some steps; ``outcomes`` gives what came of them."""
        plain = [(step.look, step.call) for step in steps]
        self.performers[steps[0].user].order("do", plain)

    def outcomes(self, steps: Sequence[Step]) -> list[Outcome]:
        try:
            result: list[Outcome] = self.performers[steps[0].user].reply()
        except PerformerError as error:
            raise PerformerError(f"{error}, doing {[step.call for step in steps]}") from None
        return result

    def close(self) -> None:
        while self.performers:
            self.performers.pop().close()


def _serve(
    pipe: Connection,
    parents: Connection,
    user: int,
    inboxes: Sequence[tuple[socket.socket, socket.socket]],
) -> NoReturn:
    try:
        parents.close()
        syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _become(USERS[user])
        executor = Executor(user, inboxes)
        while True:
            name, arguments = marshal.loads(pipe.recv_bytes())
            reply: Any
            try:
                if name == "do":
                    reply = [executor.do(*step) for step in arguments[0]]
                else:
                    reply = getattr(executor, name)(*arguments)
                kind = "done"
            except BaseException:  # noqa: BLE001  # whatever it is, the parent must hear of it
                kind, reply = "failed", traceback.format_exc()
            pipe.send_bytes(marshal.dumps((kind, reply)))
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def _become(user: User) -> None:
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    # As a process is that was not forked from one of root.
    syscalls.prctl(_PR_SET_DUMPABLE, 1)
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
