"""LocalDriver: volumes as directories under a scope.

``SCOPE/volumes/NAME/_data`` is the data of volume NAME and ``SCOPE/volumes/NAME/volume.json``
what else is known of it: the layout of Docker's local driver. A volume exists when its
``_data`` does; other entries of ``SCOPE/volumes`` are passed over.

The disk is the only truth, so several processes and hosts can work on one scope. A volume
comes and goes by rename(2) of its whole directory: it is prepared in the trash's directory,
complete and synced, before it is published under its name, so there is no half-made volume for
anybody to see or to clean up. The plain rename is also what decides between two that want one
name: rename(2) replaces an empty directory, which is nobody's volume, but answers ENOTEMPTY for
one with ``_data`` in it, and unlike RENAME_NOREPLACE every filesystem can do it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from volfs import sidecar
from volfs.durable import opened, scanned, sync_directory, write_new
from volfs.errors import (
    InvalidNameError,
    NameTooLongError,
    OptionConflictError,
    OutsideScopeError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNotFoundError,
)
from volfs.scope import Scope
from volfs.sidecar import Record
from volfs.syscalls import RENAME_EXCHANGE, renameat2
from volfs.trash import ATTEMPTS, DATA, VOLUME, Trash
from volfs.volume import Owner, Volume, check_name

_log = logging.getLogger(__name__)
_NO_VOLUME = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG))


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
            self._record = self._driver.read_record(self.name)
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
        self._root = f"{self.scope}/volumes"
        self._opened = Scope(self.scope)
        self._volumes = self._opened.volumes.fd
        self.trash = Trash(self._opened.trash)

    def close(self) -> None:
        """Give back the descriptors. No other call may be under way, none may follow."""
        self._opened.close()
        self._volumes = -1

    # Looking

    def get(self, name: str) -> LocalVolume:
        """Return the volume ``name``. Raises VolumeNotFoundError, also for impossible names."""
        try:
            volume = self._find(check_name(name))
        except InvalidNameError:
            volume = None
        if volume is None:
            raise _not_found(name)
        return volume

    def names(self) -> list[str]:
        """Return the names of all volumes, sorted."""
        with scanned(self._volumes) as entries:
            # d_type tells what is no directory without a system call for each entry.
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return sorted(
            name for name in names if _is_name(name) and _is_data(self._mode(f"{name}/{DATA}"))
        )

    def list(self) -> list[LocalVolume]:
        """Return all volumes, sorted by name."""
        volumes = (self._find(name) for name in self.names())
        return [volume for volume in volumes if volume is not None]

    def read_record(self, name: str) -> Record:
        """Return what the sidecar of the volume ``name`` says, empty where there is none."""
        try:
            with opened(name, dir_fd=self._volumes) as fd:
                return sidecar.read(fd, name)
        except (FileNotFoundError, NotADirectoryError):
            return Record()

    def _find(self, name: str) -> LocalVolume | None:
        """Return the volume with a valid name, if it exists."""
        mode = self._data_mode(name)
        if mode == 0:
            return None
        path = f"{self._root}/{name}/{DATA}"
        return LocalVolume(self, name, os.path.realpath(path) if stat.S_ISLNK(mode) else path)

    def _data_mode(self, name: str) -> int:
        """Return st_mode of the data path of a volume, 0 when there is no such volume.

        An administrator can have made it a link to a directory elsewhere. The volume exists
        then also while that place does not, as when its disk is not mounted.
        """
        mode = self._mode(f"{name}/{DATA}") if stat.S_ISDIR(self._mode(name)) else 0
        return mode if _is_data(mode) else 0

    def _mode(self, path: str) -> int:
        """Return st_mode of something below the volumes directory, 0 when it is not there."""
        try:
            return os.stat(path, dir_fd=self._volumes, follow_symlinks=False).st_mode
        except OSError as error:
            if error.errno in _NO_VOLUME:
                return 0
            raise

    def _mount_point(self, *names: str) -> VolumeInUseError:
        places = " or ".join(f"{self._root}/{name}" for name in names)
        return VolumeInUseError(f"a filesystem is mounted at {places}; unmount it first")

    # Coming

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
            existing = self._find(name)
            if existing is not None:
                return self._existing(existing, options, exclusive)
            try:
                self._make(name, record, whose)
            except VolumeExistsError:
                if self._mode(name) and self._find(name) is None:
                    raise  # something that is no volume has the name
            except FileNotFoundError:
                pass  # a housekeeper took the unpublished volume for a crash's leftover
            else:
                return LocalVolume(self, name, f"{self._root}/{name}/{DATA}", record)
        raise OSError(errno.EAGAIN, f"volume {name!r} comes and goes too fast")

    def _existing(
        self, volume: LocalVolume, options: Mapping[str, str], exclusive: bool
    ) -> LocalVolume:
        if exclusive:
            raise _exists(volume.name)
        if options and options != volume.options:
            made_with = ", ".join(f"{key}={value}" for key, value in volume.options.items())
            raise OptionConflictError(
                f"volume {volume.name!r} exists and was made with "
                f"{made_with or 'no options'}; remove it first, or leave the options out"
            )
        # Whoever made it might not have come to this yet, and our caller relies on it.
        sync_directory(self._volumes)
        return volume

    def _make(self, name: str, record: Record, owner: Owner) -> None:
        self._opened.volumes.ensured()
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
            self._publish(staged, name, dir_fd=trash.fd)
        except BaseException:
            trash.discard(staged)
            raise

    def _publish(self, source: str, name: str, *, dir_fd: int) -> None:
        """Make a complete volume's directory the volume ``name``, durably.

        Raises VolumeExistsError, and FileNotFoundError when ``source`` is gone.
        """
        for _ in range(ATTEMPTS):
            try:
                os.rename(source, name, src_dir_fd=dir_fd, dst_dir_fd=self._volumes)
            except OSError as error:
                match error.errno:
                    case errno.ENOTEMPTY | errno.EEXIST if not self._data_mode(name):
                        self._make_way(name)
                        continue
                    case errno.ENOTEMPTY | errno.EEXIST:
                        raise _exists(name) from None
                    case errno.ENOTDIR:
                        raise VolumeExistsError(
                            f"{self._root}/{name} is there and is no volume; use another name"
                        ) from None
                    case errno.ENAMETOOLONG:
                        raise NameTooLongError(
                            f"volume name {name!r} is too long for the filesystem of the scope"
                        ) from None
                    case errno.EBUSY:
                        places = (name,) if dir_fd != self._volumes else (source, name)
                        raise self._mount_point(*places) from None
                raise
            sync_directory(self._volumes)
            return
        raise _exists(name)

    def _make_way(self, name: str) -> None:
        """Take a directory that holds something, but is no volume, off the name.

        It is none of ours, so what it holds is kept in the trash for as long as a volume.
        """
        with opened(".", dir_fd=self._volumes) as lock:
            # Two at a time could take away the volume that the faster one has published since.
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if not self._mode(name) or self._data_mode(name):
                    return
                id = self.trash.take(name, "held no volume", dir_fd=self._volumes)
            except FileNotFoundError:
                return
        _log.info("%s/%s was no volume; it is now in %s", self._root, name, self.trash.place(id))

    # Changing

    def rename(self, volume: Volume, new_name: str) -> LocalVolume:
        """Give the volume another name: see Driver.rename."""
        check_name(new_name)
        mode = self._require(volume.name)
        if new_name != volume.name:
            try:
                self._publish(volume.name, new_name, dir_fd=self._volumes)
            except FileNotFoundError:
                raise _not_found(volume.name) from None
        path = f"{self._root}/{new_name}/{DATA}"
        return LocalVolume(self, new_name, os.path.realpath(path) if stat.S_ISLNK(mode) else path)

    def exchange(self, first: Volume, second: Volume) -> None:
        """Swap the names of two volumes in one step: see Driver.exchange."""
        names = first.name, second.name
        for name in names:
            self._require(name)
        if names[0] == names[1]:
            return
        fd = self._volumes
        try:
            renameat2(fd, os.fsencode(names[0]), fd, os.fsencode(names[1]), RENAME_EXCHANGE)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise self._mount_point(*names) from None
            if error.errno != errno.ENOENT:
                raise
            gone = next((name for name in names if not self._mode(name)), names[0])
            raise _not_found(gone) from None
        sync_directory(fd)

    def set_labels(self, volume: Volume, labels: Mapping[str, str]) -> LocalVolume:
        """Replace the volume's labels, durably: see Driver.set_labels."""
        labels = sidecar.check_labels(labels)
        name = volume.name
        for _ in range(ATTEMPTS):
            found = self.get(name)
            known = self.read_record(name)
            record = Record(known.created_at, labels, known.options)
            staged = self.trash.new_name()
            try:
                write_new(staged, sidecar.encode(record), dir_fd=self.trash.fd)
                with opened(name, dir_fd=self._volumes) as fd:
                    os.rename(staged, sidecar.FILE, src_dir_fd=self.trash.fd, dst_dir_fd=fd)
                    sync_directory(fd)
            except FileNotFoundError:
                continue  # the volume is gone, or a housekeeper took the file for a leftover
            finally:
                self.trash.discard(staged)
            return LocalVolume(self, name, found.path, record)
        raise OSError(errno.EAGAIN, f"volume {name!r} comes and goes too fast")

    def _require(self, name: str) -> int:
        """Return st_mode of the data path of a volume. Raises VolumeNotFoundError."""
        mode = self._data_mode(name) if _is_name(name) else 0
        if mode == 0:
            raise _not_found(name)
        return mode

    # Going

    def remove(self, volume: Volume, *, by: str = "") -> None:
        """Move the volume to the trash, durably: see Driver.remove.

        Raises OutsideScopeError when its data path really lies elsewhere.
        """
        name = volume.name
        self._require_inside(name)
        try:
            self.trash.take(name, by, dir_fd=self._volumes)
        except FileNotFoundError:
            raise _not_found(name) from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise self._mount_point(name) from None
            raise

    def _require_inside(self, name: str) -> None:
        if not _is_name(name):
            raise _not_found(name)
        real = Path(self._root, name, DATA).resolve()
        if Path(self._root) not in real.parents:
            raise OutsideScopeError(
                f"volume {name!r} is not removed: its data path is {real}, outside {self._root}; "
                f"remove the link {self._root}/{name} by hand"
            )
        self._require(name)

    def restore(self, which: str, new_name: str | None = None) -> LocalVolume:
        """Bring a removed volume back, durably, under its old name or ``new_name``.

        ``which`` is an id of the trash, or a volume name meaning its newest removal.

        Raises VolumeNotFoundError when the trash has no such, VolumeExistsError when the name
        is taken, InvalidNameError.
        """
        self._opened.volumes.ensured()
        entry = self.trash.find(which)
        name = check_name(entry.name if new_name is None else new_name)
        try:
            self._publish(f"{entry.id}/{VOLUME}", name, dir_fd=self.trash.fd)
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


def _is_data(mode: int) -> bool:
    return stat.S_ISDIR(mode) or stat.S_ISLNK(mode)


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except InvalidNameError:
        return False
    return True


def _not_found(name: str) -> VolumeNotFoundError:
    return VolumeNotFoundError(f"no volume {name!r}")


def _exists(name: str) -> VolumeExistsError:
    return VolumeExistsError(f"volume {name!r} exists already")
