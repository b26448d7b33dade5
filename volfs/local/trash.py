"""Removed volumes, kept until their time is up.

An entry of the trash is a directory ID/ with removed.json in it (name, when, by whom) and the
volume's directory as ID/volume. It appears with the one rename that takes the volume away. Where
there is no room for a directory and a file (no inode or block left, a quota reached), the entry
is the volume's own directory, renamed to ID~NAME: that takes nothing.

Hidden entries are work under way, and what a crash left of it:

- ``.new-*``     something being prepared: a volume not yet published, a sidecar not yet in place
- ``.doomed-*``  being deleted for good; no longer restorable from the moment of this name
- ``.empty-*``   an entry that seems to have been left without a volume, being examined

A step that needs an entry names it from the trash's own directory (``ID/volume``), never from a
descriptor of the entry: so whoever renames an entry first has it to themselves, on any host.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from volfs.errors import VolumeNotFoundError
from volfs.linux.deletion import UndeletedError, delete_tree, never
from volfs.linux.durable import opened, read_small, scanned, sync_directory, write_new
from volfs.linux.syscalls import syncfs
from volfs.local.entry import (
    RECORD,
    RECORD_MAX,
    VOLUME,
    decode,
    directory_of,
    encode,
    is_bare,
    is_id,
    new_bare_id,
    new_id,
    time_of,
)
from volfs.local.scope import ScopeDirectory
from volfs.volume import RemovedVolume

DATA = "_data"
ATTEMPTS = 100
"""How often a step is begun anew because another process took away what it worked on."""

_log = logging.getLogger(__name__)
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_DEAD = "dead"
_NEW, _DOOMED, _EMPTY = ".new-", ".doomed-", ".empty-"
_LEFT_BEHIND = 60.0
"""Seconds after which unfinished work is taken for a crash's, unless it is locked. Too early
would do no harm: whoever is still at it finds its work gone, and begins anew or fails."""
_FREEING = 1.0
"""Seconds to wait at most for deleted files to show as free space."""
_STUCK_PAUSE = 3600.0
"""Seconds after which something that could not be deleted is tried again."""


class Trash:
    """The trash of one scope. All methods are safe against other threads and processes."""

    def __init__(self, directory: ScopeDirectory | None) -> None:
        """``directory`` is where it is, None in a read-only scope that has none."""
        self._directory = directory
        self._stuck: dict[str, float] = {}
        self._told: set[str] = set()

    @property
    def fd(self) -> int:
        """The trash's directory. Raises OSError(EROFS) in a read-only scope without one."""
        if self._directory is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self._directory.ensured()

    def place(self, id: str) -> str:
        """Return the path of an entry, for people to read."""
        return f"{self._directory.path}/{id}" if self._directory else id

    def list(self) -> list[RemovedVolume]:
        """Return what can be restored, newest first."""
        restorable = [id for id in reversed(self._ids()) if self._holds(id, f"/{DATA}")]
        return [entry for id in restorable if (entry := self._entry(id))]

    def find(self, which: str) -> RemovedVolume:
        """Return the entry with the id ``which``, else the newest removal of a volume so named.

        Raises VolumeNotFoundError.
        """
        entries = self.list()
        for entry in entries:
            if entry.id == which:
                return entry
        for entry in entries:
            if entry.name == which:
                return entry
        raise VolumeNotFoundError(f"no removed volume {which!r} is in the trash")

    def take(self, name: str, by: str, *, dir_fd: int) -> str:
        """Move the directory ``name`` of ``dir_fd`` here, durably, and return the new entry's id.

        Works on a full disk too: see the module. Where not even a name has room, older entries
        are deleted for good. Raises FileNotFoundError when there is no such directory (any more).
        """
        for _ in range(ATTEMPTS):
            try:
                return self._take(name, by, dir_fd)
            except FileNotFoundError:
                os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
                # It is there, so it was the entry that somebody took for a crash's leftover.
                continue
            except OSError as error:
                if error.errno not in _FULL:
                    raise
            try:
                return self._take_bare(name, dir_fd)
            except OSError as error:
                # A removal must not fail for want of the space that it is to free.
                if error.errno not in _FULL or not self._purge_oldest(never):
                    raise
        raise OSError(errno.EAGAIN, f"the trash keeps changing; try again: {self.place('')}")

    def _take(self, name: str, by: str, dir_fd: int) -> str:
        now = datetime.now(UTC)
        id = new_id(now)
        os.mkdir(id, 0o700, dir_fd=self.fd)
        try:
            with opened(id, dir_fd=self.fd) as directory:
                write_new(RECORD, encode(name, now, by), dir_fd=directory)
                sync_directory(directory)
                sync_directory(self.fd)
                os.rename(name, f"{id}/{VOLUME}", src_dir_fd=dir_fd, dst_dir_fd=self.fd)
                sync_directory(directory)
                sync_directory(dir_fd)
        finally:
            self.clear(id)
        return id

    def _take_bare(self, name: str, dir_fd: int) -> str:
        id = new_bare_id(datetime.now(UTC), name)
        os.rename(name, id, src_dir_fd=dir_fd, dst_dir_fd=self.fd)
        sync_directory(self.fd)
        sync_directory(dir_fd)
        return id

    def clear(self, id: str) -> None:
        """Remove an entry that holds no volume (any more); one that does is left as it is."""
        claimed = _EMPTY + id
        try:
            if is_bare(id) or self._exists(f"{id}/{VOLUME}"):
                return
            os.rename(id, claimed, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            self._clear_claimed(claimed)
        except OSError as error:
            _log.debug("entry %s of the trash is left for the next round: %s", id, error)

    def _clear_claimed(self, claimed: str) -> None:
        if self._exists(f"{claimed}/{VOLUME}"):
            # The removal was only slow: its volume came in just before the entry was claimed.
            id = claimed.removeprefix(_EMPTY)
            os.rename(claimed, id, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            return
        if self._exists(f"{claimed}/{RECORD}"):
            os.unlink(f"{claimed}/{RECORD}", dir_fd=self.fd)
        os.rmdir(claimed, dir_fd=self.fd)

    def new_name(self) -> str:
        """Return an unused name for something to prepare here before it is moved into place."""
        return f"{_NEW}{secrets.token_hex(8)}"

    def discard(self, name: str, stopping: Callable[[], bool] = never) -> None:
        """Delete something prepared that is not needed, if it is still there.

        What is left when ``stopping()`` turns true is deleted by the next housekeeping.
        """
        doomed = _DOOMED + name.removeprefix(_NEW)
        try:
            if not self._is_directory(name):
                os.unlink(name, dir_fd=self.fd)
                return
            # Renamed first: a volume that is half deleted must not be published.
            os.rename(name, doomed, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.debug("%s in the trash is left for the next round: %s", name, error)
            return
        self._delete(doomed, stopping)

    def tidy(self, stopping: Callable[[], bool] = never) -> None:
        """Delete what unfinished work left, as one part of ``housekeep``."""
        self._clear_leftovers(stopping)
        self._finish(stopping)

    def purge(
        self,
        ids: Iterable[str] | None = None,
        *,
        older_than: float | None = None,
        stopping: Callable[[], bool] = never,
    ) -> builtins.list[RemovedVolume]:
        """Delete entries for good and return them, oldest first.

        ``ids`` are those of the entries, None means all; ``older_than`` spares what was removed
        less than that many seconds ago. An entry returned cannot be restored, even where its
        deletion was cut short (by ``stopping``, a crash, or a file that cannot be deleted): the
        next housekeeping goes on with it. What could not be deleted is in its ``left``; that is
        the entry itself where nothing can be done with it, and it stays as it is. Raises
        VolumeNotFoundError, with nothing deleted, for an unknown id.
        """
        return self._purge(ids, older_than, stopping, log=False)

    def _purge(
        self,
        ids: Iterable[str] | None,
        older_than: float | None,
        stopping: Callable[[], bool],
        *,
        log: bool,
    ) -> builtins.list[RemovedVolume]:
        """As ``purge``; ``log`` what cannot be deleted, when nobody looks at what is returned."""
        chosen = self._ids()
        if ids is not None:
            wanted = set(ids)
            if unknown := wanted.difference(chosen):
                raise VolumeNotFoundError(f"not in the trash: {', '.join(sorted(unknown))}")
            chosen = [id for id in chosen if id in wanted]
        if older_than is not None:
            now = datetime.now(UTC)
            chosen = [id for id in chosen if (now - time_of(id)).total_seconds() >= older_than]
        purged = []
        for id in chosen:
            if stopping():
                break
            # An entry without a volume belongs to a removal that is under way, or to a crash.
            entry = self._entry(id) if self._holds(id, unknown=True) else None
            if entry is None:
                continue
            try:
                if self._doom(id):
                    left = self._delete(_DOOMED + id, stopping, log=log)
                    purged.append(replace(entry, left=left))
            except OSError as error:
                if log:
                    self._tell(id, "%s cannot be deleted, and stays: %s", self.place(id), error)
                purged.append(replace(entry, left=(f"{self.place(id)}: {error.strerror}",)))
        return purged

    def housekeep(
        self, keep_removed: float, keep_free: float, stopping: Callable[[], bool]
    ) -> None:
        """Delete what is due, and what unfinished work left.

        Due is what was removed ``keep_removed`` seconds ago, and the oldest entries while less
        than the fraction ``keep_free`` of the filesystem's blocks or inodes is free.
        """
        if self._directory is None or os.fstatvfs(self.fd).f_flag & os.ST_RDONLY:
            return
        self.tidy(stopping)
        self._purge(None, keep_removed, stopping, log=True)
        while self._nearly_full(keep_free) and not stopping():
            if not self._purge_oldest(stopping):
                break

    def _purge_oldest(self, stopping: Callable[[], bool]) -> bool:
        """Delete the oldest entry before its time; return whether there was one."""
        for id in self._ids():
            if not self._holds(id):
                continue
            _log.info("the filesystem is short of space: %s goes early", self.place(id))
            before = self._free()
            with suppress(VolumeNotFoundError):  # restored or purged meanwhile
                self._purge([id], None, stopping, log=True)
            if not self._holds(id):
                self._wait_for_more_than(before, stopping)
                return True
        return False

    def _free(self) -> int:
        """Return a number that grows when anything is freed."""
        free = os.fstatvfs(self.fd)
        return free.f_bavail + free.f_favail

    def _wait_for_more_than(self, before: int, stopping: Callable[[], bool]) -> None:
        """Wait a moment until what was deleted shows as free.

        XFS frees in the background and btrfs with its next commit. Without waiting, all of the
        trash would go where its oldest entry was enough.
        """
        syncfs(self.fd)
        end = time.monotonic() + _FREEING
        while self._free() <= before and time.monotonic() < end and not stopping():
            time.sleep(0.02)

    def _nearly_full(self, keep_free: float) -> bool:
        free = os.fstatvfs(self.fd)
        # Some filesystems have no fixed number of inodes and say 0.
        return free.f_bavail < keep_free * free.f_blocks or free.f_favail < keep_free * free.f_files

    def _clear_leftovers(self, stopping: Callable[[], bool]) -> None:
        now = time.time()
        with scanned(self.fd) as found:
            old = [entry.name for entry in found if _is_older(entry, now - _LEFT_BEHIND)]
        for name in old:
            try:
                if name.startswith(_NEW):
                    if not self._is_prepared(name):
                        self.discard(name, stopping)
                elif name.startswith(_EMPTY):
                    self._clear_claimed(name)
                elif is_id(name):
                    self.clear(name)
            except OSError as error:
                _log.debug("%s in the trash is left for the next round: %s", name, error)

    def _is_prepared(self, name: str) -> bool:
        """Return whether somebody on this host is preparing a directory."""
        try:
            with opened(name, dir_fd=self.fd) as fd:
                return _is_taken(fd)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _finish(self, stopping: Callable[[], bool]) -> None:
        """Go on with deletions that were cut short."""
        with scanned(self.fd) as entries:
            doomed = [entry.name for entry in entries if entry.name.startswith(_DOOMED)]
        self._stuck = {name: since for name, since in self._stuck.items() if name in doomed}
        self._told.intersection_update(self._ids())
        for name in sorted(doomed):
            if time.monotonic() - self._stuck.get(name, -_STUCK_PAUSE) >= _STUCK_PAUSE:
                self._delete(name, stopping)

    def _doom(self, id: str) -> bool:
        """Make an entry not restorable; return whether it was this call that did."""
        doomed = _DOOMED + id
        try:
            os.rename(id, doomed, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            # A restoration may be in the entry already: who renames the volume first has it.
            if not is_bare(id):
                was, dead = f"{doomed}/{VOLUME}", f"{doomed}/{_DEAD}"
                os.rename(was, dead, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileNotFoundError:
            self._delete(doomed, never)  # what a restoration left of the entry
            return False
        # On disk before the first file goes: a half-deleted volume must never be restorable.
        sync_directory(self.fd)
        return True

    def _delete(
        self, doomed: str, stopping: Callable[[], bool], *, log: bool = True
    ) -> tuple[str, ...]:
        """Delete what is doomed; return what of it could not be deleted, and why."""
        try:
            with opened(doomed, dir_fd=self.fd) as fd:
                if not _is_taken(fd):
                    delete_tree(doomed, dir_fd=self.fd, stopping=stopping)
            return ()
        except FileNotFoundError:
            return ()
        except UndeletedError as error:
            left = tuple(f"{self.place(doomed)}/{place}: {why}" for place, why in error.left)
        except OSError as error:
            left = (f"{self.place(doomed)}: {error.strerror}",)
        if log and doomed not in self._stuck:
            _log.warning(
                "%s cannot be deleted wholly: %s; what is left is tried again from time to time",
                self.place(doomed),
                "; ".join(left),
            )
        self._stuck[doomed] = time.monotonic()
        return left

    def _entry(self, id: str) -> RemovedVolume | None:
        data = None
        try:
            if not is_bare(id):
                with opened(id, dir_fd=self.fd) as fd:
                    data = read_small(RECORD, RECORD_MAX, dir_fd=fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._tell(id, "%s cannot be read: %s", self.place(id), error)
        return decode(id, data or b"")

    def _ids(self) -> builtins.list[str]:
        """Return the ids of all entries, those without a volume too, oldest first."""
        if self._directory is None:
            return []
        with scanned(self.fd) as entries:
            return sorted(found.name for found in entries if is_id(found.name))

    def _holds(self, id: str, below: str = "", *, unknown: bool = False) -> bool:
        """Return whether there is a volume in an entry, or something ``below`` its directory.

        ``unknown`` is the answer where nothing can be known.
        """
        try:
            return self._exists(directory_of(id) + below)
        except OSError as error:
            # One that is broken, or not ours, must not keep the others from their turn.
            self._tell(id, "%s cannot be looked at: %s", self.place(id), error)
            return unknown

    def _tell(self, id: str, message: str, *arguments: object) -> None:
        """Log a warning, once about each entry."""
        if id not in self._told:
            self._told.add(id)
            _log.warning(message, *arguments)

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _is_directory(self, name: str) -> bool:
        return stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)


def _is_older(entry: os.DirEntry[str], moment: float) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_mtime < moment
    except OSError:  # gone, or broken
        return False


def _is_taken(fd: int) -> bool:
    """Return whether somebody on this host is at work in a directory.

    Nothing depends on it, so a filesystem without locks is fine: two who delete only do double
    work, and who prepares something shows it by its age too.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    return False
