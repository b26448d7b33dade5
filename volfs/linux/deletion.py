"""Deleting a directory tree, however deep, wide or hostile it is.

Every directory found is first moved up, directly under the tree's top, then emptied there and
removed. So the depth of the tree costs neither descriptors nor recursion, a deletion that was
cut short is taken up by simply starting again, and two at work on one tree at the same time merely
share it.

Moving a directory before entering it also keeps the deletion out of what somebody mounted
inside the tree: rename(2) answers EBUSY for a mount point, be it a bind mount of the same
filesystem.

A subvolume of btrfs is destroyed at once where that is allowed. Else it is emptied as a tree of
its own, to whose top directories are moved, since rename(2) moves none out of a subvolume; only
the subvolumes in it can be, and are moved to the top of all: so their depth costs nothing either.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from volfs.linux.durable import DIRECTORY, PLACE, opened, scanned
from volfs.linux.syscalls import filesystem_type
from volfs.linux.walking import open_beneath

_NOT_EMPTY = frozenset((errno.ENOTEMPTY, errno.EEXIST))  # rmdir(2) may answer either
_AHEAD = 1024
"""How many directories are remembered that were moved up; others are met again by listing."""
_TRIES = 16
"""How often a directory is emptied before it is left alone: somebody may be filling it."""
_NAMED = 10
"""How many of the things are named that cannot be deleted."""
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_BTRFS = 0x9123683E
_SUBVOLUME_INODE = 256
_SNAP_DESTROY = 0x5000940F  # linux/btrfs.h
_VOL_ARGS = struct.Struct("=q4088s")
_SUBVOL_GETFLAGS, _SUBVOL_SETFLAGS = 0x80089419, 0x4008941A
_SUBVOL_FLAGS = struct.Struct("=Q")
_SUBVOL_RDONLY = 2


class UndeletedError(OSError):
    """Something in a tree cannot be deleted.

    ``left`` has the places from the tree's top, with the reasons, of some of what is left there;
    ``errno``, ``strerror`` and ``filename`` are those of the first.
    """

    def __init__(self, problems: Sequence[tuple[str, OSError]]) -> None:
        place, first = problems[0]
        super().__init__(first.errno, first.strerror, place)
        self.left = tuple((place, error.strerror or str(error)) for place, error in problems)


def never() -> bool:
    """A ``stopping`` that never turns true."""
    return False


def after(seconds: float) -> Callable[[], bool]:
    """Return a ``stopping`` that turns true after this many seconds."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def delete_tree(name: str, *, dir_fd: int, stopping: Callable[[], bool]) -> bool:
    """Delete the directory ``name`` in ``dir_fd`` with all below it; return whether it is gone.

    False means that there is more to do: ``stopping()`` turned true, or somebody else is at work
    in the tree. When something cannot be deleted (immutable, a mount point), UndeletedError is
    raised after all else is deleted. Symbolic links are deleted, never followed.
    """
    left: list[tuple[str, OSError]] = []
    try:
        with opened(name, dir_fd=dir_fd) as top:
            deletion = _Deletion(top, stopping)
            deletion.run()
            left = deletion.left()
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return True
    except _StoppedError:
        return False
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise
        if left:
            raise UndeletedError(left) from None
        return False
    return True


class _StoppedError(Exception):
    """stopping() turned true."""


