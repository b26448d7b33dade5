"""Preparing a volume where nobody sees it, until one rename publishes it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from volfs.copies import copy_tree
from volfs.errors import VolumeNotFoundError
from volfs.linux.deletion import after, delete_tree, never
from volfs.linux.durable import NO_RESERVE, make_directory, opened
from volfs.linux.syscalls import syncfs
from volfs.local import sidecar
from volfs.local.trash import Trash
from volfs.volume import CopyReport, Owner

_SCRATCH = "scratch"
_OWNER_OPTIONS = ("uid", "gid", "mode")

_TOUCH = 10.0
"""Interval in seconds between signs of life; well below the housekeeper's limit."""
_PATIENCE = 2.0
"""Seconds spent, after an interruption, on deleting what was prepared."""


class Stage:
    """A directory in the trash in which a volume is being prepared.

    ``name`` is its name there, ``fd`` the directory.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self._touched = time.monotonic()

    def keep_alive(self) -> None:
        """Show that this is still worked on. To be called often while that takes long.

        For housekeepers that cannot see the lock: on other hosts, or where the filesystem has no
        locks.
        """
        now = time.monotonic()
        if now - self._touched > _TOUCH:
            self._touched = now
            os.utime(self.fd)


@contextmanager
def staged(trash: Trash, *, unreserved: bool = False) -> Iterator[Stage]:
    """Yield a stage. It is deleted at the end, unless it was published.

    While it is held, no housekeeper of this host takes it for what a crash left. It is ours;
    ``unreserved`` says that for whom it is made has no part in the filesystem's reserve.
    """
    name = trash.new_name()
    make_directory(name, 0o700, dir_fd=trash.fd, owner=NO_RESERVE if unreserved else None)
    stopping = never
    try:
        with opened(name, dir_fd=trash.fd) as fd:
            with suppress(OSError):  # a filesystem without locks
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Stage(name, fd)
    except Exception:
        raise
    except BaseException:
        stopping = after(_PATIENCE)
        raise
    finally:
        trash.discard(name, stopping)


class Copy:
    """Fills a new volume with what is in another one; ``report`` says how.

    ``open_data`` opens the data path of a volume, or raises VolumeNotFoundError.
    """

    def __init__(
        self,
        open_data: Callable[[str], int],
        source: str,
        options: Mapping[str, str],
        on_progress: Callable[[int], None] | None,
        stopping: Callable[[], bool],
        *,
        only_reflinked: bool = False,
    ) -> None:
        self.report: CopyReport | None = None
        self._open_data = open_data
        self._source = source
        self._options = options
        self._on_progress = on_progress
        self._stopping = stopping
        self._only_reflinked = only_reflinked

    def __call__(self, data: int, stage: Stage) -> None:
        def stopping() -> bool:
            stage.keep_alive()
            return self._stopping()

        source = self._open_data(self._source)
        try:
            os.mkdir(_SCRATCH, 0o700, dir_fd=stage.fd)
            with opened(_SCRATCH, dir_fd=stage.fd) as scratch:
                self.report = copy_tree(
                    source,
                    data,
                    scratch,
                    only_reflinked=self._only_reflinked,
                    on_progress=self._on_progress,
                    stopping=stopping,
                )
            self._require_source(source)
        finally:
            os.close(source)
        delete_tree(_SCRATCH, dir_fd=stage.fd, stopping=never)
        if not self._only_reflinked:
            give_as_told(data, self._options)
            syncfs(data)

    def _require_source(self, fd: int) -> None:
        """Refuse what may be the copy of a volume that was being deleted."""
        try:
            now = self._open_data(self._source)
        except VolumeNotFoundError:
            now = -1
        same = now >= 0 and os.path.sameopenfile(now, fd)
        if now >= 0:
            os.close(now)
        if not same:
            raise VolumeNotFoundError(
                f"volume {self._source!r} was removed or renamed while it was copied"
            )


def give_as_told(fd: int, options: Mapping[str, str]) -> None:
    """Set what options say of owner and mode, and leave the rest as it is."""
    if any(option in options for option in _OWNER_OPTIONS):
        now = os.fstat(fd)
        give(fd, sidecar.owner_of(options, Owner(now.st_uid, now.st_gid, now.st_mode)))


def give(fd: int, owner: Owner) -> None:
    """Set owner and mode of a directory, whatever the umask and the directory above it are."""
    now = os.fstat(fd)
    if (now.st_uid, now.st_gid) != (owner.uid, owner.gid):
        try:
            os.fchown(fd, owner.uid, owner.gid)
        except PermissionError:
            raise PermissionError(
                errno.EPERM,
                f"only root can make a volume that belongs to {owner.uid}:{owner.gid}",
            ) from None
    os.fchmod(fd, owner.mode)
