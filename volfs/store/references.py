"""References kept in the scope: which runtimes use which volumes.

``SCOPE/references/NAME/<sha256 of the id>`` is one reference to the volume NAME: a small JSON
file that says whose it is, and since when and where it was made. So every process on the scope
sees it, and it outlives them all. The directory is made when the first one needs it; a scope
without it has no references.

*Removal against acquisition.* Which of two processes comes first is decided by a lock for each
name: a byte of ``SCOPE/references/.lock``, locked for its open file description (F_OFD_SETLKW
in fcntl(2)). Acquiring holds it shared while it looks for the volume and writes the reference.
Removing, renaming and exchanging hold it alone while they look for references once more and
take the volume off its name. So either the reference is on disk before the removal looks, and
it is refused; or the name is free before the acquisition looks, and it finds no volume. The
slow question, who has it mounted or open, is asked before, outside of the lock. Record locks
end with their process, need nothing to be cleaned up, work between the hosts of a network
filesystem and, unlike flock(2), for many names with one file.

*Stale references.* A runtime that was killed does not release what it held: see ``drop_stale``.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Protocol

from volfs.holder import Holder
from volfs.linux.durable import (
    DIRECTORY,
    make_directory,
    opened,
    read_small,
    scanned,
    sync_directory,
    write_new,
)
from volfs.linux.identity import made_as
from volfs.store.table import Origin, Reference, encoded_id
from volfs.store.usage import Scan
from volfs.volume import Volume, can_name

GRACE = 60.0
"""Seconds for which a reference holds though nothing is mounted or open. A runtime asks for the
volume first, may then copy the image's content into it, and only then mounts it."""

_log = logging.getLogger(__name__)
_DIRECTORY = "references"
_LOCK = ".lock"
_NEW = ".new-"
_FILE_MAX = 1 << 16
_FLOCK = struct.Struct("hhqqi")  # struct flock in fcntl(2)
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL))


class Look(Protocol):
    """What is asked who uses a volume: see Scan."""

    def sees_all(self) -> bool: ...
    def mount_holders(self, volume: Volume) -> list[Holder]: ...
    def open_holders(self, volume: Volume) -> list[Holder]: ...


