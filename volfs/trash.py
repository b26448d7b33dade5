"""Removed volumes, kept until their time is up.

An entry of the trash is a directory ID/ with removed.json in it (name, when, by whom) and the
volume's directory as ID/volume. It appears with the one rename that takes the volume away.

Hidden entries are work under way, and what a crash left of it:

- ``.new-*``     something being prepared: a volume not yet published, a sidecar not yet in place
- ``.doomed-*``  being deleted for good; no longer restorable from the moment of this name
- ``.empty-*``   an entry that seems to have been left without a volume, being examined

A step that needs an entry names it from the trash's own directory (``ID/volume``), never from a
descriptor of the entry: so whoever renames an entry first has it to himself, on any host.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from volfs.deletion import delete_tree
from volfs.durable import opened, read_small, scanned, sync_directory, write_new
from volfs.errors import VolumeNotFoundError
from volfs.sidecar import parse_time

DATA = "_data"
VOLUME = "volume"
ATTEMPTS = 100
"""How often a step is begun anew because another process took away what it worked on."""

_log = logging.getLogger(__name__)
_REMOVED = "removed.json"
_NEW, _DOOMED, _EMPTY = ".new-", ".doomed-", ".empty-"
_ID_TIME = "%Y%m%dT%H%M%S.%f"
_ID = re.compile(r"(\d{8}T\d{6}\.\d{6})Z-[0-9a-f]{16}")
_LEFT_BEHIND = 60.0
"""Seconds after which unfinished work is taken for a crash's. Too early would do no harm:
whoever is still at it finds its work gone, and begins anew."""
_STUCK_PAUSE = 3600.0
"""Seconds after which something that could not be deleted is tried again."""


@dataclass(frozen=True, slots=True)
class RemovedVolume:
    """A volume in the trash. ``removed_at`` is timezone-aware; ``by`` says for whom."""

    id: str
    name: str
    removed_at: datetime
    by: str


def never() -> bool:
    """The ``stopping`` of those who are in no hurry."""
    return False


class Trash:
    """The trash of one scope. All methods are safe against other threads and processes."""

    def __init__(self, fd: int | None, path: str) -> None:
        """``fd`` is a descriptor of the directory ``path``, None where there cannot be one."""
        self._maybe_fd = fd
        self._path = path
        self._stuck: dict[str, float] = {}

    @property
    def fd(self) -> int:
        """The trash's directory. Raises OSError(EROFS) in a read-only scope without one."""
        if self._maybe_fd is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), self._path)
        return self._maybe_fd

    def close(self) -> None:
        """Give back the descriptor. No other call may be under way, none may follow."""
        if self._maybe_fd is not None:
            os.close(self._maybe_fd)
            self._maybe_fd = None

    def place(self, id: str) -> str:
        """Return the path of an entry, for people to read."""
        return f"{self._path}/{id}"

    def list(self) -> list[RemovedVolume]:
        """Return what can be restored, newest first."""
        if self._maybe_fd is None:
            return []
        with scanned(self.fd) as entries:
            ids = [entry.name for entry in entries if _ID.fullmatch(entry.name)]
        found = (self._entry(id) for id in ids)
        kept = [entry for entry in found if entry is not None and self._has_data(entry.id)]
        return sorted(kept, key=lambda entry: (entry.removed_at, entry.id), reverse=True)

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

        Raises FileNotFoundError when there is no such directory (any more).
        """
        for _ in range(ATTEMPTS):
            now = datetime.now(UTC)
            id = f"{now.strftime(_ID_TIME)}Z-{secrets.token_hex(8)}"
            record = {"name": name, "removed_at": now.isoformat(), "by": by}
            os.mkdir(id, 0o700, dir_fd=self.fd)
            try:
                with opened(id, dir_fd=self.fd) as entry:
                    write_new(_REMOVED, json.dumps(record).encode() + b"\n", dir_fd=entry)
                    sync_directory(entry)
                    sync_directory(self.fd)
                    os.rename(name, f"{id}/{VOLUME}", src_dir_fd=dir_fd, dst_dir_fd=self.fd)
                    sync_directory(entry)
                    sync_directory(dir_fd)
                return id
            except FileNotFoundError:
                os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
                # It is there, so it was the entry that somebody took for a crash's leftover.
            finally:
                self.clear(id)
        raise OSError(errno.EAGAIN, f"the trash does not keep still: {self._path}")

    def clear(self, id: str) -> None:
        """Remove an entry that holds no volume (any more); one that does is left as it is."""
        claimed = _EMPTY + id
        try:
            if self._exists(f"{id}/{VOLUME}"):
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
        if self._exists(f"{claimed}/{_REMOVED}"):
            os.unlink(f"{claimed}/{_REMOVED}", dir_fd=self.fd)
        os.rmdir(claimed, dir_fd=self.fd)

    def new_name(self) -> str:
        """Return an unused name for something to prepare here before it is moved into place."""
        return f"{_NEW}{secrets.token_hex(8)}"

    def discard(self, name: str) -> None:
        """Delete something prepared that is not needed, if it is still there."""
        doomed = _DOOMED + name.removeprefix(_NEW)
        try:
            if not self._exists(name):
                return
            # Renamed first: a volume that is half deleted must not be published.
            os.rename(name, doomed, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileNotFoundError:
            return
        self._delete(doomed, never)

    def purge(
        self,
        ids: Iterable[str] | None = None,
        *,
        older_than: float | None = None,
        stopping: Callable[[], bool] = never,
    ) -> builtins.list[RemovedVolume]:
        """Delete entries for good and return them, oldest first.

        ``ids`` are those of the entries, None means all; ``older_than`` spares what was removed
        less than so many seconds ago. An entry returned cannot be restored, even where its
        deletion was cut short (by ``stopping``, a crash, or a file that cannot be deleted): the
        next housekeeping goes on with it. Raises VolumeNotFoundError, with nothing deleted, for
        an unknown id.
        """
        entries = self.list()[::-1]
        if ids is not None:
            wanted = set(ids)
            if unknown := wanted - {entry.id for entry in entries}:
                raise VolumeNotFoundError(f"not in the trash: {', '.join(sorted(unknown))}")
            entries = [entry for entry in entries if entry.id in wanted]
        if older_than is not None:
            now = datetime.now(UTC)
            entries = [
                entry for entry in entries if (now - entry.removed_at).total_seconds() >= older_than
            ]
        purged = []
        for entry in entries:
            if stopping():
                break
            if self._doom(entry.id):
                purged.append(entry)
                self._delete(_DOOMED + entry.id, stopping)
        return purged

    def housekeep(
        self, keep_removed: float, keep_free: float, stopping: Callable[[], bool]
    ) -> None:
        """Delete what is due, and what unfinished work left.

        Due is what was removed ``keep_removed`` seconds ago, and the oldest entries while less
        than the fraction ``keep_free`` of the filesystem's blocks or inodes is free.
        """
        if self._maybe_fd is None:
            return
        self._clear_leftovers()
        self._finish(stopping)
        self.purge(older_than=keep_removed, stopping=stopping)
        while self._nearly_full(keep_free) and not stopping():
            entries = self.list()
            if not entries:
                break
            _log.info("the filesystem is nearly full: %r goes early", entries[-1].name)
            self.purge([entries[-1].id], stopping=stopping)

    def _nearly_full(self, keep_free: float) -> bool:
        free = os.fstatvfs(self.fd)
        # Some filesystems have no fixed number of inodes and say 0.
        return free.f_bavail < keep_free * free.f_blocks or free.f_favail < keep_free * free.f_files

    def _clear_leftovers(self) -> None:
        now = time.time()
        with scanned(self.fd) as found:
            entries = list(found)
            old = [entry.name for entry in entries if _is_older(entry, now - _LEFT_BEHIND)]
        for name in old:
            try:
                if name.startswith(_NEW):
                    self._clear_prepared(name)
                elif name.startswith(_EMPTY):
                    self._clear_claimed(name)
                elif _ID.fullmatch(name):
                    self.clear(name)
            except OSError as error:
                _log.debug("%s in the trash is left for the next round: %s", name, error)

    def _clear_prepared(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.fd)
        except IsADirectoryError:
            self.discard(name)

    def _finish(self, stopping: Callable[[], bool]) -> None:
        """Go on with deletions that were cut short."""
        with scanned(self.fd) as entries:
            doomed = [entry.name for entry in entries if entry.name.startswith(_DOOMED)]
        self._stuck = {name: since for name, since in self._stuck.items() if name in doomed}
        for name in sorted(doomed):
            if time.monotonic() - self._stuck.get(name, -_STUCK_PAUSE) >= _STUCK_PAUSE:
                self._delete(name, stopping)

    def _doom(self, id: str) -> bool:
        """Make an entry not restorable; return whether it was this call that did."""
        try:
            os.rename(id, _DOOMED + id, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except FileNotFoundError:
            return False
        # On disk before the first file goes: a half-deleted volume must never be restorable.
        sync_directory(self.fd)
        return True

    def _delete(self, doomed: str, stopping: Callable[[], bool]) -> None:
        try:
            with opened(doomed, dir_fd=self.fd) as fd:
                if _is_taken(fd):
                    return
                delete_tree(doomed, dir_fd=self.fd, stopping=stopping)
        except FileNotFoundError:
            return
        except OSError as error:
            if doomed not in self._stuck:
                _log.warning(
                    "%s/%s cannot be deleted wholly: %s; what is left is tried again from time"
                    " to time",
                    self._path,
                    doomed,
                    error,
                )
            self._stuck[doomed] = time.monotonic()

    def _entry(self, id: str) -> RemovedVolume | None:
        try:
            with opened(id, dir_fd=self.fd) as fd:
                data = read_small(_REMOVED, 1 << 16, dir_fd=fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            record = json.loads(data or b"")
            name, by = record["name"], record["by"]
            removed_at = parse_time(record["removed_at"])
            if not (isinstance(name, str) and isinstance(by, str)) or removed_at is None:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            # Whatever happened to the record, the data can be had back by its id.
            time_of_id = datetime.strptime(id.partition("Z")[0], _ID_TIME).replace(tzinfo=UTC)
            return RemovedVolume(id, id, time_of_id, "")
        return RemovedVolume(id, name, removed_at, by)

    def _has_data(self, id: str) -> bool:
        return self._exists(f"{id}/{VOLUME}/{DATA}")

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def _is_older(entry: os.DirEntry[str], moment: float) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_mtime < moment
    except FileNotFoundError:
        return False


def _is_taken(fd: int) -> bool:
    """Return whether another process of this host is deleting here already.

    Only to save double work: nothing depends on it, so a filesystem without locks is fine.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    return False
