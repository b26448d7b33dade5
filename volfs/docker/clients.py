"""Clients: those connected to the plugin's socket, how many they may be, and for how long.

Who has asked something is served by Hypercorn, others wait among the newcomers. A client that has
the turn is waited for as ``Bounds`` says; the plugin's own work takes as long as it takes. When
there are as many clients as there may be, the next one takes the place of one that keeps its
connection for later requests, else of the one that has had the turn for longest.
"""

from __future__ import annotations

import logging
import resource
import socket
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from volfs.docker import messages
from volfs.docker.application import BODY_TIMEOUT
from volfs.docker.connection import Connection
from volfs.docker.newcomers import Asked, Newcomer, Newcomers
from volfs.fs.mount.companion import share

log = logging.getLogger(__name__)

_BATCH = 64
"""Clients accepted before others have the event loop: about two milliseconds."""

_LEAST = 8
"""Clients that there may be however few descriptors there are."""

_LEEWAY = 1.2
"""How much longer who is served may have the turn: the application itself refuses a body that is
late, and is to be first."""

_PAUSE = 0.1
"""Seconds until the next attempt when a client cannot be accepted."""

_WARN_EVERY = 3600.0
"""Seconds."""

_CONNECTION = "volfs.connection"
"""Key of the connection in the state that Hypercorn keeps for it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many clients there may be, and how long each of them is waited for, in seconds.

    ``most`` at once, and no more than half of what a service may have of the process's
    descriptors (see companion.share). ``turn``: for a request to be sent, or its answer to be
    taken. ``idle``: for the next request on a connection.

    Who has had the turn for less than ``newcomer`` or, once there was a request, ``settled`` does
    not give its place to another. (The latter cannot be told as exactly: what a client has sent
    goes through some tasks, and the event loop may have much else to do.)
    """

    most: int = 512
    turn: float = BODY_TIMEOUT
    idle: float = 600.0
    newcomer: float = 0.05
    settled: float = 0.5


