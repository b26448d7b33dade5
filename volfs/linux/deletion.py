"""Deleting a directory tree, however deep, wide or hostile it is.

Every directory found is first moved up, directly under the tree's top, then emptied there and
removed. So the depth of the tree costs neither descriptors nor recursion, a deletion that was
cut short is taken up by simply starting again, and two that work on one tree at a time only
share the work.

Moving a directory before entering it also keeps the deletion out of what somebody mounted
inside the tree: rename(2) answers EBUSY for a mount point, be it a bind mount of the same
filesystem.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable

from volfs.linux.durable import DIRECTORY, opened, scanned

_NOT_EMPTY = frozenset((errno.ENOTEMPTY, errno.EEXIST))  # rmdir(2) may answer either
_AHEAD = 1024
"""How many directories are remembered that were moved up; others are met again by listing."""
_TRIES = 16
"""How often a directory is emptied before it is left alone: somebody may be filling it."""


def never() -> bool:
    """The ``stopping`` of those who are in no hurry."""
    return False


def after(seconds: float) -> Callable[[], bool]:
    """Return a ``stopping`` for those who have only so many seconds."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def delete_tree(name: str, *, dir_fd: int, stopping: Callable[[], bool]) -> bool:
    """Delete the directory ``name`` in ``dir_fd`` with all below it; return whether it is gone.

    False means that there is more to do: ``stopping()`` turned true, or somebody else is at work
    in the tree. When something cannot be deleted (immutable, a mount point), the first OSError
    met is raised after all else is deleted. Symbolic links are deleted, never followed.
    """
    try:
        with opened(name, dir_fd=dir_fd) as top:
            deletion = _Deletion(top, stopping)
            deletion.run()
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return True
    except _StoppedError:
        return False
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise
        if deletion.problem is not None:
            raise deletion.problem from None
        return False
    return True


class _StoppedError(Exception):
    """stopping() turned true."""


class _Deletion:
    """One run over one tree; ``problem`` is the first thing that could not be deleted."""

    def __init__(self, top: int, stopping: Callable[[], bool]) -> None:
        self.problem: OSError | None = None
        self._top = top
        self._device = os.fstat(top).st_dev
        self._stopping = stopping
        self._tries: dict[str, int] = {}  # only of what did not go at the first try
        self._ahead: list[str] = []
        self._prefix = f"{secrets.token_hex(4)}-"
        self._moved = 0

    def run(self) -> None:
        while self._pass():
            pass

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
                elif self._unlink(entry.name, self._top):
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
            moved = self._move_up(name, self._top)
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
                self._note(error)
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
            self._note(error)
            return False
        try:
            if os.fstat(fd).st_dev != self._device:
                self._note(OSError(errno.EBUSY, "on another filesystem", name))
                return False
            with os.scandir(fd) as entries:
                for entry in entries:
                    self._give_way()
                    if entry.is_dir(follow_symlinks=False):
                        moved = self._move_up(entry.name, fd)
                        progress |= moved is not None
                        if moved is not None and len(self._ahead) < _AHEAD:
                            self._ahead.append(moved)
                    else:
                        progress |= self._unlink(entry.name, fd)
        finally:
            os.close(fd)
        return progress

    def _open(self, name: str) -> int:
        """Open a directory under the top such that its entries can be listed and removed."""
        try:
            fd = os.open(name, DIRECTORY, dir_fd=self._top)
        except PermissionError:
            self._make_accessible(name, self._top)
            return os.open(name, DIRECTORY, dir_fd=self._top)
        # Root passes all permission checks. An owner passes only those that the mode grants.
        if os.geteuid() != 0 and os.fstat(fd).st_mode & 0o700 != 0o700:
            try:
                os.fchmod(fd, 0o700)
            except OSError:
                os.close(fd)
                raise
        return fd

    def _make_accessible(self, name: str, dir_fd: int) -> None:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with opened(name, dir_fd=dir_fd, flags=flags) as fd:
            # fchmod(2) refuses an O_PATH descriptor, and any other needs the permission.
            os.chmod(f"/proc/self/fd/{fd}", 0o700)

    def _move_up(self, name: str, dir_fd: int) -> str | None:
        """Move a directory under the top; return its new name, None if it cannot be moved."""
        moved = f"{self._prefix}{self._moved}"
        self._moved += 1
        try:
            try:
                os.rename(name, moved, src_dir_fd=dir_fd, dst_dir_fd=self._top)
            except PermissionError:
                # A moved directory's ".." changes, so its owner needs to be able to write it.
                self._make_accessible(name, dir_fd)
                os.rename(name, moved, src_dir_fd=dir_fd, dst_dir_fd=self._top)
        except OSError as error:
            self._note(error)
            return None
        return moved

    def _unlink(self, name: str, dir_fd: int) -> bool:
        try:
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            return True
        except OSError as error:
            self._note(error)
            return False
        return True

    def _note(self, error: OSError) -> None:
        if self.problem is None and error.errno != errno.ENOENT:
            self.problem = error

    def _give_way(self) -> None:
        if self._stopping():
            raise _StoppedError