class _Deletion:
    """One run over one tree.

    ``outer`` is the run that this one is a part of, when the tree is a subvolume.
    """

    def __init__(
        self, top: int, stopping: Callable[[], bool], outer: _Deletion | None = None
    ) -> None:
        self._problems: dict[str, OSError] = {}
        self._top = top
        self._outer = outer
        self._device = os.fstat(top).st_dev
        self._stopping = stopping
        self._tries: dict[str, int] = {}  # only of what did not go at the first try
        self._ahead: list[str] = []
        self._prefix = f"{secrets.token_hex(4)}-"
        self._moved = 0

    def run(self) -> bool:
        """Delete all that can be; return whether anything went."""
        progress = False
        while self._pass():
            progress = True
        return progress

    def left(self) -> list[tuple[str, OSError]]:
        """Return some of what could not be deleted, by its place from the top."""
        return [item for item in self._problems.items() if self._is_there(item[0])]

    def _is_there(self, place: str) -> bool:
        try:
            os.stat(place, dir_fd=self._top, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            pass
        return True

    def _pass(self) -> bool:
        """Delete what lies directly under the top; return whether anything went."""
        progress = False
        with scanned(self._top) as entries:
            for entry in entries:
                self._give_way()
                if self._tries.get(entry.name, 0) >= _TRIES:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    progress |= self._delete_directory(entry.name)
                elif self._unlink(entry.name, self._top, entry.name):
                    progress = True
                else:
                    self._tries[entry.name] = _TRIES
                while self._ahead:
                    progress |= self._delete_directory(self._ahead.pop())
        return progress

    def _delete_directory(self, name: str) -> bool:
        """Delete a directory that lies under the top; return whether anything went."""
        moved: str | None = name
        if not name.startswith(self._prefix):
            moved = self._move_up(name, self._top, name)
        if moved is None:
            self._tries[name] = _TRIES
            return False
        progress = self._empty(moved)
        try:
            os.rmdir(moved, dir_fd=self._top)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in _NOT_EMPTY:
                self._note(moved, error)
            self._tries[moved] = self._tries.get(moved, 0) + 1 if progress else _TRIES
            return progress
        self._tries.pop(moved, None)
        return True

    def _empty(self, name: str) -> bool:
        """Unlink the files of a directory under the top and move its directories up."""
        progress = False
        try:
            fd = self._open(name)
        except OSError as error:
            self._note(name, error)
            return False
        try:
            if os.fstat(fd).st_dev != self._device:
                if _is_subvolume(fd):
                    return self._delete_subvolume(name, fd)
                self._note(name, OSError(errno.EBUSY, "on another filesystem", name))
                return False
            with os.scandir(fd) as entries:
                for entry in entries:
                    self._give_way()
                    place = f"{name}/{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        moved = self._move_up(entry.name, fd, place)
                        progress |= moved is not None
                        if moved is not None and len(self._ahead) < _AHEAD:
                            self._ahead.append(moved)
                    else:
                        progress |= self._unlink(entry.name, fd, place)
        finally:
            os.close(fd)
        return progress

    def _open(self, name: str) -> int:
        """Open a directory under the top such that its entries can be listed and removed."""
        try:
            fd = open_beneath(self._top, name, DIRECTORY)
        except PermissionError:
            self._make_accessible(name, self._top)
            return open_beneath(self._top, name, DIRECTORY)
        # Root passes all permission checks. An owner passes only those that the mode grants.
        if os.geteuid() != 0 and os.fstat(fd).st_mode & 0o700 != 0o700:
            try:
                os.fchmod(fd, 0o700)
            except OSError:
                os.close(fd)
                raise
        return fd

    def _make_accessible(self, name: str, dir_fd: int) -> None:
        with opened(name, dir_fd=dir_fd, flags=PLACE) as fd:
            # fchmod(2) refuses an O_PATH descriptor, and any other needs the permission.
            os.chmod(f"/proc/self/fd/{fd}", 0o700)

    def _delete_subvolume(self, name: str, fd: int) -> bool:
        """Delete a subvolume that lies under the top, as far as that goes here."""
        _make_writable(fd)
        try:
            arguments = bytearray(_VOL_ARGS.pack(-1, os.fsencode(name)))
            fcntl.ioctl(self._top, _SNAP_DESTROY, arguments)
        except OSError:
            pass  # there are others in it, or it is not ours to destroy
        else:
            return True
        if self._outer is not None:
            return self._outer.take(name, self._top)
        deletion = _Deletion(fd, self._stopping, self)
        progress = deletion.run()
        for place, error in deletion.left():
            self._note(f"{name}/{place}", error)
        return progress

    def take(self, name: str, dir_fd: int) -> bool:
        """Move a subvolume, from the top of another run, under the top of this one."""
        moved = self._move_up(name, dir_fd, name)
        if moved is not None and len(self._ahead) < _AHEAD:
            self._ahead.append(moved)
        return moved is not None

    def _move_up(self, name: str, dir_fd: int, place: str) -> str | None:
        """Move a directory under the top; return its new name, None if it cannot be moved."""
        moved = f"{self._prefix}{self._moved}"
        self._moved += 1
        try:
            try:
                os.rename(name, moved, src_dir_fd=dir_fd, dst_dir_fd=self._top)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EPERM):
                    # A moved directory's ".." changes, so its owner needs to be able to write it.
                    self._make_accessible(name, dir_fd)
                elif error.errno == errno.EROFS:
                    with opened(name, dir_fd=dir_fd) as fd:
                        _make_writable(fd)
                else:
                    raise
                os.rename(name, moved, src_dir_fd=dir_fd, dst_dir_fd=self._top)
        except OSError as error:
            if error.errno in _FULL and dir_fd == self._top:
                return name  # no room for another name: emptied where it is
            self._note(place, error)
            return None
        return moved

    def _unlink(self, name: str, dir_fd: int, place: str) -> bool:
        try:
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            return True
        except OSError as error:
            self._note(place, error)
            return False
        return True

    def _note(self, place: str, error: OSError) -> None:
        if error.errno != errno.ENOENT and len(self._problems) < _NAMED:
            self._problems.setdefault(place, error)

    def _give_way(self) -> None:
        if self._stopping():
            raise _StoppedError


def _is_subvolume(fd: int) -> bool:
    return os.fstat(fd).st_ino == _SUBVOLUME_INODE and filesystem_type(fd) == _BTRFS


def _make_writable(fd: int) -> None:
    """Let what is in a subvolume be deleted, if it is a read-only one."""
    with suppress(OSError):
        (flags,) = _SUBVOL_FLAGS.unpack(fcntl.ioctl(fd, _SUBVOL_GETFLAGS, _SUBVOL_FLAGS.pack(0)))
        if flags & _SUBVOL_RDONLY:
            flags = _SUBVOL_FLAGS.pack(flags & ~_SUBVOL_RDONLY)
            fcntl.ioctl(fd, _SUBVOL_SETFLAGS, flags)
