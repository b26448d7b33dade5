"""Connection: what Hypercorn reads from and writes to for one client."""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio
from hypercorn.trio.tcp_server import TCPServer

from volfs.docker.newcomers import Newcomer


class Connection:
    """The connection of a client who was a newcomer until now.

    ``requests`` are those that have begun and are not answered, ``worked_on`` those of them whose
    next step is not the client's. ``since``: since when it has been the client's turn. ``scope``
    is to be that of the task that serves it, which ``server`` does.
    """

    server: TCPServer

    def __init__(self, newcomer: Newcomer, on_word: Callable[[Connection], None]) -> None:
        """``on_word`` is called when something has come from the client."""
        self._on_word = on_word
        self._received = bytes(newcomer.received)
        self._plain = newcomer.socket
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(newcomer.socket))
        self.socket = self._stream.socket  # Hypercorn asks it for addresses
        self.scope = trio.CancelScope()
        self.since = newcomer.since
        self.requests: set[object] = set()
        self.worked_on: set[object] = set()

    async def receive_some(self, most: int) -> bytes:
        """Return what has come, what the newcomer had sent first; nothing when there is no more."""
        if received := self._received:
            self._received = b""
            return received
        try:
            data = bytes(await self._stream.receive_some(most))
        except trio.BrokenResourceError:
            data = b""  # it has gone, and left an answer unread
        if data:
            self._on_word(self)
        else:
            # Hypercorn would keep the connection until it has been idle for long enough.
            await self.server.idle_task.stop()
        return data

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def speaks(self) -> bool:
        """Whether the client has sent something that is not read yet."""
        try:
            return self._plain.recv(1, socket.MSG_PEEK) != b""
        except OSError:
            return False

    def close(self) -> None:
        """Close it, and have its task end, whatever that waits for."""
        self.socket.close()
        self.scope.cancel()