class Clients:
    """Those who connect to a socket, and are answered by an application over HTTP."""

    def __init__(
        self, listening: socket.socket, application: ASGIApp, *, bounds: Bounds, grace: float
    ) -> None:
        """``listening`` is the socket; it will not block. ``grace``: seconds for requests under
        way to be answered in the end."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(bounds.most, max(share(limit) // 2, _LEAST))
        self._bounds = bounds
        self._grace = grace
        self._application = application
        self._config = _config(bounds)
        listening.setblocking(False)
        self._newcomers = Newcomers(listening)
        self._served: set[Connection] = set()
        # Of those served, who has the turn, the first first: amid a request, and between two.
        self._awaited: OrderedDict[Connection, None] = OrderedDict()
        self._idle: OrderedDict[Connection, None] = OrderedDict()
        self._waiting = trio.CancelScope()
        self._paused_until = inf
        self._ending = False
        self._warned = -inf

    async def serve(self, stop: trio.Event) -> None:
        """Serve until ``stop`` is set: then nobody can connect any more.

        Who has asked by then is still answered. In the end all connections are closed.
        """
        try:
            async with trio.open_nursery() as outer:
                outer.start_soon(self._close_when_cancelled)
                async with trio.open_nursery() as self._nursery:
                    with trio.CancelScope() as watching:
                        self._nursery.start_soon(_cancel_upon, stop, watching)
                        await self._watch()
                    self._end()
                    outer.cancel_scope.deadline = trio.current_time() + self._grace
                outer.cancel_scope.cancel()
        finally:
            self._newcomers.close()

    async def _watch(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._due()) as self._waiting:
                await self._newcomers.wait()
            now = trio.current_time()
            newcomers = len(self._newcomers)
            wanted, asked = self._newcomers.look()
            for newcomer in asked:
                self._begin(newcomer)
            self._let_go_of_late(now)
            if now >= self._paused_until or len(self._newcomers) < newcomers:
                self._resume()
            if wanted:
                self._accept()

    def _due(self) -> float:
        """When there is something to do although nobody stirs."""
        due = self._paused_until
        if newcomer := self._newcomers.oldest:
            due = min(due, newcomer.since + self._bounds.turn)
        if connection := _first(self._awaited):
            due = min(due, connection.since + self._bounds.turn * _LEEWAY)
        return due

    def _let_go_of_late(self, now: float) -> None:
        turn = self._bounds.turn
        while (newcomer := self._newcomers.oldest) and newcomer.since + turn <= now:
            if newcomer.received:
                with suppress(OSError):
                    newcomer.socket.send(_late(turn))
            self._newcomers.dismiss(newcomer)
        while (late := _first(self._awaited)) and late.since + turn * _LEEWAY <= now:
            self._let_go(late)

    def _end(self) -> None:
        """Answer those who have asked until now, and then let go of them."""
        while self._accept():
            pass
        self._ending = True
        for connection in list(self._idle):
            self._let_go(connection)

    async def _close_when_cancelled(self) -> None:
        # Hypercorn shields what it sends: only this ends a wait for a client that does not read.
        try:
            await trio.sleep_forever()
        finally:
            for connection in list(self._served):
                self._let_go(connection)

    # Room

    def _accept(self) -> bool:
        """Accept those who want to be, a batch of them; return whether there may be more."""
        for _ in range(_BATCH):
            if not self._has_room():
                return False
            try:
                newcomer = self._newcomers.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                self._warn("a client of the plugin cannot be accepted: %s", error.strerror)
                if not self._make_room(at_once=True):
                    self._pause(trio.current_time() + _PAUSE)
                return False
            if newcomer is not None:
                self._begin(newcomer)
        return self._has_room()

    def _has_room(self) -> bool:
        """Make room for those beyond what there may be, or accept no more until there is some."""
        while len(self._newcomers) + len(self._served) > self._most:
            self._warn(
                "%d clients are connected to the plugin, as many as it serves at once: others take "
                "the place of those who ask nothing",
                self._most,
            )
            if not self._make_room():
                self._pause(min(map(self._ripe_at, self._who_waits()), default=inf))
                return False
        return True

    def _make_room(self, *, at_once: bool = False) -> bool:
        """Let go of a client that has had the turn for long enough, or ``at_once`` of any; return
        whether there was one."""
        now = trio.current_time()
        for client in self._who_waits():
            if now < self._ripe_at(client) and not at_once:
                continue
            if isinstance(client, Newcomer):
                self._newcomers.dismiss(client)
            elif client.speaks():
                self._await(client)
                continue
            else:
                self._let_go(client)
            return True
        return False

    def _who_waits(self) -> list[Newcomer | Connection]:
        """Who has had the turn for longest: of those between two requests, and of all others."""
        others = [c for c in (_first(self._awaited), self._newcomers.oldest) if c is not None]
        others.sort(key=lambda client: client.since)
        idle = _first(self._idle)
        return others if idle is None else [idle, *others]

    def _ripe_at(self, client: Newcomer | Connection) -> float:
        is_new = isinstance(client, Newcomer)
        return client.since + (self._bounds.newcomer if is_new else self._bounds.settled)

    def _pause(self, until: float) -> None:
        """Accept nobody until then, or until some client has gone or has the turn."""
        self._newcomers.pause()
        self._paused_until = until

    def _resume(self) -> None:
        self._newcomers.resume()
        self._paused_until = inf

    def _warn(self, message: str, *arguments: object) -> None:
        now = time.monotonic()
        if now - self._warned >= _WARN_EVERY:
            self._warned = now
            log.warning(message, *arguments)

    # Those who are served

    def _begin(self, newcomer: Newcomer) -> None:
        connection = Connection(newcomer, self._note_word)
        self._served.add(connection)
        if newcomer.asked is not Asked.WHOLE:  # which will be worked on
            self._await(connection)
        self._nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: Connection) -> None:
        application = ASGIWrapper(cast(ASGIFramework, self._answer))
        state = {_CONNECTION: connection}
        stream = cast(Any, connection)
        server = TCPServer(application, self._config, WorkerContext(None), state, stream)
        connection.server = server
        try:
            with connection.scope:
                await server.run()
        except Exception:
            # A client can cause that, as by a malformed upgrade to HTTP/2.
            log.exception("serving a client of the plugin failed")
        finally:
            self._let_go(connection)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application as Hypercorn asks it, noting whose turn it is."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        connection: Connection = scope["state"][_CONNECTION]
        request = object()

        async def hear() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                connection.worked_on.add(request)
                self._note_turn(connection)
            return message

        async def answer(message: Message) -> None:
            connection.worked_on.discard(request)
            self._note_turn(connection)
            await send(message)

        connection.requests.add(request)
        self._note_word(connection)
        try:
            await self._application(scope, hear, answer)
        finally:
            connection.requests.discard(request)
            connection.worked_on.discard(request)
            self._note_turn(connection)

    def _note_turn(self, connection: Connection) -> None:
        """Note that it may be another's turn now."""
        if connection not in self._served:
            return
        if connection.worked_on:
            self._awaited.pop(connection, None)
            self._idle.pop(connection, None)
        elif connection.requests:
            self._await(connection)
        elif self._ending:
            self._let_go(connection)
        else:
            self._awaited.pop(connection, None)
            self._idle[connection] = None
            connection.since = trio.current_time()

    def _note_word(self, connection: Connection) -> None:
        """Note that a client has sent something."""
        if connection in self._idle:
            self._await(connection)

    def _await(self, connection: Connection) -> None:
        self._idle.pop(connection, None)
        self._awaited.pop(connection, None)
        self._awaited[connection] = None
        connection.since = trio.current_time()
        due = connection.since + self._bounds.turn * _LEEWAY
        self._waiting.deadline = min(self._waiting.deadline, due)
        self._resume()

    def _let_go(self, connection: Connection) -> None:
        self._served.discard(connection)
        self._awaited.pop(connection, None)
        self._idle.pop(connection, None)
        connection.close()
        self._resume()


def _first(group: OrderedDict[Connection, None]) -> Connection | None:
    return next(iter(group), None)


async def _cancel_upon(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _config(bounds: Bounds) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.include_server_header = False
    config.keep_alive_timeout = bounds.idle
    return config


def _late(seconds: float) -> bytes:
    """The answer to a request that was not all there in time."""
    body = messages.encode(messages.failure(f"the request did not come within {seconds:.0f} s"))
    head = (
        "HTTP/1.1 408 Request Timeout",
        f"Content-Type: {messages.CONTENT_TYPE}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    return "\r\n".join((*head, "", "")).encode() + body
