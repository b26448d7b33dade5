"""On a filesystem that may hang, everything is done in worker threads."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    XAttrNameT,
)

from tests.fs.conftest import ROOT, Filesystem, FilesystemFactory, context, fields
from volfs.fs.agreement import Agreement
from volfs.fs.files import attributes as attributes_of_files
from volfs.fs.files import names, opening
from volfs.fs.inodes import reaching
from volfs.fs.plain import entries
from volfs.fs.requests import WAITING, Later
from volfs.linux import calls, syscalls

DEADLINE = 20.0

# Those of the system calls used that can wait for the filesystem. Not among them: close of an
# O_PATH descriptor, and name_to_handle_at, which no server is asked for.
BLOCKING = [
    (os, name)
    for name in (
        "open", "stat", "lstat", "fstat", "statvfs", "readlink", "mkdir", "mknod", "symlink",
        "unlink", "rmdir", "rename", "link", "chmod", "chown", "truncate", "ftruncate", "pread",
        "preadv", "pwrite", "pwritev", "fsync", "fdatasync", "scandir", "dup", "getxattr",
        "setxattr", "listxattr", "removexattr",
    )
] + [
    *((syscalls, name) for name in ("renameat2", "utimensat", "open_by_handle_at")),
    *((names, name) for name in ("fstat", "fstatat", "open_path")),
    *((module, "fstat") for module in (attributes_of_files, opening, reaching)),
    *((entries, name) for name in ("fstat", "fstatat")),
    *((calls, name) for name in ("chown", "chmod", "utimens", "link", "getxattr")),
]  # fmt: skip


class Watch:
    """Notes system calls of the event loop's thread, and can make one of any thread hang."""

    def __init__(self) -> None:
        self.armed = False
        self.on_the_loop: list[str] = []
        self.in_threads: list[str] = []
        self.hanging = 0
        self.most_hanging = 0
        self.hang_in: str | None = None
        self.let_go = threading.Event()
        self._lock = threading.Lock()

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            if self.armed:
                in_loop = threading.current_thread() is threading.main_thread()
                (self.on_the_loop if in_loop else self.in_threads).append(name)
                if name == self.hang_in:
                    self._hang()
            return call(*arguments, **options)

        return watched

    def _hang(self) -> None:
        with self._lock:
            self.hanging += 1
            self.most_hanging = max(self.hanging, self.most_hanging)
        assert self.let_go.wait(DEADLINE)
        with self._lock:
            self.hanging -= 1


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch()
    for module, name in BLOCKING:
        monkeypatch.setattr(module, name, watch.wrap(name, getattr(module, name)))
    yield watch
    watch.armed = False
    watch.let_go.set()


@pytest.fixture
def slow(fs: Filesystem) -> Filesystem:
    """A scope on a slow filesystem."""
    fs.root_inode.device.slow = True
    return fs


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110  # threads change it, without an event
            await trio.sleep(0.005)


async def setattr_of(fs: Filesystem, node: int, handle: FileHandleT | None, **chosen: bool) -> None:
    attributes = EntryAttributes()
    attributes.st_mode = ModeT(stat.S_IFREG | 0o640)
    attributes.st_size = 3
    attributes.st_uid = attributes.st_gid = 0
    attributes.st_atime_ns = attributes.st_mtime_ns = 10**18
    await fs.operations.setattr(InodeT(node), attributes, fields(**chosen), handle, context())


async def setattr_by_node(fs: Filesystem, top: InodeT) -> None:
    node = (await fs.lookup(top, b"f")).st_ino
    await setattr_of(fs, node, None, update_mode=True, update_size=True, update_mtime=True)
    await setattr_of(fs, node, None, update_uid=True, update_gid=True)


async def setattr_by_handle(fs: Filesystem, top: InodeT) -> None:
    node = (await fs.lookup(top, b"f")).st_ino
    handle = await fs.open(node, os.O_RDWR)
    await setattr_of(fs, node, handle, update_mode=True, update_size=True, update_atime=True)
    await fs.operations.release(handle)


async def read_and_write(fs: Filesystem, top: InodeT) -> None:
    handle = await fs.open((await fs.lookup(top, b"f")).st_ino, os.O_RDWR)
    await fs.operations.write(handle, 0, b"data")
    await fs.operations.flush(handle)
    await fs.operations.fsync(handle, False)
    await fs.operations.fsync(handle, True)
    assert bytes(await fs.operations.read(handle, 0, 10)) == b"data"
    await fs.operations.release(handle)


