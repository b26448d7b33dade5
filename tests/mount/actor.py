"""Actor: a process that works in one directory as one user, told over a pipe what to do.

Two of them given the same orders, one in a volume and one in a plain directory, should answer
the same.
"""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import signal
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from volfs.linux import syscalls

Outcome = tuple[str, Any]
"""("ok", value) or ("error", name of the errno)."""

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1
_DAY_NS = 86400 * 10**9
_REPLY_DEADLINE = 30.0
_CAP_FSETID = 1 << syscalls.CAP_FSETID

AT_SYMLINK_FOLLOW = 0x400
NOW = "now"
OMIT = "omit"
Time = int | str
"""Nanoseconds, NOW or OMIT."""


class Actor:
    """The parent's side: ``actor("mkdir", b"name", 0o755)`` answers an Outcome."""

    def __init__(
        self, uid: int, gid: int, groups: list[int], *, list_searchable_only: bool = False
    ) -> None:
        """``list_searchable_only``: do not ask what is in directories without search permission;
        a daemon that is no root cannot tell."""
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(theirs, uid, gid, groups, list_searchable_only),
            daemon=True,
        )
        self._process.start()
        theirs.close()

    def __call__(self, action: str, *arguments: Any) -> Outcome:
        self._pipe.send((action, arguments))
        if not self._pipe.poll(_REPLY_DEADLINE):
            raise TimeoutError(f"no answer to {action}{arguments!r} in {_REPLY_DEADLINE} s")
        outcome: Outcome = self._pipe.recv()
        if outcome[0] == "bug":
            raise RuntimeError(f"{action}{arguments!r}: {outcome[1]}")
        return outcome

    def close(self) -> None:
        """End the process; its files are closed."""
        # Closing the pipe would not do: processes forked later have a copy of this end.
        with suppress(BrokenPipeError):
            self._pipe.send(None)
        self._pipe.close()
        self._process.join(_REPLY_DEADLINE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


class Sides:
    """Two directories and in each the same actors: the plain one, then the one compared.

    ``groups`` says who acts, as {uid: supplementary groups}. Without root among them the daemon
    is taken for one that is not root's.
    """

    def __init__(self, tops: tuple[Path, Path], groups: dict[int, list[int]]) -> None:
        self.tops = tops
        self._actors = [
            {
                uid: Actor(uid, uid, groups[uid], list_searchable_only=0 not in groups)
                for uid in groups
            }
            for _ in tops
        ]

    def each(self, user: int, action: str, path: str) -> list[Any]:
        """What both sides answer that work on ``path`` below their tops, which must succeed."""
        values = []
        for top, actors in zip(self.tops, self._actors, strict=True):
            result, value = actors[user](action, os.fsencode(top / path))
            assert result == "ok", value
            values.append(value)
        return values

    def enter(self, directory: str) -> None:
        """Send all actors to this directory below their top."""
        for user in self._actors[0]:
            self.each(user, "enter", directory)

    def leave(self) -> None:
        """Make all actors close their files and go."""
        for actors in self._actors:
            for actor in actors.values():
                assert actor("leave")[0] == "ok"

    def same(self, user: int, action: str, *arguments: Any) -> Outcome:
        """Let both sides do it; the outcome, which must be the same."""
        plain, tree = (actors[user](action, *arguments) for actors in self._actors)
        assert tree == plain, f"as {user}: {action}{arguments!r}: {tree}, not {plain}"
        return tree

    def close(self) -> None:
        """End all actors."""
        for actors in self._actors:
            for actor in actors.values():
                actor.close()


def _serve(
    pipe: Connection, uid: int, gid: int, groups: list[int], list_searchable_only: bool
) -> None:
    os.setgroups(groups)
    os.setgid(gid)
    os.setuid(uid)
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if uid == 0:
        # The daemon writes without it: root's writes through the tree clear setuid bits, which
        # on a plain directory they only do without it.
        effective, permitted, inheritable = syscalls.capget()
        syscalls.capset(effective & ~_CAP_FSETID, permitted, inheritable)
    actions = Actions(list_searchable_only)
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            return
        if order is None:
            return
        action, arguments = order
        outcome: Outcome
        try:
            outcome = ("ok", getattr(actions, action)(*arguments))
        except OSError as error:
            outcome = ("error", errno.errorcode.get(error.errno or 0, str(error)))
        except Exception as error:  # noqa: BLE001  # whatever it is, the parent must hear of it
            outcome = ("bug", repr(error))
        pipe.send(outcome)


class Actions:
    """What an actor can be told; paths are bytes relative to the directory it was sent to."""

    def __init__(self, list_searchable_only: bool) -> None:
        self._files: dict[int, int] = {}
        self._searchable_only = list_searchable_only

    def _lists(self, directory: bytes) -> bool:
        return not self._searchable_only or os.access(directory, os.X_OK)

    # -- where and how

    def make_volume(self, path: bytes) -> None:
        """A volume, or a directory, and deep in it "base", where everybody may do everything."""
        os.umask(0o022)
        os.mkdir(path)
        for name in (b"up", b"up/up", b"up/up/base"):
            os.mkdir(path + b"/" + name)
        os.chmod(path + b"/" + name, 0o777)

    def enter(self, directory: bytes) -> None:
        os.chdir(directory)
        os.umask(0o022)

    def discard(self, path: bytes) -> None:
        """Remove a volume with all that is in it, if the volume is still there."""
        if os.path.lexists(path):
            os.rmdir(path)

    def make_crowd(self, path: bytes, count: int) -> None:
        os.mkdir(path)
        for number in range(count):
            os.mknod(path + b"/%d" % number)

    def see_crowd(self, path: bytes) -> None:
        for name in os.listdir(path):
            os.stat(path + b"/" + name)

    def snapshot(self, top: bytes) -> dict[bytes, Any]:
        return snapshot(top, self._lists)

    def leave(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        os.chdir(b"/")

    def umask(self, mask: int) -> int:
        return os.umask(mask)

    # -- open files, under a number that the parent chose

    def open(self, number: int, path: bytes, flags: int, mode: int) -> Any:
        # Without O_NONBLOCK a FIFO would wait for its other end.
        self._files[number] = os.open(path, flags | os.O_NONBLOCK, mode)
        return describe(os.fstat(self._files[number]))

    def close(self, number: int) -> None:
        os.close(self._files.pop(number))

    def read(self, number: int, size: int) -> bytes:
        return os.read(self._files[number], size)

    def write(self, number: int, data: bytes) -> int:
        return os.write(self._files[number], data)

    def pread(self, number: int, size: int, offset: int) -> bytes:
        return os.pread(self._files[number], size, offset)

    def pwrite(self, number: int, data: bytes, offset: int) -> int:
        return os.pwrite(self._files[number], data, offset)

    def lseek(self, number: int, offset: int, whence: int) -> int:
        if stat.S_ISDIR(os.fstat(self._files[number]).st_mode):
            offset, whence = 0, os.SEEK_SET  # other offsets are each filesystem's own
        return os.lseek(self._files[number], offset, whence)

    def ftruncate(self, number: int, size: int) -> None:
        os.ftruncate(self._files[number], size)

    def fchmod(self, number: int, mode: int) -> Any:
        os.fchmod(self._files[number], mode)
        return describe(os.fstat(self._files[number]))

    def fchown(self, number: int, uid: int, gid: int) -> Any:
        os.fchown(self._files[number], uid, gid)
        return describe(os.fstat(self._files[number]))

    def futimens(self, number: int, atime: Time, mtime: Time) -> Any:
        fd = self._files[number]
        _utimensat(fd, None, atime, mtime, 0)
        return _times(os.fstat(fd))

    def fsync(self, number: int, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self._files[number])

    def fstat(self, number: int) -> Any:
        return describe(os.fstat(self._files[number]))

    def fsetxattr(self, number: int, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._files[number], name, value, flags)

    def fgetxattr(self, number: int, name: bytes) -> bytes:
        return os.getxattr(self._files[number], name)

    def flistdir(self, number: int) -> list[str]:
        if not self._lists(b"/proc/self/fd/%d" % self._files[number]):
            return ["not to be searched"]
        return sorted(os.listdir(self._files[number]))

    # -- names

    def mkdir(self, path: bytes, mode: int) -> Any:
        os.mkdir(path, mode)
        return describe(os.lstat(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def unlink(self, path: bytes) -> None:
        os.unlink(path)

    def rename(self, path: bytes, new_path: bytes, flags: int) -> None:
        syscalls.renameat2(syscalls.AT_FDCWD, path, syscalls.AT_FDCWD, new_path, flags)

    def link(self, path: bytes, new_path: bytes, follow: bool) -> Any:
        # os.link follows a link only when told of a directory.
        flags = AT_SYMLINK_FOLLOW if follow else 0
        if _libc.linkat(syscalls.AT_FDCWD, path, syscalls.AT_FDCWD, new_path, flags) != 0:
            raise OSError(ctypes.get_errno(), "linkat")
        return describe(os.lstat(path)), describe(os.lstat(new_path))

    def symlink(self, target: bytes, path: bytes) -> Any:
        os.symlink(target, path)
        return describe(os.lstat(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(path)

    def mknod(self, path: bytes, mode: int, rdev: int) -> Any:
        os.mknod(path, mode, rdev)
        return describe(os.lstat(path))

    # -- attributes

    def chmod(self, path: bytes, mode: int) -> Any:
        os.chmod(path, mode)
        return describe(os.stat(path))

    def chown(self, path: bytes, uid: int, gid: int, follow: bool) -> Any:
        os.chown(path, uid, gid, follow_symlinks=follow)
        return describe(os.stat(path, follow_symlinks=follow))

    def utimens(self, path: bytes, atime: Time, mtime: Time, follow: bool) -> Any:
        flags = 0 if follow else syscalls.AT_SYMLINK_NOFOLLOW
        _utimensat(syscalls.AT_FDCWD, path, atime, mtime, flags)
        return _times(os.stat(path, follow_symlinks=follow))

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(path, size)

    def stat(self, path: bytes, follow: bool) -> Any:
        return describe(os.stat(path, follow_symlinks=follow))

    def access(self, path: bytes, mode: int) -> bool:
        return os.access(path, mode)

    def listdir(self, path: bytes) -> Any:
        """Names and types, and whether the inode numbers are those of lstat."""
        if os.path.isdir(path) and not self._lists(path):
            return "not to be searched"
        found: list[tuple[bytes, Any]] = []
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    status = os.lstat(os.path.join(path, entry.name))
                except PermissionError:
                    found.append((entry.name, "not to be searched"))
                    continue
                kind = (entry.is_dir(follow_symlinks=False), entry.is_symlink())
                found.append((entry.name, (kind, entry.inode() == status.st_ino)))
        return sorted(found)

    # -- extended attributes

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(path, name, value, flags, follow_symlinks=follow)

    def getxattr(self, path: bytes, name: bytes, follow: bool) -> bytes:
        return os.getxattr(path, name, follow_symlinks=follow)

    def listxattr(self, path: bytes, follow: bool) -> list[str]:
        return sorted(os.listxattr(path, follow_symlinks=follow))

    def removexattr(self, path: bytes, name: bytes, follow: bool) -> None:
        os.removexattr(path, name, follow_symlinks=follow)


def describe(status: os.stat_result) -> tuple[str, int, int, int, int, int, int | str]:
    """What must be the same of a file: type and mode, links, owner, size, device, time set."""
    return (
        stat.filemode(status.st_mode),
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_rdev,
        _settled(status.st_mtime_ns),
    )


def snapshot(top: bytes, lists: Callable[[bytes], bool] = lambda _: True) -> dict[bytes, Any]:
    """Everything below ``top`` that must be the same: by path, what there is to know of it.

    Directories that ``lists`` denies are not looked into.
    """
    found: dict[bytes, Any] = {}
    for directory, directories, others in os.walk(top):
        if not lists(directory):
            continue
        for name in (b".", *directories, *others):
            path = directory + b"/" + name
            try:
                status = os.lstat(path)
            except PermissionError:
                found[os.path.relpath(path, top)] = "not to be searched"
                continue
            content: object = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = _outcome(_written, path)
            found[os.path.relpath(path, top)] = (
                describe(status),
                content,
                _outcome(_attributes, path),
            )
        directories[:] = [name for name in directories if lists(directory + b"/" + name)]
    return found


def _outcome(call: Callable[[bytes], object], path: bytes) -> object:
    try:
        return call(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _attributes(path: bytes) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def _written(path: bytes) -> list[tuple[int, bytes]]:
    """What a file holds but zeros, as (offset, data); files with 8 GiB of hole are among them."""
    found = []
    with Path(os.fsdecode(path)).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # Nothing is ever written past the first offsets, so the rest can only be a hole.
        for start in (0, max(size - (1 << 20), 0)):
            file.seek(start)
            found.append((start, file.read(1 << 21).rstrip(b"\0")))
    return found


def _settled(time_ns: int) -> int | str:
    """A time that was set, or just "recent" for one that a clock gave."""
    return "recent" if abs(time.time_ns() - time_ns) < _DAY_NS else time_ns


def _times(status: os.stat_result) -> tuple[int | str, int | str]:
    return _settled(status.st_atime_ns), _settled(status.st_mtime_ns)


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


def _utimensat(fd: int, path: bytes | None, atime: Time, mtime: Time, flags: int) -> None:
    times = (_Timespec * 2)(_timespec(atime), _timespec(mtime))
    call: Callable[..., int] = _libc.utimensat if path is not None else _libc.futimens
    arguments = (fd, path, ctypes.byref(times), flags) if path is not None else (fd, times)
    if call(*arguments) != 0:
        raise OSError(ctypes.get_errno(), "utimensat")


def _timespec(value: Time) -> _Timespec:
    if isinstance(value, str):
        return _Timespec(0, syscalls.UTIME_NOW if value == NOW else syscalls.UTIME_OMIT)
    return _Timespec(*divmod(value, 10**9))
