"""Clients that keep their connection and say nothing, or not enough, or do not listen."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from starlette.types import Receive, Scope, Send

from tests.conftest import open_descriptors, wait_for
from tests.docker.conftest import DEADLINE, exchange, in_thread, request
from volfs.docker.clients import Bounds, Clients
from volfs.docker.newcomers import Newcomers
from volfs.docker.places import Places
from volfs.docker.server import serve
from volfs.store import VolumeStore

pytestmark = pytest.mark.any_level

KEPT = b"POST /now HTTP/1.1\r\nHost: plugin\r\nContent-Length: 0\r\n\r\n"
"""A request after which the connection stays."""

OK = b"HTTP/1.1 200 "

SILENT = {
    "nothing": b"",
    "half a head": KEPT[:30],
    "a head without its body": request("now", b"", "Content-Length: 10"),
    "half a body": request("now", b"", "Content-Length: 10") + b"{",
}
"""What newcomers say who then say no more."""

SERVED = {
    "chunks without an end": request("now", b"", "Transfer-Encoding: chunked") + b"1\r\n{\r\n",
    "a body it was asked for": request("now", b"", "Content-Length: 10", "Expect: 100-continue"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    "half a second request": KEPT + b"|" + KEPT[:30],
}
"""What others say who then say no more; at a ``|`` they wait for an answer."""


class Application:
    """Answers ``/wait`` when ``going`` is set, ``/much`` with more than a socket takes, and
    everything else at once."""

    def __init__(self) -> None:
        self.going = trio.Event()
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if not message.get("more_body", False):
                break
        if scope["path"] == "/wait":
            self.waiting += 1
            await self.going.wait()
        body = b" " * (4 << 20) if scope["path"] == "/much" else b"{}"
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    async def has(self, waiting: int) -> None:
        """Return once so many wait for an answer."""
        await in_thread(lambda: wait_for(lambda: self.waiting == waiting, "the requests"))


@pytest.fixture
def application() -> Application:
    return Application()


Start = Callable[..., Awaitable[trio.Event]]


@pytest.fixture
async def start(
    store: VolumeStore,
    scope: Path,
    path: Path,
    application: Application,
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[Start]:
    """Serves with these bounds; returns the event that ends it. Nothing may go wrong then."""
    stop = trio.Event()

    async def begin(**bounds: float) -> trio.Event:
        places = Places(str(scope), None, native=True)

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await serve(
                store,
                places,
                str(path),
                stop,
                grace=0.1,
                bounds=Bounds(**bounds),  # type: ignore[arg-type]
                make=lambda plugin: application,
                task_status=task_status,
            )

        await nursery.start(run)
        return stop

    yield begin
    stop.set()
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


async def connected(path: Path, text: bytes = b"") -> trio.SocketStream:
    """A client that has said this much, and been heard."""
    stream = await trio.open_unix_socket(path)
    for part in text.split(b"|"):
        if part:
            await stream.send_all(part)
        await trio.testing.wait_all_tasks_blocked(0.002)
    return stream


async def rest(stream: trio.SocketStream) -> bytes:
    """All that still comes, until the server closes the connection."""
    received = b""
    with trio.fail_after(DEADLINE):
        async for data in stream:
            received += data
    return received


def is_gone(stream: trio.SocketStream) -> bool:
    """Whether the server has closed the connection, though there may still be data."""
    poll = select.poll()
    poll.register(stream.socket.fileno(), 0)
    return bool(poll.poll(0))


async def close(*streams: trio.SocketStream) -> None:
    for stream in streams:
        await stream.aclose()


class TestTurn:
    @pytest.mark.parametrize("text", SILENT.values(), ids=SILENT)
    async def test_newcomers_are_let_go_of(self, start: Start, path: Path, text: bytes) -> None:
        await start(turn=0.05)
        stream = await connected(path, text)
        answer = await rest(stream)
        assert answer.startswith(b"HTTP/1.1 408 ") if text else answer == b""
        assert b"did not come within" in answer or not text
        await close(stream)

    @pytest.mark.parametrize("text", SERVED.values(), ids=SERVED)
    async def test_so_are_others(self, start: Start, path: Path, text: bytes) -> None:
        await start(turn=0.1)
        stream = await connected(path, text)
        await rest(stream)
        await close(stream)

    async def test_so_is_who_does_not_take_the_answer(self, start: Start, path: Path) -> None:
        await start(turn=0.05)
        stream = await connected(path, request("much"))
        await in_thread(lambda: wait_for(lambda: is_gone(stream), "its end"))
        await close(stream)

    async def test_one_that_is_answered_stays_longer(self, start: Start, path: Path) -> None:
        await start(turn=0.05)
        stream, silent = await connected(path, KEPT), await connected(path)
        assert await rest(silent) == b""
        assert (await stream.receive_some()).startswith(OK)
        await stream.send_all(KEPT)
        assert (await stream.receive_some()).startswith(OK)
        await close(stream, silent)

    async def test_but_not_for_ever(self, start: Start, path: Path) -> None:
        await start(idle=0.05)
        with trio.fail_after(4):  # by itself Hypercorn would wait for five seconds
            stream = await connected(path, KEPT)
            assert (await rest(stream)).startswith(OK)
        await close(stream)

    async def test_work_is_waited_for(
        self, start: Start, path: Path, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Be it the first request on a connection, or a later one, or one in chunks."""
        await start(turn=0.05, idle=0.05, most=4, newcomer=0.0, settled=0.0)
        chunked = request("wait", b"", "Transfer-Encoding: chunked") + b"0\r\n\r\n"
        texts = [request("wait"), KEPT + request("wait"), chunked]
        streams = [await connected(path, text) for text in texts]
        await application.has(waiting=3)
        for _ in range(3):
            silent = [await connected(path) for _ in range(3)]
            for stream in silent:
                assert await rest(stream) == b""
            await close(*silent)
        application.going.set()
        for stream in streams:
            assert (await rest(stream)).endswith(b"{}")
        caplog.clear()  # there were as many as there may be
        await close(*streams)


