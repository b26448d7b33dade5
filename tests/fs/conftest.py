"""The tree's parts put together on a scope of their own, and asked without a mount."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyfuse3
import pytest
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
)

from volfs.fs.agreement import Agreement
from volfs.fs.files import CachePolicy
from volfs.fs.inodes import Descriptors, Inode
from volfs.fs.mount.assembly import assemble
from volfs.fs.mount.options import MountOptions
from volfs.fs.plain import Entries, VolumeFS
from volfs.linux.identity import Identity
from volfs.local import LocalDriver
from volfs.store import VolumeStore

pytest.register_assert_rewrite("tests.fs.locks.bench")

from tests.fs.locks.bench import Bench, prepared  # noqa: E402

ROOT = InodeT(pyfuse3.ROOT_INODE)
MANY = 10_000
"""Descriptors, where a test is not about having few."""


class _Context(NamedTuple):
    uid: int
    gid: int
    pid: int
    umask: int


class _Fields(NamedTuple):
    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False
    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False


def context(uid: int = 0, gid: int = 0, umask: int = 0o022) -> RequestContext:
    """Who asks; pyfuse3's own class cannot be filled in from Python."""
    return cast(RequestContext, _Context(uid, gid, os.getpid(), umask))


def fields(**chosen: bool) -> SetattrFields:
    """Which attributes a setattr request sets."""
    return cast(SetattrFields, _Fields(**chosen))


@dataclass
class Listing:
    """A readdir request: what is replied to it, ``room`` entries at most."""

    room: int
    names: list[bytes] = field(default_factory=list)
    entries: list[EntryAttributes] = field(default_factory=list)
    offset: int = 0
    """Where the next request goes on."""
    counted: int = 0
    """How many of the entries the kernel remembers: those with a node id, but for the dots."""


@pytest.fixture(autouse=True)
def _reply_to_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    def reply(token: Listing, name: bytes, entry: EntryAttributes, next_offset: int) -> bool:
        if len(token.names) >= token.room:
            return False
        token.names.append(name)
        token.entries.append(entry)
        token.offset = next_offset
        token.counted += entry.st_ino != 0 and name not in (b".", b"..")
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)


class Filesystem:
    """A VolumeFS over a real scope, and short forms of the requests."""

    def __init__(self, scope: Path, descriptors: int, cache: CachePolicy) -> None:
        self.scope = scope
        self.store = VolumeStore([LocalDriver(scope, keep_removed=0.0)])
        self._scope_fd = os.open(scope, os.O_RDONLY | os.O_DIRECTORY)
        self.parts = assemble(
            self.store,
            self._scope_fd,
            MountOptions(cache=cache),
            Identity(),
            Descriptors(descriptors),
            statistics=dict,
            on_volume_removed=lambda: None,
        )
        self.requests = self.parts.requests
        self.inodes = self.requests.inodes
        self.descriptors = self.parts.descriptors
        self.root = self.requests.root
        self.root_inode = self.inodes.root
        self.entries = Entries(self.inodes, self.root, cache)
        self.operations = VolumeFS(self.requests, self.entries)

    def close(self) -> None:
        self.parts.close()
        self.store.close()
        os.close(self._scope_fd)

    def statistics(self) -> dict[str, Any]:
        """What is known and what is open, counted."""
        return self.parts.statistics()

    def agree(self, agreement: Agreement) -> None:
        """Go on as when this had been agreed with the kernel."""
        self.parts.connection.agreement = agreement

    def volume(self, name: str = "vol") -> tuple[InodeT, Path]:
        """A new volume, looked up once: its top directory's node id, and the real data path."""
        _, fd = self.store.make(name)
        os.close(fd)
        found = self.root.lookup(name.encode())
        assert found is not None
        return InodeT(found[0].node_id), Path(self.store.get(name).path)

    def inode(self, node_id: int) -> Inode:
        return self.inodes[node_id]

    def without_handles(self) -> None:
        """Go on as on a filesystem without file handles, or without the right to use them."""
        device = self.root_inode.device
        self.descriptors.unanchor(device)
        device.has_handles = False

    def evict(self, node_id: int) -> None:
        """Take the descriptor of an inode away."""
        self.descriptors.evict(self.inode(node_id))
        assert self.inode(node_id).fd == -1

    async def lookup(self, parent: int, *names: bytes) -> EntryAttributes:
        """Look up names, one below the other."""
        entry = EntryAttributes()
        for name in names:
            entry = await self.operations.lookup(InodeT(parent), FileNameT(name), context())
            parent = entry.st_ino
        return entry

    async def getattr(self, node_id: int) -> EntryAttributes:
        return await self.operations.getattr(InodeT(node_id), context())

    async def create(self, parent: int, name: bytes, content: bytes = b"") -> EntryAttributes:
        """Create a file, write to it and close it."""
        info, entry = await self.operations.create(
            InodeT(parent), FileNameT(name), ModeT(0o644), FlagT(os.O_WRONLY), context()
        )
        if content:
            await self.operations.write(info.fh, 0, content)
        await self.operations.release(info.fh)
        return entry

    async def mkdir(self, parent: int, name: bytes) -> EntryAttributes:
        return await self.operations.mkdir(
            InodeT(parent), FileNameT(name), ModeT(stat.S_IFDIR | 0o755), context()
        )

    async def open(self, node_id: int, flags: int = os.O_RDONLY) -> FileHandleT:
        info = await self.operations.open(InodeT(node_id), FlagT(flags), context())
        return info.fh

    async def content(self, node_id: int) -> bytes:
        """Open, read and close."""
        handle = await self.open(node_id)
        data = bytes(await self.operations.read(handle, 0, 1 << 16))
        await self.operations.release(handle)
        return data

    async def readdir(self, handle: int, offset: int = 0, room: int = 1 << 30) -> Listing:
        listing = Listing(room, offset=offset)
        await self.operations.readdir(FileHandleT(handle), offset, cast(ReaddirToken, listing))
        return listing

    async def opendir(self, node_id: int) -> FileHandleT:
        return await self.operations.opendir(InodeT(node_id), context())

    async def listing(self, node_id: int) -> Listing:
        """List a directory, which makes all that is in it known without a look-up."""
        handle = await self.opendir(node_id)
        listing = await self.readdir(handle)
        await self.operations.releasedir(handle)
        return listing


FilesystemFactory = Callable[..., Filesystem]


@pytest.fixture
def filesystem(workspace: Path) -> Iterator[FilesystemFactory]:
    """A factory: ``filesystem(descriptors=32, cache=CachePolicy.NEVER)``."""
    made: list[Filesystem] = []
    mask = os.umask(0)

    def make(descriptors: int = MANY, cache: CachePolicy = CachePolicy.AUTO) -> Filesystem:
        made.append(Filesystem(workspace / f"scope{len(made)}", descriptors, cache))
        return made[-1]

    yield make
    for filesystem in made:
        filesystem.close()
    os.umask(mask)


@pytest.fixture
def fs(filesystem: FilesystemFactory) -> Filesystem:
    """A filesystem with plenty of descriptors."""
    return filesystem()


@pytest.fixture(params=["local", "slow"])
async def bench(request: pytest.FixtureRequest, workspace: Path) -> AsyncIterator[Bench]:
    """On a local filesystem, and on one whose calls run in threads."""
    async with prepared(workspace, slow=request.param == "slow") as bench:
        yield bench


@pytest.fixture
async def local(workspace: Path) -> AsyncIterator[Bench]:
    """On a local filesystem, where not every close is told of."""
    async with prepared(workspace, slow=False) as bench:
        yield bench
