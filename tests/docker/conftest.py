"""A store behind the plugin, asked without a socket or through one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trio
from starlette.types import ASGIApp

from volfs.docker.application import make_application
from volfs.docker.places import Places
from volfs.docker.plugin import VolumePlugin
from volfs.local import LocalDriver
from volfs.store import References, VolumeStore

T = TypeVar("T")


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
