"""The open files of a process, under the numbers that a sequence gives them."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tests.mount.likeness.calls import Place

_NONE = 1 << 30


class Slots:
    """Descriptors by slot. A slot that has none stands for a number that is none, which is EBADF
    wherever it is used.

    ``inboxes`` has a pair of connected datagram sockets for each user; ``user`` is whose this is.
    """

    def __init__(self, user: int, inboxes: Sequence[tuple[socket.socket, socket.socket]]) -> None:
        self._inbox = inboxes[user][0]
        self._outboxes = [pair[1] for pair in inboxes]
        self._fds: dict[int, int] = {}
        self.top = b""

    def fd(self, slot: int) -> int:
        return self._fds.get(slot, _NONE)

    def put(self, slot: int, fd: int) -> None:
        """Let a slot stand for a descriptor; the one that it stood for is closed."""
        old = self._fds.pop(slot, -1)
        self._fds[slot] = fd
        if old >= 0:
            os.close(old)

    def empty(self) -> None:
        """Close all, and what was given and not taken."""
        while self._fds:
            with suppress(OSError):  # what could not be written back
                os.close(self._fds.popitem()[1])
        while (fd := self._receive()) >= 0:
            os.close(fd)

    def at(self, place: Place) -> tuple[Any, int | None]:
        """The first argument of a function of ``os``, and its ``dir_fd``."""
        if isinstance(place, int):
            return self.fd(place), None
        if isinstance(place, bytes):
            return self._path(place), None
        slot, name = place
        if name is None:
            return b"/proc/self/fd/%d" % self.fd(slot), None
        return name, self.fd(slot)

    def named(self, place: Place) -> tuple[int, bytes]:
        """The directory descriptor and the path of a system call; -100 is the working directory."""
        path, directory = self.at(place)
        return -100 if directory is None else directory, path

    def whole(self, place: Place) -> int | bytes:
        """A descriptor, or one path, for calls that take no directory."""
        path, directory = self.at(place)
        if directory is None:
            result: int | bytes = path
            return result
        return b"/proc/self/fd/%d/%s" % (directory, path)

    def _path(self, path: bytes) -> bytes:
        return self.top + path if path.startswith(b"/") else path

    # -- calls

    def close(self, slot: int) -> None:
        os.close(self._fds.pop(slot, _NONE))

    def dup(self, slot: int, new_slot: int) -> None:
        self.put(new_slot, os.dup(self.fd(slot)))

    def give(self, slot: int, user: int) -> None:
        """Send an open file to another user."""
        rights = array.array("i", [self.fd(slot)])
        message = (socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)
        self._outboxes[user].sendmsg([b"."], [message], socket.MSG_DONTWAIT)

    def take(self, slot: int) -> None:
        """Receive the first that was given; EAGAIN if there is none."""
        message = self._inbox.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT)
        self.put(slot, int.from_bytes(message[1][0][2], "little"))

    def _receive(self) -> int:
        try:
            message = self._inbox.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return -1
        return int.from_bytes(message[1][0][2], "little")
