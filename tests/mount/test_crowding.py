"""Several processes do everything to a few files at once: no error but what they ask for.

What the kernel answers when the daemon mixes up opens, inodes or backing files is EIO or ESTALE.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.children import Child
from tests.conftest import MountFactory, few_descriptors
from tests.mount.open_files import wait_until_idle

PROCESSES = 4
SECONDS = 1.5
NAMES = ("d/a", "d/b", "e/a", "e/b")
FLAGS = (0, 0, os.O_APPEND, os.O_TRUNC, os.O_DIRECT, os.O_SYNC)
ACCESSES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)

EXPECTED = {
    errno.ENOENT: "somebody removed it",
    errno.EEXIST: "somebody made it",
    errno.EBADF: "not open for that",
    errno.EACCES: "not to be mapped like that",
    errno.EINVAL: "direct I/O without alignment",
    errno.EOPNOTSUPP: "no files without a name, where there is no tap",
}


class Member:
    """One of the processes: what it has open and mapped, and what it may do next."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top = top
        self.random = Random(seed)
        self.opened: list[int] = []
        self.mapped: list[mmap.mmap] = []

    def run(self) -> Counter[str]:
        """Do anything, again and again; the unexpected errors."""
        actions: list[Callable[[], object]] = [
            *(self.open, self.open, self.create, self.create, self.unnamed, self.unnamed),
            *(self.close, self.map, self.unmap, self.write, self.write, self.read, self.stat),
            *(self.unlink, self.unlink, self.rename, self.link, self.chmod, self.truncate),
        ]
        unexpected: Counter[str] = Counter()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            action = self.random.choice(actions)
            try:
                action()
            except OSError as error:
                if error.errno not in EXPECTED:
                    name = errno.errorcode.get(error.errno or 0, str(error))
                    unexpected[f"{action.__name__}: {name}"] += 1
            while len(self.opened) > 12:
                os.close(self.opened.pop(0))
            del self.mapped[:-6]
        return unexpected

    def path(self) -> Path:
        return self.top / self.random.choice(NAMES)

    def open(self) -> None:
        flags = self.random.choice(ACCESSES) | self.random.choice(FLAGS)
        self.opened.append(os.open(self.path(), flags))

    def create(self) -> None:
        flags = self.random.choice(ACCESSES) | self.random.choice((0, os.O_EXCL, os.O_TRUNC))
        self.opened.append(os.open(self.path(), flags | os.O_CREAT, 0o777))

    def unnamed(self) -> None:
        directory = self.top / self.random.choice(NAMES)[0]
        self.opened.append(os.open(directory, os.O_TMPFILE | os.O_RDWR))

    def close(self) -> None:
        if self.opened:
            os.close(self.opened.pop(self.random.randrange(len(self.opened))))

    def map(self) -> None:
        if self.opened:
            fd = self.random.choice(self.opened)
            prot = self.random.choice((mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE))
            with suppress(ValueError):  # it is empty
                self.mapped.append(mmap.mmap(fd, 0, prot=prot))

    def unmap(self) -> None:
        if self.mapped:
            self.mapped.pop(self.random.randrange(len(self.mapped))).close()

    def unlink(self) -> None:
        self.path().unlink()

    def rename(self) -> None:
        self.path().rename(self.path())

    def link(self) -> None:
        os.link(self.path(), self.path())

    def chmod(self) -> None:
        self.path().chmod(self.random.choice((0o777, 0o4777, 0o2777, 0o600)))

    def truncate(self) -> None:
        os.truncate(self.path(), self.random.choice((0, 10, 5000, 100_000)))

    def write(self) -> None:
        if self.opened:
            size, place = self.random.choice((1, 100, 5000)), self.random.choice((0, 3, 10_000))
            os.pwrite(self.random.choice(self.opened), b"x" * size, place)

    def read(self) -> None:
        if self.opened:
            os.pread(self.random.choice(self.opened), 4096, self.random.choice((0, 5000)))

    def stat(self) -> None:
        self.path().stat()


@pytest.mark.parametrize("how", ["always", "few descriptors", "dropping caches"])
def test_a_crowd_meets_no_error_of_ours(mount: MountFactory, how: str) -> None:
    tree = mount(
        cache="always" if how == "always" else "auto",
        preexec=few_descriptors(192) if how == "few descriptors" else None,
    )
    volume = tree.mnt / "vol"
    for directory in ("d", "e"):
        (volume / directory).mkdir(parents=True)
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child(partial(lambda seed: Member(volume, seed).run(), seed)))
            for seed in range(PROCESSES)
        ]
        if how == "dropping caches":
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                tree.drop_caches()
                time.sleep(0.01)  # so that something is remembered meanwhile
        unexpected = sum((child.result() for child in children), Counter[str]())
    assert not unexpected
    wait_until_idle(tree)
