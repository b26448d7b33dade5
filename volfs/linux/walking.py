"""Walking through a directory tree by descriptor and name, however deep or restless it is.

Only the last steps of the way down are kept open; the others are found again through ``..``
and known by their inode numbers. So depth costs neither descriptors nor recursion, and nobody
who moves directories about meanwhile can lead the walk out of the tree.
"""

from __future__ import annotations

import errno
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from volfs.linux.durable import DIRECTORY, NO_ENTRY
from volfs.linux.syscalls import RESOLVE_NO_XDEV, openat2, os_error

_KEPT_OPEN = 24
"""Steps whose descriptors are kept, beside the first."""
_NO_OPENAT2 = frozenset((errno.ENOSYS, errno.EPERM))  # EPERM: a seccomp filter that is older


class LostError(Exception):
    """A directory was moved away while the walk was below it."""


class Step:
    """A directory on the way from the top to where the walk is."""

    __slots__ = ("below", "dst", "known", "name", "names", "src", "status", "taken", "touched")

    def __init__(self, name: str, src: int, status: os.stat_result) -> None:
        self.name = name
        self.src = src
        """The directory; -1 while it is not kept open."""
        self.dst = -1
        """Its counterpart elsewhere, for a walk that has one."""
        self.status = status
        """As it was before it was listed."""
        self.taken = time.time_ns()
        """When that was."""
        self.below: list[str] = []
        """The directories in it that are still to be entered."""
        self.names: set[str] | None = None
        """All names in it, for a walk that wants them."""
        self.known = False
        """Whether it is as it was in an earlier walk."""
        self.touched = False
        """Whether something was done in ``dst``."""


class Walk(ABC):
    """A walk through a tree; what is met is handled by the methods of a subclass.

    Directories covered by another mount are not entered.
    """

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping
        self._steps: list[Step] = []

    def walk(self, top: int) -> None:
        """Walk through the directory ``top``, which stays open.

        Raises LostError, InterruptedError when ``stopping()`` turns true, and the OSErrors of
        the methods, with the place in the tree as their file name.
        """
        try:
            # Not a duplicate: duplicates share the reading position.
            self._down("", _open_quietly(top, "."), None)
            while self._steps:
                step = self._steps[-1]
                if step.below:
                    self._enter(step, step.below.pop())
                else:
                    self._up()
        except OSError as error:
            if isinstance(error, InterruptedError):
                raise
            raise OSError(error.errno, error.strerror, self.place(error.filename)) from error
        finally:
            for step in self._steps:
                _close(step)
            self._steps.clear()

    @abstractmethod
    def arrive(self, parent: Step | None, step: Step) -> None:
        """A directory is about to be listed. May set ``dst``, and ``names`` to a set."""

    @abstractmethod
    def meet(self, step: Step, entry: os.DirEntry[str]) -> None:
        """An entry that is no directory was found."""

    @abstractmethod
    def leave(self, step: Step) -> None:
        """All in a directory and below it has been met."""

    @abstractmethod
    def miss(self, step: Step, name: str, covered: bool) -> None:
        """A directory cannot be entered: it is gone, or ``covered`` by a mount."""

    def place(self, name: object = None) -> str:
        """Return where the walk is, or a name there, for people to read."""
        names = [step.name for step in self._steps[1:]]
        if isinstance(name, bytes):
            name = os.fsdecode(name)
        if isinstance(name, str) and not name.startswith("/"):
            names.append(name)
        return "/".join(names) or "."

    def tick(self) -> None:
        """Raise InterruptedError if it is time to stop."""
        if self._stopping():
            raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    def _enter(self, parent: Step, name: str) -> None:
        try:
            fd = _open_quietly(parent.src, name)
        except OSError as error:
            if error.errno == errno.EXDEV or error.errno in NO_ENTRY:
                self.miss(parent, name, error.errno == errno.EXDEV)
                return
            raise OSError(error.errno, error.strerror, name) from None
        self._down(name, fd, parent)

    def _down(self, name: str, fd: int, parent: Step | None) -> None:
        step = Step(name, fd, os.fstat(fd))
        try:
            self.arrive(parent, step)
        except BaseException:
            _close(step)
            raise
        self._steps.append(step)
        if len(self._steps) > _KEPT_OPEN + 1:
            _close(self._steps[-_KEPT_OPEN - 1])
        with os.scandir(fd) as entries:
            for entry in entries:
                self.tick()
                if step.names is not None:
                    step.names.add(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    step.below.append(entry.name)
                else:
                    try:
                        self.meet(step, entry)
                    except InterruptedError:
                        raise
                    except OSError as error:
                        raise OSError(error.errno, error.strerror, entry.name) from error

    def _up(self) -> None:
        step = self._steps[-1]
        parent = self._steps[-2] if len(self._steps) > 1 else step
        if parent.src < 0:
            parent.src = _parent_of(step.src, parent.status)
            if step.dst >= 0:
                parent.dst = os.open("..", DIRECTORY, dir_fd=step.dst)
        self.leave(step)
        self._steps.pop()
        _close(step)


def open_beneath(dir_fd: int, name: str, flags: int) -> int:
    """Open ``name`` in a directory: a link itself, and never what is mounted there.

    Raises OSError(EXDEV) for a mount point.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return openat2(dir_fd, os.fsencode(name), flags, RESOLVE_NO_XDEV)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
    fd = os.open(name, flags, dir_fd=dir_fd)
    if _mount_of(fd) != _mount_of(dir_fd):
        os.close(fd)
        raise os_error(errno.EXDEV, name)
    return fd


def _open_quietly(dir_fd: int, name: str) -> int:
    """Open a directory so that listing it leaves its access time alone, where that is allowed."""
    try:
        return open_beneath(dir_fd, name, DIRECTORY | os.O_NOATIME)
    except PermissionError:
        return open_beneath(dir_fd, name, DIRECTORY)


def _parent_of(fd: int, expected: os.stat_result) -> int:
    """Open the directory above, which must be the one that it was."""
    parent = open_beneath(fd, "..", DIRECTORY)
    if not os.path.samestat(os.fstat(parent), expected):
        os.close(parent)
        raise LostError
    return parent


def _mount_of(fd: int) -> str:
    fdinfo = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return next((line for line in fdinfo.splitlines() if line.startswith("mnt_id:")), "")


def _close(step: Step) -> None:
    for fd in (step.src, step.dst):
        if fd >= 0:
            os.close(fd)
    step.src = step.dst = -1
