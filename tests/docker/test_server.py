"""The plugin at a real socket: what HTTP clients of all kinds do to it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.conftest import wait_for
from tests.docker.conftest import (
    DEADLINE,
    Client,
    asking_at,
    exchange,
    in_thread,
    request,
)
from volfs.docker.application import make_application
from volfs.errors import PluginError
from volfs.fs.mount.companion import Service
from volfs.store import VolumeStore

pytestmark = [
    pytest.mark.any_level,
    pytest.mark.skipif(os.geteuid() != 0, reason="giving volumes away needs root"),
]


@pytest.fixture
async def client(stop: trio.Event, path: Path) -> AsyncIterator[Client]:
    async with asking_at(path) as client:
        yield client


def _there(path: Path) -> int:
    """The st_mode of what is there, 0 when nothing is."""
    return path.lstat().st_mode if os.path.lexists(path) else 0


class TestHTTP:
    async def test_one_connection_for_many_requests(self, client: Client) -> None:
        await client.done("Create", Name="web")
        for _ in range(20):
            assert (await client.done("Get", Name="web"))["Volume"]["Name"] == "web"
        (pool,) = [client.http._transport._pool]  # type: ignore[attr-defined]
        assert len(pool.connections) == 1

    async def test_requests_one_behind_the_other(self, stop: trio.Event, path: Path) -> None:
        one = b"POST /Plugin.Activate HTTP/1.1\r\nHost: plugin\r\nContent-Length: 0\r\n\r\n"
        received = await exchange(path, one * 2 + request("Plugin.Activate"))
        assert received.count(b'{"Implements": ["VolumeDriver"]}') == 3

    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    async def test_versions(self, stop: trio.Event, path: Path, version: str) -> None:
        received = await exchange(path, request("Plugin.Activate", version=version))
        assert received.startswith(b"HTTP/1.1 200 ")

    async def test_a_body_in_chunks(self, stop: trio.Event, path: Path) -> None:
        received = await exchange(
            path,
            request("VolumeDriver.Create", b"", "Transfer-Encoding: chunked"),
            b'8\r\n{"Name":\r\n',
            b'6\r\n "web"\r\n1\r\n}\r\n',
            b"0\r\n\r\n",
        )
        assert received.endswith(b"\r\n\r\n{}")

    async def test_a_body_in_many_small_parts(self, stop: trio.Event, path: Path) -> None:
        body = b'{"Name": "web"}'
        text = request("VolumeDriver.Create", body)
        received = await exchange(path, *(text[i : i + 1] for i in range(len(text))))
        assert received.endswith(b"\r\n\r\n{}")

    async def test_expect_100_continue(self, stop: trio.Event, path: Path) -> None:
        body = b'{"Name": "web"}'
        text = request("VolumeDriver.Create", body, "Expect: 100-continue")
        received = await exchange(path, text.removesuffix(body), body)
        assert received.startswith(b"HTTP/1.1 100 ")
        assert received.endswith(b"\r\n\r\n{}")

    async def test_no_access_log(
        self, client: Client, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(3):
            await client.done("List")
            await client.ask("Mount", Name="nope")
        assert capfd.readouterr() == ("", "")
        assert all("/VolumeDriver" not in record.getMessage() for record in caplog.records)


class TestTooLarge:
    @pytest.mark.parametrize("path_asked", ["VolumeDriver.Create", "Nope"])
    async def test_with_a_length(self, client: Client, path_asked: str) -> None:
        answer = await client.send(path_asked, b" " * (3 << 20))
        assert answer.status == 413
        assert "1048576 bytes" in answer.error
        await client.done("List")

    async def test_in_chunks(self, client: Client) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b" " * 65536

        response = await client.http.post("http://plugin/VolumeDriver.Get", content=chunks())
        assert response.status_code == 413

    @pytest.mark.parametrize("serving", [{"make": partial(make_application, surplus=1 << 20)}])
    async def test_without_an_end(self, stop: trio.Event, path: Path) -> None:
        """It is neither kept nor read for ever."""
        sent = 0
        with trio.fail_after(DEADLINE):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(
                    request("VolumeDriver.Get", b"", "Transfer-Encoding: chunked")
                )
                with pytest.raises(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(b"10000\r\n" + b" " * 65536 + b"\r\n")
                        sent += 65536
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 413 ")
        assert sent < 8 << 20

    @pytest.mark.parametrize("serving", [{"make": partial(make_application, surplus_timeout=0.1)}])
    async def test_a_promise_that_is_not_kept(self, stop: trio.Event, path: Path) -> None:
        head = request("VolumeDriver.Get", b"", f"Content-Length: {1 << 40}")
        received = await exchange(path, head, b" " * (2 << 20))
        assert received.startswith(b"HTTP/1.1 413 ")


class TestOddClients:
    @pytest.mark.parametrize(
        "text",
        [
            b"\0\xff\x16\x03\x01\r\n\r\n",
            b"hello\r\n\r\n",
            b"POST / HTTP/1.1\r\n\r\n",
            b"POST /\xc3\xa4 HTTP/1.1\r\nHost: plugin\r\n\r\n",
            request("VolumeDriver.Get", b"", "Content-Length: x"),
            request("VolumeDriver.Get", b"", "Content-Length: -1"),
            request("VolumeDriver.Get", b"", "Content-Length: 1", "Content-Length: 2"),
            request("VolumeDriver.Get", b"", "Transfer-Encoding: x"),
            request("VolumeDriver.Get", b"", "Transfer-Encoding: chunked") + b"x\r\n",
            request("VolumeDriver.Get", b"", "X: " + "x" * 100_000),
        ],
    )
    async def test_garbage(self, client: Client, path: Path, text: bytes) -> None:
        received = await exchange(path, text)
        assert received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 "))
        await client.done("List")

    async def test_those_who_say_nothing_or_go_away_amid(self, client: Client, path: Path) -> None:
        text = request("VolumeDriver.Create", b'{"Name": "web"}')
        for size in range(0, len(text), 7):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(text[:size])
        assert await client.done("List") == {"Volumes": []}

    async def test_one_who_does_not_wait_for_the_answer(
        self, client: Client, path: Path, store: VolumeStore
    ) -> None:
        """What was asked for is done."""
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(request("VolumeDriver.Create", b'{"Name": "web"}'))
        with trio.fail_after(DEADLINE):
            await in_thread(lambda: wait_for(store.names, "the volume"))
        await client.done("Create", Name="web")

    async def test_a_slow_one_keeps_nobody_waiting(self, client: Client, path: Path) -> None:
        streams = [await trio.open_unix_socket(path) for _ in range(100)]
        for stream in streams:
            await stream.send_all(request("VolumeDriver.Get", b'{"Name": "web"}')[:-1])
        with trio.fail_after(DEADLINE):
            await client.done("List")
            for stream in streams:
                await stream.send_all(b"}")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
                await stream.aclose()


class TestMany:
    async def test_200_requests_at_once(
        self, stop: trio.Event, path: Path, store: VolumeStore
    ) -> None:
        async def life(number: int) -> None:
            async with asking_at(path) as client:
                name = f"v{number % 20}"
                if number < 100:
                    await client.done("Create", Name=name, Opts={"label.a": "b"})
                    await client.done("Mount", Name=name, ID=str(number))
                else:
                    await client.ask("Get", Name=name)
                    await client.done("Unmount", Name=name, ID="other")

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(life, number)
        assert len(store.names()) == 20
        for index, name in enumerate(sorted(store.names(), key=lambda name: int(name[1:]))):
            assert store.references(name) == {str(n) for n in range(index, 100, 20)}


class TestLife:
    @pytest.mark.parametrize("serving", [{"grace": 10 * DEADLINE}])
    async def test_the_socket_comes_and_goes(
        self, nursery: trio.Nursery, served: Service, path: Path
    ) -> None:
        stop, ended = trio.Event(), trio.Event()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await served(stop, task_status=task_status)
            ended.set()

        await nursery.start(run)
        assert _there(path) == stat.S_IFSOCK | 0o600
        # A client that keeps its connection does not keep the server.
        async with asking_at(path) as client:
            await client.done("List")
            stop.set()
            with trio.fail_after(DEADLINE):
                await ended.wait()
        assert not _there(path)

    async def test_what_is_asked_is_still_answered(
        self,
        nursery: trio.Nursery,
        served: Service,
        path: Path,
        store: VolumeStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        begun, going = trio.Event(), trio.Event()

        async def pause() -> None:
            begun.set()
            await going.wait()

        names = store.list
        monkeypatch.setattr(store, "list", lambda: (trio.from_thread.run(pause), names())[1])
        stop = trio.Event()
        await nursery.start(served, stop)
        async with asking_at(path) as client, trio.open_nursery() as asking:
            asking.start_soon(client.done, "List")
            await begun.wait()
            stop.set()
            await in_thread(lambda: wait_for(lambda: not path.exists(), "the socket's end"))
            going.set()

    @pytest.mark.parametrize("serving", [{"grace": 0.1}])
    async def test_a_call_that_hangs_does_not_keep_it(
        self,
        served: Service,
        path: Path,
        store: VolumeStore,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        begun, hanging = trio.Event(), trio.Event()

        async def hang() -> None:
            begun.set()
            await hanging.wait()

        monkeypatch.setattr(store, "list", lambda: trio.from_thread.run(hang))
        stop = trio.Event()
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as nursery:
                await nursery.start(served, stop)
                async with await trio.open_unix_socket(path) as stream:
                    await stream.send_all(request("VolumeDriver.List"))
                    await begun.wait()
                    stop.set()
                    async for _ in stream:
                        pass
        hanging.set()

    async def test_a_second_one_is_refused(
        self, stop: trio.Event, client: Client, served: Service
    ) -> None:
        with pytest.raises(PluginError, match="already"):
            await served(trio.Event())
        await client.done("List")

    async def test_cancelled(self, served: Service, path: Path) -> None:
        """As when the tree beside it is unmounted."""
        async with trio.open_nursery() as nursery:
            await nursery.start(served, trio.Event())
            assert _there(path)
            nursery.cancel_scope.cancel()
        assert not _there(path)


async def test_json_of_any_text(client: Client) -> None:
    name = json.loads('"\\ud800\\u0000\\u2028"')
    answer = await client.send("VolumeDriver.Get", json.dumps({"Name": name}).encode())
    assert answer.reply == {"Err": f"no such volume: {name}"}
