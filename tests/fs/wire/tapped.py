"""A small filesystem of pyfuse3 behind the tap: ``tapped.main([SCENARIO, MOUNTPOINT, WAY])``.

Its root holds the file ``f``, of HANDLED bytes if pyfuse3's handler is asked and of TAPPED bytes
if the tap is. A scenario sets up the tap. What happens is told on standard output, a JSON array
in each line. WAY is how it is mounted: by ``libfuse``, or as a ``descriptor`` given to it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pyfuse3
import trio

from volfs.fs.wire import _tap
from volfs.linux import syscalls

HANDLED, TAPPED = 7, 11
FILE, OTHER_FILE, DIRECTORY = 2, 3, 4  # node ids; any other name than f and directory is OTHER_FILE

FORGET, GETATTR, MKDIR, UNLINK, RMDIR, WRITE = 2, 3, 9, 10, 11, 16
INIT, INTERRUPT, BATCH_FORGET = 26, 36, 42
SUPPLEMENTARY_GROUP = 1 << 34  # FUSE_CREATE_SUPP_GROUP: creations carry one as an extension
INIT_EXT = 1 << 30

ATTRIBUTES = struct.pack(
    # struct fuse_attr_out, valid for no time
    "=2Q6Q10I",
    *(0, 0, FILE, TAPPED, 0, 0, 0, 0, 0, 0, 0),
    *(stat.S_IFREG | 0o644, 1, 0, 0, 0, 4096, 0),
)


def tell(what: str, *details: object) -> None:
    os.write(1, json.dumps([what, *details]).encode() + b"\n")


class Filesystem(pyfuse3.Operations):
    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        directory = inode in (pyfuse3.ROOT_INODE, DIRECTORY)
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o644)
        entry.st_nlink = 1
        entry.st_size = HANDLED
        entry.st_gid = 4242
        entry.entry_timeout = 1000
        entry.attr_timeout = 0
        return entry

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name == b"new":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes({b"f": FILE, b"directory": DIRECTORY}.get(name, OTHER_FILE))

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1))

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return len(buf)


# -- scenarios


def untouched() -> None:
    """Nothing is registered."""


def at_once() -> None:
    def attributes(unique: int, node: int, uid: int, gid: int, pid: int, body: bytes) -> object:
        if node != FILE:
            return NotImplemented
        tell("asked", uid, gid, pid, len(body))
        return ATTRIBUTES

    _tap.on_request(GETATTR, attributes)


def refused() -> None:
    """As at_once, after a mount that failed."""
    try:
        pyfuse3.init(Filesystem(), f"{sys.argv[2]}/none", set())
    except RuntimeError:
        tell("refused")
    at_once()


def buffers() -> None:
    """As at_once, with other buffers than bytes."""
    answers = iter([bytearray(ATTRIBUTES), memoryview(ATTRIBUTES)])
    _tap.on_request(GETATTR, lambda unique, node, *_: next(answers))


def errors() -> None:
    _tap.on_request(UNLINK, lambda *_: errno.EDQUOT)
    _tap.on_request(RMDIR, lambda *_: 0)


def faults() -> None:
    answers: Iterator[object] = iter([LookupError("oh"), "text", 512, -1, 1 << 70, b"short"])

    def attributes(unique: int, node: int, *_: object) -> object:
        answer = next(answers, NotImplemented) if node == FILE else NotImplemented
        if isinstance(answer, Exception):
            raise answer
        return answer

    _tap.on_request(GETATTR, attributes)


def later() -> None:
    """What asks for the file is answered when something else has been removed."""
    asked = threading.Event()
    uniques: list[int] = []

    def attributes(unique: int, node: int, *_: object) -> object:
        if node != FILE:
            return NotImplemented
        uniques.append(unique)
        tell("asked")
        return None

    def answer() -> None:
        asked.wait()
        _tap.reply(uniques[0], 0, ATTRIBUTES)
        with told_errno("again"):
            _tap.reply(uniques[0], 0, ATTRIBUTES)
        _tap.reply(uniques[1], errno.EDQUOT)

    def release(*_: object) -> int:
        threading.Thread(target=answer).start()
        asked.set()
        return 0

    _tap.on_request(GETATTR, attributes)
    _tap.on_request(UNLINK, release)


def interrupted() -> None:
    pending: set[int] = set()

    def attributes(unique: int, node: int, *_: object) -> object:
        if node != FILE:
            return NotImplemented
        pending.add(unique)
        tell("asked")
        return None

    def interrupt(unique: int, node: int, uid: int, gid: int, pid: int, body: bytes) -> object:
        (target,) = struct.unpack("=Q", body)
        if target not in pending:
            return NotImplemented
        _tap.reply(target, errno.EINTR)
        tell("interrupted")
        return None

    _tap.on_request(GETATTR, attributes)
    _tap.on_request(INTERRUPT, interrupt)


def abandoned() -> None:
    """A request that is answered behind the tap's back, so that the kernel has forgotten it."""

    def attributes(unique: int, node: int, *_: object) -> object:
        if node != FILE:
            return NotImplemented
        tell("asked", unique)
        _tap.reply(unique, 0, ATTRIBUTES)
        return ATTRIBUTES

    def remove(unique: int, *_: object) -> int:
        _tap.reply(unique, 0)
        return 0

    def forsaken(opcode: int, unique: int, body: bytes) -> None:
        tell("abandoned", opcode, unique, body == ATTRIBUTES, len(body))

    _tap.on_request(GETATTR, attributes)
    _tap.on_request(RMDIR, remove)
    _tap.on_abandoned(forsaken)


