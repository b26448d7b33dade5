"""Which volumes have which names: the directory ``SCOPE/volumes``.

A volume comes to its name, and leaves it, by rename(2) of its whole directory, complete and
synced. So there is no half-made volume for anybody to see or to clean up. The plain rename is
also what decides between two that want one name: rename(2) replaces an empty directory, which
is nobody's volume, but answers ENOTEMPTY for one with ``_data`` in it; and unlike
RENAME_NOREPLACE, every filesystem can do it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volfs.errors import (
    NameTooLongError,
    OutsideScopeError,
    ScopeError,
    UntrustedLinkError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNotFoundError,
)
from volfs.linux import links
from volfs.linux.durable import NO_ENTRY, PLACE, opened, scanned, sync_directory
from volfs.linux.syscalls import RENAME_EXCHANGE, renameat2
from volfs.local.scope import ScopeDirectory
from volfs.local.trash import ATTEMPTS, DATA, Trash
from volfs.volume import can_name

_log = logging.getLogger(__name__)
_NOTHING_THERE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG))
_TOLD = 1000
"""How many untrusted links are remembered as told of."""


class Names:
    """The names of a scope's volumes. All methods are safe against others at work there."""

    def __init__(self, directory: ScopeDirectory, trash: Trash) -> None:
        self._directory = directory
        self._root = directory.path
        self._trash = trash
        self._told: set[str] = set()

    # Looking

    def all(self) -> list[str]:
        """Return the names of all volumes, sorted."""
        return [name for name, _ in self._all()]

    def data_paths(self) -> list[tuple[str, str]]:
        """Return the names of all volumes, sorted, with their data paths.

        A link that is not to be followed is given as it is.
        """
        found = []
        for name, mode in self._all():
            try:
                if stat.S_ISLNK(mode):
                    self._require_trusted(name)
                found.append((name, self._path(name, mode)))
            except UntrustedLinkError:
                found.append((name, self.own_path(name)))
        return found

    def data_path(self, name: str) -> str | None:
        """Return the absolute real data path of a volume, None when there is none.

        An administrator can have made ``_data`` a link to a directory elsewhere. The volume
        exists then also while that place does not, as when its disk is not mounted. Raises
        UntrustedLinkError for a link that somebody else can have put there.
        """
        mode = self._data_mode(name)
        if stat.S_ISLNK(mode):
            self._require_trusted(name)
        return self._path(name, mode) if mode else None

    def has(self, name: str) -> bool:
        """Return whether there is a volume of that name."""
        return self._data_mode(name) != 0

    def open_data(self, name: str, flags: int) -> int:
        """Open the data path of a volume. Raises FileNotFoundError, UntrustedLinkError."""
        with self.opened(name) as directory:
            try:
                return os.open(DATA, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            except OSError as error:
                if error.errno not in NO_ENTRY:
                    raise
            return self._follow(name, directory, flags)

    def _follow(self, name: str, directory: int, flags: int) -> int:
        """Open a data path that an administrator made a link."""
        try:
            for fd in (self._directory.top, self._directory.fd, directory):
                if not links.is_only_ours(os.fstat(fd)):
                    raise links.SuspectLinkError(DATA)
            return links.open_following(directory, DATA, flags & ~os.O_NOFOLLOW)
        except links.SuspectLinkError as error:
            told = UntrustedLinkError(
                f"volume {name!r} is refused: its data path {self.own_path(name)} is, or leads"
                f" through, a link that others than root can have put there ({error.filename});"
                " only in directories that nobody else can write are links followed"
            )
            if name not in self._told and len(self._told) < _TOLD:
                self._told.add(name)
                _log.warning("%s", told)
            raise told from None

    def _require_trusted(self, name: str) -> None:
        try:
            with self.opened(name) as directory:
                os.close(self._follow(name, directory, PLACE))
        except OSError:
            pass  # what it leads to is not there now

    def own_path(self, name: str) -> str:
        """Return the data path of a volume whose ``_data`` is no link."""
        return f"{self._root}/{name}/{DATA}"

    def require(self, name: str) -> str:
        """Return the data path of a volume. Raises VolumeNotFoundError, UntrustedLinkError."""
        path = self.data_path(name)
        if path is None:
            raise self.not_found(name)
        return path

    def not_found(self, name: str) -> VolumeNotFoundError:
        """Return the error for a name that no volume has."""
        return VolumeNotFoundError(f"no volume {name!r} in {os.path.dirname(self._root)}")

    def is_taken(self, name: str) -> bool:
        """Return whether anything, volume or not, has a valid name."""
        return self._mode(name) != 0

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """Yield a descriptor of a volume's directory. Raises FileNotFoundError.

        The volume can be renamed or removed meanwhile.
        """
        try:
            with opened(name, dir_fd=self._directory.fd) as fd:
                yield fd
        except NotADirectoryError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def sync(self) -> None:
        """Have all names on disk."""
        sync_directory(self._directory.fd)

    def _all(self) -> list[tuple[str, int]]:
        """Return the names of all volumes, sorted, with st_mode of ``_data``."""
        with scanned(self._directory.fd) as entries:
            # d_type tells what is no directory without a system call for each entry.
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        modes = ((name, self._mode(f"{name}/{DATA}")) for name in found if can_name(name))
        return sorted((name, mode) for name, mode in modes if _is_data(mode))

    def _data_mode(self, name: str) -> int:
        """Return st_mode of a volume's data path itself, 0 when there is no volume."""
        if not can_name(name) or not stat.S_ISDIR(self._mode(name)):
            return 0
        mode = self._mode(f"{name}/{DATA}")
        return mode if _is_data(mode) else 0

    def _path(self, name: str, mode: int) -> str:
        path = self.own_path(name)
        return os.path.realpath(path) if stat.S_ISLNK(mode) else path

    def _mode(self, path: str) -> int:
        """Return st_mode of something below the directory, 0 when it is not there."""
        try:
            return os.stat(path, dir_fd=self._directory.fd, follow_symlinks=False).st_mode
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return 0
            raise

    # Giving and taking

    def publish(self, source: str, name: str, *, dir_fd: int | None = None) -> None:
        """Make a complete volume's directory the volume ``name``, durably.

        ``source`` is its path from ``dir_fd``, or the volume's present name. Raises
        VolumeExistsError, FileNotFoundError when ``source`` is gone.
        """
        to = self._directory.ensured()
        for _ in range(ATTEMPTS):
            try:
                os.rename(source, name, src_dir_fd=to if dir_fd is None else dir_fd, dst_dir_fd=to)
            except OSError as error:
                match error.errno:
                    case errno.ENOTEMPTY | errno.EEXIST if not self.has(name):
                        self._make_way(name)
                        continue
                    case errno.ENOTEMPTY | errno.EEXIST:
                        raise exists(name) from None
                    case errno.ENOTDIR:
                        raise VolumeExistsError(
                            f"{self._root}/{name} is there and is no volume; use another name"
                        ) from None
                    case errno.ENAMETOOLONG:
                        raise NameTooLongError(
                            f"volume name {name!r} is too long for the filesystem of the scope"
                        ) from None
                    case errno.EBUSY:
                        names = (name,) if dir_fd is not None else (source, name)
                        raise self._mount_point(*names) from None
                raise
            sync_directory(to)
            return
        raise exists(name)

    def exchange(self, first: str, second: str) -> None:
        """Swap two names, durably. Raises VolumeNotFoundError."""
        for name in (first, second):
            self.require(name)
        if first == second:
            return
        fd = self._directory.fd
        try:
            renameat2(fd, os.fsencode(first), fd, os.fsencode(second), RENAME_EXCHANGE)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise self._mount_point(first, second) from None
            if error.errno == errno.ENOENT:
                raise self.not_found(second if self.is_taken(first) else first) from None
            raise
        sync_directory(fd)

    def take_away(self, name: str, by: str) -> None:
        """Move a volume to the trash, durably.

        Raises VolumeNotFoundError, OutsideScopeError when its data really lies elsewhere.
        """
        self._require_inside(name)
        try:
            self._trash.take(name, by, dir_fd=self._directory.fd)
        except FileNotFoundError:
            raise self.not_found(name) from None
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise self._mount_point(name) from None
            if error.errno == errno.EXDEV:
                raise ScopeError(
                    f"{self._root}/{name} cannot be moved to the trash: it lies in a lower layer of"
                    " an overlay, which renames no directories unless mounted with redirect_dir=on"
                ) from None
            raise

    def _require_inside(self, name: str) -> None:
        if not can_name(name):
            raise self.not_found(name)
        real = os.path.realpath(self.own_path(name))
        if Path(self._root) not in Path(real).parents:
            raise OutsideScopeError(
                f"volume {name!r} is not removed: its data path is {real}, outside {self._root}; "
                f"remove the link in {self._root}/{name} by hand"
            )
        self.require(name)

    def _make_way(self, name: str) -> None:
        """Take a directory that holds something, but is no volume, off the name.

        volfs did not make it, so what it holds is kept in the trash for as long as a volume.
        """
        with opened(".", dir_fd=self._directory.fd) as lock:
            # Two at a time: the slower one could take away what the faster one has published.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.is_taken(name) or self.has(name):
                return
            try:
                id = self._trash.take(name, "was in the way", dir_fd=self._directory.fd)
            except FileNotFoundError:
                return
        _log.info("%s/%s was no volume; it is now in %s", self._root, name, self._trash.place(id))

    def _mount_point(self, *names: str) -> VolumeInUseError:
        places = " or ".join(f"{self._root}/{name}" for name in names)
        return VolumeInUseError(f"a filesystem is mounted at {places}; unmount it first")


def exists(name: str) -> VolumeExistsError:
    """Return the error for a name that a volume has already."""
    return VolumeExistsError(f"volume {name!r} exists already")


def _is_data(mode: int) -> bool:
    return stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
