"""A store behind the plugin, asked without a socket or through one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trio
import trio.testing
from starlette.types import ASGIApp

from volfs.docker.application import make_application
from volfs.docker.places import Places
from volfs.docker.plugin import VolumePlugin
from volfs.docker.server import serve
from volfs.fs.mount.companion import Service
from volfs.local import LocalDriver
from volfs.store import References, VolumeStore

T = TypeVar("T")

DEADLINE = 20.0


@pytest.fixture
def scope(tmp_path: Path) -> Path:
    return tmp_path / "scope"


@pytest.fixture
def store(scope: Path) -> Iterator[VolumeStore]:
    with_references = open_store(scope)
    yield with_references
    with_references.close()


def open_store(scope: Path) -> VolumeStore:
    """A store as the plugin's process has one."""
    driver = LocalDriver(scope)
    return VolumeStore([driver], references=References(driver.scope))


@dataclass
class Answer:
    """An answer of the plugin: its status and what its JSON says."""

    status: int
    reply: dict[str, Any]

    @property
    def error(self) -> str:
        """Why it failed; fails the test when it did not."""
        assert self.status != 200, self.reply
        assert set(self.reply) == {"Err"}
        text = self.reply["Err"]
        assert isinstance(text, str) and text
        return text


class Client:
    """Asks a plugin as dockerd and podman do."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def send(self, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Send this body, and check what all answers have in common."""
        response = await self.http.post(f"http://plugin/{path}", content=body, headers=headers)
        return answer_of(response)

    async def ask(self, path: str, **fields: object) -> Answer:
        """Ask with these fields, of Plugin for Activate and VolumeDriver for all others."""
        kind = "Plugin" if path == "Activate" else "VolumeDriver"
        return await self.send(f"{kind}.{path}", json.dumps(fields).encode())

    async def done(self, path: str, **fields: object) -> dict[str, Any]:
        """What it replies; fails the test when that is an error."""
        answer = await self.ask(path, **fields)
        assert answer.status == 200, answer.reply
        assert not answer.reply.get("Err"), answer.reply
        return answer.reply


def answer_of(response: httpx.Response) -> Answer:
    assert response.headers["content-type"] == "application/vnd.docker.plugins.v1.2+json"
    reply = response.json()
    assert isinstance(reply, dict)
    return Answer(response.status_code, reply)


ClientFactory = Callable[[Places], Client]


@pytest.fixture
def waiting() -> dict[str, float]:
    """How long the plugin waits, where a test says so; see VolumePlugin."""
    return {}


@pytest.fixture
def application(store: VolumeStore, scope: Path, waiting: dict[str, float]) -> ASGIApp:
    """The plugin as an application; volumes are used at their data path."""
    places = Places(str(scope), None, native=True)
    return make_application(VolumePlugin(store, places, **waiting))


@pytest.fixture
async def client(application: ASGIApp) -> AsyncIterator[Client]:
    async with asking(application) as client:
        yield client


def asking(application: ASGIApp) -> _Asking:
    """A context in which an application is asked, without a socket."""
    return _Asking(httpx.ASGITransport(application))


class _Asking:
    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._http = httpx.AsyncClient(transport=transport, timeout=30)

    async def __aenter__(self) -> Client:
        await self._http.__aenter__()
        return Client(self._http)

    async def __aexit__(self, *error: Any) -> None:
        await self._http.__aexit__(*error)


def asking_at(socket: Path) -> _Asking:
    """A context in which the plugin at a unix socket is asked."""
    return _Asking(httpx.AsyncHTTPTransport(uds=str(socket), verify=False))


async def in_thread(call: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(call)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "volfs.sock"


@pytest.fixture
def serving() -> dict[str, Any]:
    """What ``serve`` is told beside the rest; tests put something else here."""
    return {}


@pytest.fixture
def served(store: VolumeStore, scope: Path, path: Path, serving: dict[str, Any]) -> Service:
    return partial(serve, store, Places(str(scope), None, native=True), str(path), **serving)


@pytest.fixture
async def stop(
    served: Service, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[trio.Event]:
    """Serves; the event ends it. Nothing may have gone wrong on the way."""
    event = trio.Event()
    await nursery.start(served, event)
    yield event
    event.set()
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


async def exchange(path: Path, *parts: bytes) -> bytes:
    """Send parts one after the other, and return all that comes until the server closes."""
    with trio.fail_after(DEADLINE):
        async with await trio.open_unix_socket(path) as stream:
            for part in parts:
                await stream.send_all(part)
                await trio.testing.wait_all_tasks_blocked(0.001)
            received = b""
            try:
                async for data in stream:
                    received += data
            except trio.BrokenResourceError:
                pass  # the server has not read all that was sent
            return received


def request(path: str, body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST /{path} HTTP/{version}", "Host: plugin", "Connection: close", *headers]
    if body or not headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body
