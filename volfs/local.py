"""LocalDriver: volumes as directories under a scope.

``SCOPE/volumes/NAME/_data`` is the data of volume NAME and ``SCOPE/volumes/NAME/volume.json``
what else is known of it: the layout of Docker's local driver. A volume exists when its
``_data`` does; other entries of ``SCOPE/volumes`` are passed over.

The disk is the only truth, so several processes and hosts can work on one scope. What is not
yet a volume is prepared in the trash's directory, where a crash can leave it to housekeeping.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from volfs import sidecar
from volfs.durable import opened, sync_directory, write_new
from volfs.errors import OptionConflictError, VolumeExistsError, VolumeNotFoundError
from volfs.naming import Names, exists, not_found
from volfs.scope import Scope
from volfs.sidecar import Record
from volfs.trash import ATTEMPTS, DATA, VOLUME, Trash
from volfs.volume import Owner, Volume, check_name


class LocalVolume:
    """A volume of a LocalDriver, as it was when it was looked up.

    Its sidecar is read when first asked for; for a volume that is gone by then it is empty.
    """

    __slots__ = ("_driver", "_record", "name", "path")

    driver_name = "local"

    def __init__(
        self, driver: LocalDriver, name: str, path: str, record: Record | None = None
    ) -> None:
        self.name = name
        self.path = path
        self._driver = driver
        self._record = record

    @property
    def created_at(self) -> datetime | None:
        return self._known().created_at

    @property
    def labels(self) -> Mapping[str, str]:
        return self._known().labels

    @property
    def options(self) -> Mapping[str, str]:
        return self._known().options

    def mount(self) -> str:
        return self.path

    def unmount(self) -> None:
        pass

    def _known(self) -> Record:
        if self._record is None:
            self._record = self._driver.read_record(self.name) or Record()
        return self._record

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LocalVolume):
            return NotImplemented
        return (self.name, self.path) == (other.name, other.path)

    def __hash__(self) -> int:
        return hash((self.name, self.path))

    def __repr__(self) -> str:
        return f"LocalVolume({self.name!r}, {self.path!r})"


class LocalDriver:
    """Volumes as directories under ``SCOPE/volumes``: see the module.

    ``scope`` is the real absolute path, ``trash`` what was removed. Failures of the filesystem
    itself (ENOSPC, EROFS, EACCES, EIO) are raised as the OSError they are.
    """

    name = "local"

    def __init__(
        self,
        scope: str | os.PathLike[str],
        *,
        keep_removed: float = 86400.0,
        keep_free: float = 0.05,
    ) -> None:
        """Open a scope, and make it (mode 0700) if it is missing.

        Removed volumes stay restorable for ``keep_removed`` seconds; less long, oldest first,
        while less than the fraction ``keep_free`` of the filesystem is free.

        On a read-only filesystem an existing scope can be opened and read: one wants to see
        what is on a damaged or archived disk. Raises ScopeError, saying what to do.
        """
        self.scope = os.path.realpath(scope)
        self._keep_removed = keep_removed
        self._keep_free = keep_free
        self._opened = Scope(self.scope)
        self.trash = Trash(self._opened.trash)
        self._names = Names(self._opened.volumes, self.trash)

    def close(self) -> None:
        """Give back the descriptors. No other call may be under way, none may follow."""
        self._opened.close()

    def get(self, name: str) -> LocalVolume:
        """Return the volume ``name``. Raises VolumeNotFoundError, also for impossible names."""
        return LocalVolume(self, name, self._names.require(name))

    def names(self) -> list[str]:
        """Return the names of all volumes, sorted."""
        return self._names.all()

    def list(self) -> list[LocalVolume]:
        """Return all volumes, sorted by name."""
        return [LocalVolume(self, name, path) for name, path in self._names.data_paths()]

    def read_record(self, name: str) -> Record | None:
        """Return what the sidecar of the volume ``name`` says, None when there is no volume."""
        try:
            with self._names.opened(name) as fd:
                return sidecar.read(fd, name)
        except FileNotFoundError:
            return None

    def create(
        self,
        name: str,
        options: Mapping[str, str] | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        owner: Owner | None = None,
        exclusive: bool = False,
    ) -> LocalVolume:
        """Make the volume ``name``, durably, and return it: see Driver.create.

        Options are ``uid`` and ``gid`` (decimal) and ``mode`` (octal) of the data path; without
        them it belongs to ``owner``, or to whoever runs this, with mode 755.
        """
        check_name(name)
        options = sidecar.check_options(options or {})
        record = Record(datetime.now(UTC), sidecar.check_labels(labels or {}), options)
        whose = sidecar.owner_of(options, owner or Owner(os.geteuid(), os.getegid()))
        for _ in range(ATTEMPTS):
            existing = self._existing(name, options, exclusive)
            if existing is not None:
                return existing
            try:
                self._make(name, record, whose)
            except VolumeExistsError:
                if self._names.is_taken(name) and self._names.data_path(name) is None:
                    raise  # something that is no volume has the name
            except FileNotFoundError:
                pass  # a housekeeper took the unpublished volume for a crash's leftover
            else:
                return LocalVolume(self, name, self._names.own_path(name), record)
        raise _restless(name)

    def _existing(
        self, name: str, options: Mapping[str, str], exclusive: bool
    ) -> LocalVolume | None:
        """Return the volume ``name`` if it exists and is what a creation asks for."""
        path = self._names.data_path(name)
        if path is None:
            return None
        if exclusive:
            raise exists(name)
        record = self.read_record(name)
        if record is None:
            return None
        if options and options != record.options:
            made_with = ", ".join(f"{key}={value}" for key, value in record.options.items())
            raise OptionConflictError(
                f"volume {name!r} exists and was made with {made_with or 'no options'}; "
                "remove it first, or leave the options out"
            )
        # Whoever made it might not have come to this yet, and our caller relies on it.
        self._names.sync()
        return LocalVolume(self, name, path, record)

    def _make(self, name: str, record: Record, owner: Owner) -> None:
        trash = self.trash
        staged = trash.new_name()
        os.mkdir(staged, 0o700, dir_fd=trash.fd)
        try:
            with opened(staged, dir_fd=trash.fd) as fd:
                write_new(sidecar.FILE, sidecar.encode(record), dir_fd=fd)
                os.mkdir(DATA, 0o700, dir_fd=fd)
                with opened(DATA, dir_fd=fd) as data:
                    _give(data, owner)
                    sync_directory(data)
                sync_directory(fd)
            self._names.publish(staged, name, dir_fd=trash.fd)
        except BaseException:
            trash.discard(staged)
            raise

    def rename(self, volume: Volume, new_name: str) -> LocalVolume:
        """Give the volume another name: see Driver.rename."""
        check_name(new_name)
        path = self._names.require(volume.name)
        if new_name != volume.name:
            try:
                self._names.publish(volume.name, new_name)
            except FileNotFoundError:
                raise not_found(volume.name) from None
            if path == self._names.own_path(volume.name):
                path = self._names.own_path(new_name)
        return LocalVolume(self, new_name, path)

    def exchange(self, first: Volume, second: Volume) -> None:
        """Swap the names of two volumes in one step: see Driver.exchange."""
        self._names.exchange(first.name, second.name)

    def set_labels(self, volume: Volume, labels: Mapping[str, str]) -> LocalVolume:
        """Replace the volume's labels, durably: see Driver.set_labels."""
        labels = sidecar.check_labels(labels)
        name = volume.name
        for _ in range(ATTEMPTS):
            path = self._names.require(name)
            staged = self.trash.new_name()
            try:
                with self._names.opened(name) as fd:
                    known = sidecar.read(fd, name)
                    record = Record(known.created_at, labels, known.options)
                    write_new(staged, sidecar.encode(record), dir_fd=self.trash.fd)
                    os.rename(staged, sidecar.FILE, src_dir_fd=self.trash.fd, dst_dir_fd=fd)
                    sync_directory(fd)
            except FileNotFoundError:
                continue  # the volume is gone, or a housekeeper took the file for a leftover
            finally:
                self.trash.discard(staged)
            return LocalVolume(self, name, path, record)
        raise _restless(name)

    def remove(self, volume: Volume, *, by: str = "") -> None:
        """Move the volume to the trash, durably: see Driver.remove.

        Raises OutsideScopeError when its data path really lies elsewhere.
        """
        self._names.take_away(volume.name, by)

    def restore(self, which: str, new_name: str | None = None) -> LocalVolume:
        """Bring a removed volume back, durably, under its old name or ``new_name``.

        ``which`` is an id of the trash, or a volume name meaning its newest removal.

        Raises VolumeNotFoundError when the trash has no such, VolumeExistsError when the name
        is taken, InvalidNameError.
        """
        entry = self.trash.find(which)
        name = check_name(entry.name if new_name is None else new_name)
        try:
            self._names.publish(f"{entry.id}/{VOLUME}", name, dir_fd=self.trash.fd)
        except FileNotFoundError:
            raise VolumeNotFoundError(
                f"removed volume {which!r} was restored or deleted for good meanwhile"
            ) from None
        self.trash.clear(entry.id)
        return self.get(name)

    def housekeep(self, stopping: Callable[[], bool]) -> None:
        """Empty the trash of what is due, and clear up what a crash left."""
        self.trash.housekeep(self._keep_removed, self._keep_free, stopping)


def _give(fd: int, owner: Owner) -> None:
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


def _restless(name: str) -> OSError:
    return OSError(errno.EAGAIN, f"volume {name!r} comes and goes too fast; try again")