def aborted() -> None:
    def attributes(unique: int, node: int, *_: object) -> object:
        if node != FILE:
            return NotImplemented
        syscalls.umount2(os.fsencode(sys.argv[2]), MNT_FORCE | syscalls.MNT_DETACH)
        with told_errno("reply"):
            _tap.reply(unique, 0, ATTRIBUTES)
        return None

    _tap.on_request(GETATTR, attributes)


def forgotten() -> None:
    def forget(unique: int, node: int, uid: int, gid: int, pid: int, body: bytes) -> object:
        tell("forget", node, *struct.unpack("=Q", body))
        return None

    def forget_many(unique: int, node: int, uid: int, gid: int, pid: int, body: bytes) -> object:
        (count,) = struct.unpack_from("=I", body)
        for each in range(count):
            tell("forget", *struct.unpack_from("=QQ", body, 8 + 16 * each))
        return None

    _tap.on_request(FORGET, forget)
    _tap.on_request(BATCH_FORGET, forget_many)
    _tap.on_request(UNLINK, lambda *_: 0)
    _tap.set_drain(100, 0, 1000)


def negotiated() -> None:
    def init(request: bytes, reply: bytes) -> bytes:
        tell("init", struct.unpack_from("=2I", request), struct.unpack_from("=2I", reply))
        # Writes of a page; the 24 bytes that protocols before 7.23 had.
        return reply[:20] + struct.pack("=I", 4096)

    _tap.on_reply(INIT, init)


def mistaken() -> None:
    """A reply callback that fails, and one that returns nonsense."""

    def init(request: bytes, reply: bytes) -> bytes:
        raise LookupError("oh")

    _tap.on_reply(INIT, init)
    _tap.on_reply(GETATTR, lambda request, reply: 5)  # type: ignore[arg-type,return-value]


def extended() -> None:
    def init(request: bytes, reply: bytes) -> bytes:
        (offered,) = struct.unpack_from("=I", request, 16)
        (flags,) = struct.unpack_from("=I", reply, 12)
        changed = bytearray(reply.ljust(64, b"\0"))
        struct.pack_into("=I", changed, 12, flags | INIT_EXT)
        struct.pack_into("=I", changed, 32, offered & SUPPLEMENTARY_GROUP >> 32)
        return bytes(changed)

    def mkdir(unique: int, node: int, uid: int, gid: int, pid: int, body: bytes) -> int:
        tell("mkdir", body[8:].decode())
        return errno.EDQUOT

    _tap.on_reply(INIT, init)
    _tap.on_request(MKDIR, mkdir)


def lingering() -> None:
    """After the first request, a thread has something to tell; the tap waits for the second."""
    go = threading.Event()

    def idle() -> None:
        go.wait()
        tell("thread")

    def attributes(unique: int, node: int, *_: object) -> object:
        if node == FILE:
            go.set()
        return ATTRIBUTES if node == FILE else NotImplemented

    signal.signal(signal.SIGUSR1, lambda *_: tell("signal"))
    threading.Thread(target=idle).start()
    _tap.on_request(GETATTR, attributes)
    _tap.set_drain(100, 2, 3_600_000)


class Turns(trio.abc.Instrument):
    """How often the event loop has had its turn."""

    count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


TURNS = Turns()


def turns() -> None:
    """Two requests in each turn of the event loop; it is not left to wait for more."""

    def attributes(unique: int, node: int, *_: object) -> object:
        if node == FILE:
            tell("asked", TURNS.count)
        return ATTRIBUTES if node == FILE else NotImplemented

    _tap.on_request(GETATTR, attributes)
    _tap.set_drain(2, 0, 3_600_000)


def started() -> None:
    """What asks for the file is answered by a task of the event loop."""

    async def answer(unique: int) -> None:
        _tap.reply(unique, 0, ATTRIBUTES)

    def attributes(unique: int, node: int, *_: object) -> object:
        if node != FILE:
            return NotImplemented
        trio.lowlevel.spawn_system_task(answer, unique)
        return None

    _tap.on_request(GETATTR, attributes)
    _tap.set_drain(100, 0, 3_600_000)


def idle() -> None:
    """A task of the event loop tells when it runs, though the next request is still welcome."""

    async def run() -> None:
        tell("run")

    def attributes(unique: int, node: int, *_: object) -> object:
        if node != FILE:
            return NotImplemented
        trio.lowlevel.spawn_system_task(run)
        return ATTRIBUTES

    _tap.on_request(GETATTR, attributes)
    _tap.set_drain(100, 2, 1)


# -- running


MNT_FORCE = 1


@contextmanager
def told_errno(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        tell(what, errno.errorcode[error.errno or 0])
    else:
        tell(what, None)


def mount(mountpoint: str, way: str) -> None:
    if way == "libfuse":
        pyfuse3.init(Filesystem(), mountpoint, {"fsname=tapped"})
        return
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    syscalls.mount(b"tapped", os.fsencode(mountpoint), b"fuse", 0, data)
    pyfuse3.init(Filesystem(), f"/dev/fd/{device}", set())


def main() -> None:
    scenario, mountpoint, way = sys.argv[1:]
    sys.unraisablehook = lambda unraisable: tell("unraisable", unraisable.exc_type.__name__)
    _tap.attach(pyfuse3.__file__)
    _tap.attach(pyfuse3.__file__)
    globals()[scenario]()
    tell("descriptor", _tap.session_fd())
    mount(mountpoint, way)
    device = os.readlink(f"/proc/self/fd/{_tap.session_fd()}")
    tell("mounted", device, os.get_blocking(_tap.session_fd()))
    # One task, so that all is told in order.
    trio.run(pyfuse3.main, 1, 1, instruments=[TURNS])
    tell("counts", _tap.counts())
    _tap.close()
    tell("descriptor", _tap.session_fd())
    with told_errno("reply"):
        _tap.reply(1, 0)
    pyfuse3.close(unmount=way == "libfuse")
    tell("end")