class References:
    """The references kept in a scope: see the module. Safe against other processes too.

    Failures of the filesystem itself are raised as the OSError they are.
    """

    def __init__(
        self,
        scope: str,
        *,
        grace: float = GRACE,
        origin: Origin | None = None,
        look: Callable[[str], Look] | None = None,
    ) -> None:
        """``scope`` is the real path of a scope that is there. Nothing is made in it yet.

        ``grace`` is in seconds: see GRACE. ``origin`` is the machine this runs on if not the
        one it seems to be, ``look`` makes a new look at who uses the volumes of a scope.
        """
        self._scope = scope
        self._grace = grace
        self._origin = origin or Origin.here()
        self._look = look or Scan
        self._top = os.open(scope, DIRECTORY)
        self._warned: set[str] = set()

    def close(self) -> None:
        """Close the descriptor of the scope."""
        os.close(self._top)
        self._top = -1

    # Looking

    def of(self, name: str) -> list[Reference]:
        """Return the references to a volume, sorted by id."""
        with suppress(FileNotFoundError), self._opened(name) as fd:
            with scanned(fd) as entries:
                files = [entry.name for entry in entries if not entry.name.startswith(".")]
            found = (self._read(name, file, fd) for file in files)
            return sorted((item for item in found if item), key=lambda item: item.id)
        return []

    def names(self) -> list[str]:
        """Return the names for which anything is kept, sorted."""
        try:
            with opened(_DIRECTORY, dir_fd=self._top) as fd, scanned(fd) as entries:
                return sorted(entry.name for entry in entries if can_name(entry.name))
        except FileNotFoundError:
            return []

    def _read(self, name: str, file: str, dir_fd: int) -> Reference | None:
        """Return what a file says; None when it has gone."""
        try:
            reference = _decoded(read_small(file, _FILE_MAX, dir_fd=dir_fd) or b"")
            if file == _file_of(reference.id):
                return reference
        except (ValueError, KeyError, TypeError, RecursionError, PermissionError):
            pass
        try:
            os.stat(file, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        # It was put there to hold the volume, whatever has become of it.
        path = f"{self._scope}/{_DIRECTORY}/{name}/{file}"
        self._warn(path, "%s cannot be read as a reference; it holds until it is deleted", path)
        return Reference(f"in {path}, which cannot be read")

    # Changing

    def add(self, name: str, id: str) -> None:
        """Note a reference durably, or renew it: see ReferenceTable.add.

        On a read-only filesystem nothing is written: nothing can be removed from there either.
        """
        record = json.dumps(
            {
                "id": id,
                "since": datetime.now(UTC).isoformat(timespec="seconds"),
                "awake": time.monotonic(),
                "host": self._origin.host,
                "boot": self._origin.boot,
            }
        ).encode()
        file = _file_of(id)
        try:
            with self._made() as above, self._made(name, above) as fd:
                # Under another name first: there is no moment at which half of it can be read.
                staged = f"{_NEW}{secrets.token_hex(8)}"
                try:
                    write_new(staged, record + b"\n", dir_fd=fd, owner=self._owner())
                    os.rename(staged, file, src_dir_fd=fd, dst_dir_fd=fd)
                except BaseException:
                    with suppress(OSError):
                        os.unlink(staged, dir_fd=fd)
                    raise
                sync_directory(fd)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            _log.debug("no reference is kept on the read-only filesystem of %s", self._scope)

    def discard(self, name: str, id: str) -> None:
        """Forget a reference, durably, if it is known."""
        try:
            file = _file_of(id)
        except OSError:
            return  # no such id can have been acquired
        with suppress(FileNotFoundError), self._opened(name) as fd:
            os.unlink(file, dir_fd=fd)
            sync_directory(fd)

    def forget(self, name: str) -> None:
        """Forget all that is kept for a name: see ReferenceTable.forget.

        What cannot be deleted stays there, and holds.
        """
        try:
            with opened(_DIRECTORY, dir_fd=self._top) as above:
                with opened(name, dir_fd=above) as fd:
                    with scanned(fd) as entries:
                        files = [entry.name for entry in entries]
                    for file in files:
                        os.unlink(file, dir_fd=fd)
                os.rmdir(name, dir_fd=above)
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.debug("references to %r, which is no more, are left: %s", name, error)

    # Locking

    @contextmanager
    def held(self, *names: str, shared: bool = False) -> Iterator[None]:
        """Lock the names, all in one order for everybody: see the module."""
        places = sorted({_place_of(name) for name in names})
        while (fd := self._open_lock(shared)) is not None:
            try:
                for place in places:
                    self._lock(fd, place, fcntl.F_RDLCK if shared else fcntl.F_WRLCK)
                if os.fstat(fd).st_nlink:
                    yield
                    return
                # Deleted while we waited: others have another by now.
            finally:
                os.close(fd)
        yield

    def _open_lock(self, shared: bool) -> int | None:
        """Open the lock file, made if it is missing; None where none is needed.

        A removal goes on without when the disk is too full to make one: then there is no room
        for a reference either, and a removal has to be possible. So does an acquisition on a
        read-only filesystem.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with self._made() as above:
                return made_as(self._owner(), lambda: os.open(_LOCK, flags, 0o600, dir_fd=above))
        except OSError as error:
            if error.errno == errno.EROFS if shared else error.errno in _FULL:
                return None
            raise

    def _lock(self, fd: int, place: int, kind: int) -> None:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._warn(
                _LOCK,
                "the filesystem of %s has no locks (%s): keep other processes from removing"
                " volumes while containers start",
                self._scope,
                error.strerror,
            )

    def _warn(self, about: str, message: str, *arguments: object) -> None:
        """Log a warning, once about each thing."""
        if about not in self._warned:
            self._warned.add(about)
            _log.warning(message, *arguments)

    # Directories

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Yield the directory of a volume's references. Raises FileNotFoundError."""
        if not can_name(name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        with opened(_DIRECTORY, dir_fd=self._top) as above, opened(name, dir_fd=above) as fd:
            yield fd

    @contextmanager
    def _made(self, name: str = _DIRECTORY, above: int | None = None) -> Iterator[int]:
        """Yield a directory, made durably if it is missing."""
        dir_fd = self._top if above is None else above
        try:
            make_directory(name, 0o700, dir_fd=dir_fd, owner=self._owner())
        except FileExistsError:
            pass
        else:
            sync_directory(dir_fd)
        with opened(name, dir_fd=dir_fd) as fd:
            yield fd

    def _owner(self) -> tuple[int, int]:
        """Return whose everything here is: the scope's owner has to get by with what root made.

        From the beginning: what has a name is never given away, as it may be something else.
        """
        owner = os.fstat(self._top)
        return owner.st_uid, owner.st_gid

    # Stale ones

    def drop_stale(self, volumes: Iterable[Volume]) -> None:
        """Forget the references to these volumes whose holder is gone, each with a line logged.

        Those are references that this machine made

        - in an earlier boot: no process of it is left; or
        - in this boot, longer ago than the grace time, while there is no mount of the volume in
          any mount namespace, of a tree (be its daemon dead or alive) or of the data path, and
          no file of it open through a tree. The mounts do not tell which reference is theirs,
          so a single one keeps all references to its volume. A paused container has its mounts.

        Nothing is forgotten by a process that cannot look at all others (see Scan.sees_all),
        except after a boot, and nothing of another machine's ever: its mounts are not to be
        seen from here. (Machines that share a scope need different machine-ids, as always.)
        """
        if os.fstatvfs(self._top).f_flag & os.ST_RDONLY:
            return
        look: Look | None = None
        for volume in volumes:
            try:
                known = self.of(volume.name)
            except OSError as error:
                self._warn(volume.name, "references to %r cannot be read: %s", volume.name, error)
                continue
            for item in filter(self._is_past, known):
                self._drop(volume.name, item, "it is from before the last boot")
            if due := list(filter(self._is_due, known)):
                look = look or self._look(self._scope)
                if _is_free(volume, look):
                    for item in due:
                        self._drop(volume.name, item, "nothing has it mounted or open")

    def _is_past(self, reference: Reference) -> bool:
        made, here = reference.origin, self._origin
        return made is not None and made.host == here.host and made.boot != here.boot != ""

    def _is_due(self, reference: Reference) -> bool:
        made, here = reference.origin, self._origin
        if made is None or made.boot != here.boot or not made.boot:
            return False
        return time.monotonic() - reference.awake > self._grace

    def _drop(self, name: str, reference: Reference, reason: str) -> None:
        with self.held(name):
            # Acquired again since it was looked at?
            if reference in self.of(name):
                self.discard(name, reference.id)
                _log.info(
                    "the reference %s to volume %r, held since %s, is dropped: %s",
                    reference.id,
                    name,
                    reference.since,
                    reason,
                )


def _is_free(volume: Volume, look: Look) -> bool:
    return look.sees_all() and not look.mount_holders(volume) and not look.open_holders(volume)


def _file_of(id: str) -> str:
    return hashlib.sha256(encoded_id(id)).hexdigest()


def _place_of(name: str) -> int:
    """Return the byte of the lock file that stands for a name."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    # Some servers know no offsets of 64 bits. Two names with the same byte merely wait for each
    # other.
    return int.from_bytes(digest[:4], "big") >> 1


def _decoded(data: bytes) -> Reference:
    record = json.loads(data)
    id, host, boot = record["id"], record["host"], record["boot"]
    if not all(isinstance(text, str) for text in (id, host, boot)):
        raise TypeError
    since = datetime.fromisoformat(record["since"])
    return Reference(id, since, float(record["awake"]), Origin(host, boot))
