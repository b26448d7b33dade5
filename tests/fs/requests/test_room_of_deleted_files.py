"""What a deleted file took is there at once, also while the daemon is still freeing it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from pyfuse3 import FileNameT, FUSEError, InodeT, XAttrNameT

from tests.filesystems import ext4
from tests.fs.conftest import MANY, Filesystem, context
from volfs.fs.agreement import PLAIN, Agreement
from volfs.fs.files import CachePolicy
from volfs.linux import syscalls

pytestmark = pytest.mark.any_level

MIB = 1 << 20

TAPPED = Agreement(device=0)


@pytest.fixture(params=[PLAIN, TAPPED], ids=["plain", "tapped"])
def small(request: pytest.FixtureRequest, workspace: Path) -> Iterator[Filesystem]:
    """A filesystem on a small disk."""
    mask = os.umask(0)
    with ext4(workspace / "small", size=16 * MIB) as disk:
        fs = Filesystem(disk / "scope", MANY, CachePolicy.NEVER)
        fs.agree(request.param)
        yield fs
        fs.agree(PLAIN)
        fs.close()
    os.umask(mask)


def fill(directory: Path) -> None:
    """Leave no block."""
    with (directory / "filler").open("wb") as file:
        size = 4 * MIB
        while size:
            try:
                syscalls.fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END), size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                size //= 2
    for number in range(1000):
        try:
            (directory / f"dir{number}").mkdir()
        except OSError as error:
            assert error.errno == errno.ENOSPC
            return
    pytest.fail("there is always room")


Making = Callable[[Filesystem, InodeT], Awaitable[object]]
MAKING: dict[str, Making] = {
    "mkdir": lambda fs, top: fs.mkdir(top, b"new"),
    "symlink": lambda fs, top: fs.operations.symlink(
        top, FileNameT(b"new"), FileNameT(b"x" * 200), context()
    ),
    "setxattr": lambda fs, top: fs.operations.setxattr(
        top, XAttrNameT(b"user.a"), b"x" * 2000, context()
    ),
}


@pytest.mark.parametrize("how", MAKING)
async def test_it_is_waited_for(small: Filesystem, how: str) -> None:
    fs = small
    top, data = fs.volume()
    with (data / "big").open("wb") as file:
        syscalls.fallocate(file.fileno(), 0, 0, 4 * MIB)
    big = (await fs.lookup(top, b"big")).st_ino
    fill(data)
    with pytest.raises(FUSEError, check=lambda error: error.errno == errno.ENOSPC):
        await MAKING[how](fs, top)
    free = threading.Event()
    for _ in range(2):  # in each thread that frees
        fs.descriptors.closing.later(free.wait)
    await fs.operations.unlink(top, FileNameT(b"big"), context())
    await fs.operations.forget([(InodeT(big), 1)])
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(MAKING[how], fs, top)
            await trio.testing.wait_all_tasks_blocked()
            free.set()
    finally:
        free.set()