async def append(fs: Filesystem, top: InodeT) -> None:
    node = (await fs.lookup(top, b"f")).st_ino
    appending = await fs.open(node, os.O_WRONLY | os.O_APPEND)
    # One of which the kernel says by the write that it is to append.
    writing = await fs.open(node, os.O_RDWR)
    await fs.operations.write(appending, 0, b"data")
    for told in (True, False):
        written = fs.requests.files.write(writing, 0, b"more", told)
        assert isinstance(written, Later)
        assert await written() == 4
    await fs.operations.flush(writing)
    await fs.operations.fsync(writing, False)
    for handle in (appending, writing):
        await fs.operations.release(handle)


async def list_directory(fs: Filesystem, top: InodeT) -> None:
    handle = await fs.opendir(top)
    assert b"f" in (await fs.readdir(handle)).names
    await fs.operations.fsyncdir(handle, False)
    await fs.operations.releasedir(handle)


async def attributes(fs: Filesystem, top: InodeT) -> None:
    node = InodeT((await fs.lookup(top, b"f")).st_ino)
    name = XAttrNameT(b"user.x")
    await fs.operations.setxattr(node, name, b"1", context())
    assert await fs.operations.getxattr(node, name, context()) == b"1"
    assert list(await fs.operations.listxattr(node, context())) == [name]
    await fs.operations.removexattr(node, name, context())


async def rename_and_link(fs: Filesystem, top: InodeT) -> None:
    for new, flags in ((b"g", 0), (b"h", syscalls.RENAME_NOREPLACE)):
        old = b"f" if new == b"g" else b"g"
        await fs.operations.rename(
            top, FileNameT(old), top, FileNameT(new), FlagT(flags), context()
        )
    node = InodeT((await fs.lookup(top, b"h")).st_ino)
    await fs.operations.link(node, top, FileNameT(b"l"), context())


async def make_and_remove(fs: Filesystem, top: InodeT) -> None:
    await fs.create(top, b"created", b"x")
    await fs.operations.mknod(top, FileNameT(b"node"), ModeT(0o100600), 0, context())
    link = await fs.operations.symlink(top, FileNameT(b"s"), FileNameT(b"t"), context())
    assert await fs.operations.readlink(InodeT(link.st_ino), context()) == b"t"
    await fs.mkdir(top, b"dir")
    await fs.operations.rmdir(top, FileNameT(b"dir"), context())
    await fs.operations.unlink(top, FileNameT(b"node"), context())


async def lookup_after_eviction(fs: Filesystem, top: InodeT) -> None:
    node = (await fs.lookup(top, b"f")).st_ino
    fs.descriptors.evict(fs.inode(node))
    await fs.getattr(node)


async def use_the_root(fs: Filesystem, top: InodeT) -> None:
    made = await fs.mkdir(ROOT, b"made")
    assert (await fs.lookup(ROOT, b"made")).st_ino == made.st_ino
    assert b"made" in (await fs.listing(ROOT)).names
    await fs.operations.getxattr(InodeT(made.st_ino), XAttrNameT(b"volfs.users"), context())
    await fs.operations.rename(
        ROOT, FileNameT(b"made"), ROOT, FileNameT(b"renamed"), FlagT(0), context()
    )
    await fs.operations.rmdir(ROOT, FileNameT(b"renamed"), context())
    await fs.operations.statfs(context())
    await fs.getattr(ROOT)


Work = Callable[[Filesystem, InodeT], Awaitable[None]]
WORK: list[Work] = [
    setattr_by_node,
    setattr_by_handle,
    read_and_write,
    append,
    list_directory,
    attributes,
    rename_and_link,
    make_and_remove,
    lookup_after_eviction,
    use_the_root,
]


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
async def test_no_system_call_waits_on_the_event_loop(
    slow: Filesystem, watch: Watch, work: Work
) -> None:
    top, data = slow.volume()
    (data / "f").touch()
    watch.armed = True
    await work(slow, top)
    watch.armed = False
    assert watch.in_threads
    assert not watch.on_the_loop


async def test_on_a_local_device_no_thread_is_needed(fs: Filesystem, watch: Watch) -> None:
    """With the tap, which sees to it if a change does not come back."""
    fs.agree(Agreement(device=0))
    top, data = fs.volume()
    (data / "f").touch()
    watch.armed = True
    for work in (setattr_by_node, attributes, rename_and_link, make_and_remove):
        await work(fs, top)
        if work is rename_and_link:
            (data / "h").rename(data / "f")
    watch.armed = False
    assert not watch.in_threads


