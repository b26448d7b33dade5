"""Newcomers: those who have connected to a socket, and not asked anything yet.

A newcomer costs a descriptor and what it has sent, but no task: they are waited for together, in an
epoll of their own. So thousands can come at once, and go.
"""

from __future__ import annotations

import re
import select
import socket
from collections import OrderedDict
from enum import Enum, auto

import trio

_KEPT = 1 << 14
"""Bytes of a newcomer that are kept; Hypercorn takes no longer head either."""

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(.*?)[ \t]*\r?$")
_NUMBER = re.compile(rb"[0-9]{1,9}")
_OTHERWISE = re.compile(rb"(?im)^(?:expect|transfer-encoding|upgrade):")


class Asked(Enum):
    """What a newcomer has sent: a part of a request, a whole one, or something that only an HTTP
    server understands, which may be either."""

    PART = auto()
    WHOLE = auto()
    UNCLEAR = auto()


class Newcomer:
    """A connection. ``since``: when it was made. ``received``: what it has sent, and ``asked``
    what that is."""

    __slots__ = ("asked", "received", "since", "socket")

    def __init__(self, sock: socket.socket, since: float) -> None:
        self.socket = sock
        self.since = since
        self.received = bytearray()
        self.asked = Asked.PART


class Newcomers:
    """Newcomers at ``listening``, a socket that does not block."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._epoll = select.epoll()
        self._epoll.register(listening, select.EPOLLIN)
        self._by_descriptor: OrderedDict[int, Newcomer] = OrderedDict()
        self._accepting = True

    def __len__(self) -> int:
        return len(self._by_descriptor)

    @property
    def oldest(self) -> Newcomer | None:
        """The one who has been here for longest."""
        return next(iter(self._by_descriptor.values()), None)

    async def wait(self) -> None:
        """Wait until ``look`` has something to tell."""
        await trio.lowlevel.wait_readable(self._epoll.fileno())

    def look(self) -> tuple[bool, list[Newcomer]]:
        """Return whether somebody wants to be accepted, and the newcomers who have sent more than
        a part of a request, or will send no more.

        Those are none any more, and neither are those who have gone.
        """
        ready = dict(self._epoll.poll(0))
        wanted = ready.pop(self._listening.fileno(), 0)
        asked = [self._hear(self._by_descriptor[fd], events) for fd, events in ready.items()]
        return wanted != 0, [newcomer for newcomer in asked if newcomer is not None]

    def accept(self) -> Newcomer | None:
        """Accept one who wants to be; return it if ``look`` would.

        Raises BlockingIOError when there is nobody, and OSError when it cannot be had.
        """
        sock, _ = self._listening.accept()
        try:
            sock.setblocking(False)
            # There is a limit to that too (max_user_watches in epoll(7)).
            self._epoll.register(sock, select.EPOLLIN)
        except OSError:
            sock.close()
            raise
        newcomer = self._by_descriptor[sock.fileno()] = Newcomer(sock, trio.current_time())
        return self._hear(newcomer, 0)

    def _hear(self, newcomer: Newcomer, events: int) -> Newcomer | None:
        """Take what a newcomer says; return it if ``look`` is to. ``events``: what epoll says."""
        try:
            data = newcomer.socket.recv(_KEPT)
        except BlockingIOError:
            return None
        except OSError:
            self.dismiss(newcomer)
            return None
        if data:
            newcomer.received += data
            newcomer.asked = what_is(newcomer.received)
            if newcomer.asked is Asked.PART:
                return None
        elif not newcomer.received or events & select.EPOLLHUP:  # else it still reads
            self.dismiss(newcomer)
            return None
        self._forget(newcomer)
        return newcomer

    def dismiss(self, newcomer: Newcomer) -> None:
        """Close the connection of a newcomer."""
        self._forget(newcomer)
        newcomer.socket.close()

    def _forget(self, newcomer: Newcomer) -> None:
        # Closing it is not enough where a process that is just being started has it as well.
        self._epoll.unregister(newcomer.socket)
        del self._by_descriptor[newcomer.socket.fileno()]

    def pause(self) -> None:
        """Pay no heed to those who want to be accepted."""
        self._epoll.modify(self._listening, 0)
        self._accepting = False

    def resume(self) -> None:
        """Heed them again."""
        if not self._accepting:
            self._epoll.modify(self._listening, select.EPOLLIN)
            self._accepting = True

    def close(self) -> None:
        """Dismiss all, and wait for nobody any more."""
        for newcomer in list(self._by_descriptor.values()):
            self.dismiss(newcomer)
        self._epoll.close()


def what_is(received: bytes | bytearray) -> Asked:
    """Return what a newcomer has sent. All requests of the protocol are POST, and their heads say
    how long the body is; others are left to the server."""
    if len(received) >= _KEPT:
        return Asked.UNCLEAR
    end = _HEAD_END.search(received)
    if end is None:
        return Asked.PART
    head = received[: end.start()]
    lengths: list[bytes] = _LENGTH.findall(head)
    if not head.startswith(b"POST ") or len(lengths) != 1 or _OTHERWISE.search(head):
        return Asked.UNCLEAR
    if not _NUMBER.fullmatch(lengths[0]):
        return Asked.UNCLEAR
    return Asked.WHOLE if len(received) - end.end() >= int(lengths[0]) else Asked.PART