class TestBound:
    @pytest.mark.parametrize("text", [*SILENT.values(), *SERVED.values()], ids=[*SILENT, *SERVED])
    async def test_who_has_been_silent_for_longest_makes_room(
        self, start: Start, path: Path, text: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        await start(most=4, newcomer=0.0, settled=0.0)
        streams = [await connected(path, text) for _ in range(10)]
        assert [is_gone(stream) for stream in streams] == [True] * 6 + [False] * 4
        for _ in range(2):
            assert (await exchange(path, request("now"))).startswith(OK)
        assert [is_gone(stream) for stream in streams] == [True] * 7 + [False] * 3
        assert "4 clients are connected" in caplog.text
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        caplog.clear()
        await close(*streams)

    async def test_first_of_all_one_between_two_requests(
        self, start: Start, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await start(most=3, newcomer=0.0, settled=0.0)
        texts = [b"", request("now", b"", "Transfer-Encoding: chunked"), KEPT, b""]
        streams = [await connected(path, text) for text in texts]
        assert [is_gone(stream) for stream in streams] == [False, False, True, False]
        caplog.clear()
        await close(*streams)

    async def test_not_one_that_has_just_come(
        self, start: Start, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await start(most=2, newcomer=DEADLINE)
        streams = [await connected(path) for _ in range(3)]
        asking = await connected(path, request("now"))
        assert [is_gone(stream) for stream in (*streams, asking)] == [False] * 4
        await streams.pop().aclose()
        assert (await rest(asking)).startswith(OK)
        caplog.clear()
        await close(*streams, asking)

    async def test_after_a_moment_it_makes_room(
        self, start: Start, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await start(most=2, newcomer=0.1)
        streams = [await connected(path) for _ in range(3)]
        assert (await exchange(path, request("now"))).startswith(OK)
        assert is_gone(streams[0])
        caplog.clear()
        await close(*streams)

    @pytest.mark.parametrize("stays", [False, True])
    async def test_where_all_are_worked_for_others_wait(
        self,
        start: Start,
        path: Path,
        application: Application,
        caplog: pytest.LogCaptureFixture,
        stays: bool,
    ) -> None:
        """Until a client goes after its answer, or stays and has no other request."""
        await start(most=2, newcomer=DEADLINE, settled=0.05 if stays else DEADLINE)
        asking = request("wait") if not stays else KEPT.replace(b"/now", b"/wait")
        streams = [await connected(path, asking) for _ in range(6)]
        await application.has(waiting=3)
        application.going.set()
        for stream in streams:
            with trio.fail_after(DEADLINE):
                assert (await stream.receive_some()).startswith(OK)
        caplog.clear()
        await close(*streams)

    async def test_not_one_that_asks_at_that_moment(
        self, start: Start, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await start(most=2, turn=0.06, newcomer=DEADLINE, settled=0.05)
        for _ in range(10):
            asking, silent = await connected(path, KEPT), await connected(path)
            assert (await asking.receive_some()).startswith(OK)
            assert await rest(silent) == b""  # and so the other is settled
            with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as another:
                # Nobody can take note of the request before the others have come.
                os.write(asking.socket.fileno(), request("now"))
                one.connect(str(path))
                another.connect(str(path))
                assert (await rest(asking)).startswith(OK)
            await close(asking, silent)
        caplog.clear()


class TestGone:
    @pytest.mark.parametrize("text", [*SILENT.values(), *SERVED.values(), KEPT, KEPT * 3])
    async def test_nothing_is_kept_of_them(self, start: Start, path: Path, text: bytes) -> None:
        await start()
        await exchange(path, KEPT + request("now"))
        before = open_descriptors()
        streams = [await connected(path, text) for _ in range(10)]
        assert open_descriptors() == before + 20
        await close(*streams)
        await in_thread(lambda: wait_for(lambda: open_descriptors() <= before, "their end", 1.0))

    async def test_one_that_says_no_more_is_still_answered(self, start: Start, path: Path) -> None:
        await start()
        for text, status in ((KEPT, b"200"), (KEPT[:30], b"400"), (b"hello", b"400")):
            stream = await trio.open_unix_socket(path)
            await stream.send_all(text)
            await stream.send_eof()
            with trio.fail_after(4):
                assert (await rest(stream)).startswith(b"HTTP/1.1 " + status)
            await close(stream)


class TestFailures:
    async def test_one_fails_and_others_do_not_notice(
        self,
        start: Start,
        path: Path,
        application: Application,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        await start()
        working, silent = await connected(path, request("wait")), await connected(path, KEPT[:30])
        upgrade = "GET /x HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
        upgrade += "Connection: Upgrade\r\n\r\n"
        broken = await connected(path, upgrade.encode())
        assert b" 200 " not in await rest(broken)
        await silent.send_all(KEPT[30:])
        assert (await silent.receive_some()).startswith(OK)
        application.going.set()
        assert (await rest(working)).startswith(OK)
        assert all(record.exc_info for record in caplog.records)
        caplog.clear()
        await close(working, silent, broken)

    async def test_it_fails_itself(
        self,
        start: Start,
        path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It begins anew, and the tree of the same process does not end with it."""
        await start()
        with monkeypatch.context() as patch:
            patch.setattr(Newcomers, "look", lambda self: 1 // 0)
            stream = await trio.open_unix_socket(path)
            await stream.send_all(request("now"))
            await in_thread(lambda: wait_for(lambda: caplog.records, "the failure"))
        assert (await rest(stream)).startswith(OK)
        assert {record.getMessage() for record in caplog.records} == {
            "the server of the plugin failed; it starts anew"
        }
        caplog.clear()
        await close(stream)

    async def test_no_descriptor_for_one(
        self, path: Path, application: Application, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Short(socket.socket):
            missing = 0

            def accept(self) -> tuple[socket.socket, object]:
                if self.missing:
                    self.missing -= 1
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                return super().accept()

        stop = trio.Event()
        with Short(socket.AF_UNIX) as listening, trio.fail_after(DEADLINE):
            listening.bind(str(path))
            listening.listen()
            clients = Clients(listening, application, bounds=Bounds(), grace=0.1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(clients.serve, stop)
                idle, silent = await connected(path, KEPT), await connected(path)
                listening.missing = 1
                assert (await exchange(path, request("now"))).startswith(OK)
                assert (is_gone(idle), is_gone(silent)) == (True, False)
                listening.missing = 3
                assert (await exchange(path, request("now"))).startswith(OK)
                assert is_gone(silent)
                stop.set()
        (record,) = caplog.records
        assert record.getMessage().endswith("accepted: Too many open files")
        await close(idle, silent)


class TestEnd:
    async def test_who_does_not_listen_does_not_keep_the_server(
        self, start: Start, path: Path
    ) -> None:
        stop = await start()
        stream = await connected(path, request("much"))
        stop.set()
        await in_thread(lambda: wait_for(lambda: is_gone(stream), "its end"))
        await close(stream)

    async def test_who_connects_while_the_name_is_there_is_answered(
        self, start: Start, path: Path
    ) -> None:
        """It takes a while to go when another plugin is at work in that directory."""
        stop = await start()
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            stop.set()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await exchange(path, request("now"))).startswith(OK)
        finally:
            os.close(fd)

    async def test_who_has_asked_before_is_answered(
        self, path: Path, application: Application
    ) -> None:
        """And who has asked nothing is not waited for."""
        stop = trio.Event()
        stop.set()
        with socket.socket(socket.AF_UNIX) as listening, trio.fail_after(DEADLINE):
            listening.bind(str(path))
            listening.listen(200)
            asking, silent = [await trio.open_unix_socket(path) for _ in range(200)], []
            for stream in asking:
                await stream.send_all(KEPT)
            silent.append(await trio.open_unix_socket(path))
            clients = Clients(listening, application, bounds=Bounds(), grace=10 * DEADLINE)
            await clients.serve(stop)
            for stream in asking:
                assert (await rest(stream)).startswith(OK)
            assert await rest(silent[0]) == b""
        await close(*asking, *silent)