async def test_hanging_call_does_not_keep_others_from_working(
    slow: Filesystem, watch: Watch
) -> None:
    top, data = slow.volume()
    (data / "f").write_text("content")
    node = (await slow.lookup(top, b"f")).st_ino
    watch.hang_in = "readlink"
    link = await slow.operations.symlink(top, FileNameT(b"s"), FileNameT(b"t"), context())
    async with trio.open_nursery() as nursery:
        watch.armed = True
        nursery.start_soon(slow.operations.readlink, InodeT(link.st_ino), context())
        await until(lambda: watch.hanging == 1)
        with trio.fail_after(DEADLINE / 2):
            assert await slow.content(node) == b"content"
            await slow.create(top, b"more")
            await use_the_root(slow, top)
        assert watch.hanging == 1
        watch.let_go.set()


async def test_threads_that_hang_are_limited_for_each_filesystem(
    filesystem: FilesystemFactory, watch: Watch
) -> None:
    fs = filesystem()
    top, _ = fs.volume()
    local = await fs.create(top, b"f", b"x")
    device = fs.root_inode.device
    device.slow = True
    link = await fs.operations.symlink(top, FileNameT(b"s"), FileNameT(b"t"), context())
    watch.hang_in = "readlink"
    done = 0

    async def read_link() -> None:
        nonlocal done
        assert await fs.operations.readlink(InodeT(link.st_ino), context()) == b"t"
        done += 1

    async with trio.open_nursery() as nursery:
        watch.armed = True
        for _ in range(WAITING * 2):
            nursery.start_soon(read_link)
        await until(lambda: watch.hanging == WAITING)
        await trio.testing.wait_all_tasks_blocked()
        # Volumes come and go, and other filesystems are served, meanwhile.
        with trio.fail_after(DEADLINE / 2):
            await fs.mkdir(ROOT, b"other")
            await fs.operations.rmdir(ROOT, FileNameT(b"other"), context())
            device.slow = False
            assert await fs.content(local.st_ino) == b"x"
        assert watch.most_hanging == WAITING
        assert done == 0
        watch.let_go.set()
    assert done == WAITING * 2
    assert watch.most_hanging == WAITING


async def test_descriptor_in_use_by_a_thread_is_not_closed(
    filesystem: FilesystemFactory, watch: Watch
) -> None:
    fs = filesystem(descriptors=32)
    top, data = fs.volume()
    fs.root_inode.device.slow = True
    (data / "f").write_text("content")
    node = (await fs.lookup(top, b"f")).st_ino
    descriptor = fs.inode(node).fd
    watch.hang_in = "listxattr"
    async with trio.open_nursery() as nursery:
        watch.armed = True
        nursery.start_soon(fs.operations.listxattr, InodeT(node), context())
        await until(lambda: watch.hanging == 1)
        for number in range(200):
            (data / f"n{number}").touch()
            await fs.lookup(top, b"n%d" % number)
        fs.descriptors.evict(fs.inode(node))
        assert fs.inode(node).fd == descriptor
        assert os.stat(f"/proc/self/fd/{descriptor}").st_ino == node
        watch.let_go.set()
    assert fs.inode(node).pins == 0
    fs.evict(node)


async def test_file_closed_and_forgotten_while_a_call_hangs(slow: Filesystem, watch: Watch) -> None:
    """A call that was interrupted goes on; what it uses must stay what it is."""
    top, data = slow.volume()
    (data / "f").write_text("content")
    node = (await slow.lookup(top, b"f")).st_ino
    handle = await slow.open(node)
    watch.hang_in = "pread"
    answers: list[bytes] = []

    async def read() -> None:
        answers.append(bytes(await slow.operations.read(handle, 0, 100)))

    async with trio.open_nursery() as nursery:
        watch.armed = True
        nursery.start_soon(read)
        await until(lambda: watch.hanging == 1)
        await slow.getattr(node)
        watch.let_go.set()
    assert answers == [b"content"]
    await slow.operations.release(handle)
    await slow.operations.forget([(InodeT(node), 1)])


async def test_creating_in_threads_is_creating_as_the_caller(slow: Filesystem) -> None:
    """The identity and the mask belong to the thread."""
    top, data = slow.volume()
    data.chmod(0o777)
    owners = [(1000, 1001), (0, 0), (65534, 65534), (1, 2)] * 10
    masks = [0o000, 0o077, 0o022, 0o027]

    async def make(number: int) -> None:
        uid, gid = owners[number]
        info, _ = await slow.operations.create(
            top,
            FileNameT(b"f%d" % number),
            ModeT(0o666),
            FlagT(os.O_WRONLY),
            context(uid, gid, masks[number % 4]),
        )
        await slow.operations.release(info.fh)

    async with trio.open_nursery() as nursery:
        for number in range(len(owners)):
            nursery.start_soon(make, number)
    for number, owner in enumerate(owners):
        status = (data / f"f{number}").stat()
        assert (status.st_uid, status.st_gid) == owner
        assert stat.S_IMODE(status.st_mode) == 0o666 & ~masks[number % 4]
    assert os.umask(0) == 0
