"""LocalDriver: volumes as directories under a scope.

``SCOPE/volumes/NAME/_data`` is the data of volume NAME and ``SCOPE/volumes/NAME/volume.json``
what else is known of it: the layout of Docker's local driver. A volume exists when its
``_data`` does; other entries of ``SCOPE/volumes`` are passed over.

The disk is the only truth, so several processes and hosts can work on one scope. What is not
yet a volume is prepared in the trash's directory, where a crash can leave it to housekeeping.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from volfs.copies.file import NoReflinksError
from volfs.copies.tree import CopyReport
from volfs.errors import (
    OptionConflictError,
    UnknownOptionError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from volfs.linux.deletion import never
from volfs.linux.durable import DIRECTORY, NO_ENTRY, opened, sync_directory, write_new
from volfs.linux.syscalls import syncfs
from volfs.local import sidecar
from volfs.local.names import Names, exists, not_found
from volfs.local.scope import Scope
from volfs.local.sidecar import Record
from volfs.local.staging import Copy, Stage, give, give_as_told, staged
from volfs.local.trash import ATTEMPTS, DATA, VOLUME, Trash
from volfs.local.volume import LocalVolume
from volfs.volume import Owner, Volume, check_name

_log = logging.getLogger(__name__)
_NO_ROOM = frozenset((errno.EROFS, errno.ENOSPC, errno.EDQUOT))
_COPIES = 3
"""How often a copy is begun anew because somebody took away what was there of it."""


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
        return LocalVolume(name, self._names.require(name), self.read_record)

    def names(self) -> list[str]:
        """Return the names of all volumes, sorted."""
        return self._names.all()

    def list(self) -> list[LocalVolume]:
        """Return all volumes, sorted by name."""
        return [
            LocalVolume(name, path, self.read_record) for name, path in self._names.data_paths()
        ]

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

        Options are those of sidecar.KNOWN_OPTIONS. What is not said by ``uid``, ``gid`` and
        ``mode`` is as in the volume to copy, or as in ``owner``, or of whoever runs this with
        mode 755. A copy that is not of one point in time is logged; see ``clone``.
        """
        options = sidecar.check_options(options or {})
        record = Record(datetime.now(UTC), sidecar.check_labels(labels or {}), options)
        source = options.get("from")
        if source is None:
            whose = sidecar.owner_of(options, owner or Owner(os.geteuid(), os.getegid()))
            return self._create(name, record, lambda data, _: give(data, whose), exclusive)
        copy = Copy(self.open_data, source, options, None, never)
        try:
            volume = self._create(name, record, copy, exclusive, _COPIES)
        except VolumeNotFoundError as error:
            raise VolumeNotFoundError(f"nothing to start from: {error}") from None
        if copy.report is not None and not copy.report.is_point_in_time:
            _log.warning(
                "volume %r is no copy of %r at one point in time: %d files or directories were"
                " changed meanwhile, such as %s",
                name,
                source,
                copy.report.changed,
                copy.report.examples[0],
            )
        return volume

    def clone(
        self,
        source: str,
        name: str,
        options: Mapping[str, str] | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        on_progress: Callable[[int], None] | None = None,
        stopping: Callable[[], bool] = never,
    ) -> tuple[LocalVolume, CopyReport]:
        """Make the new volume ``name`` a copy of ``source``, and say how it was copied.

        Its labels and options are those of the source, overlaid by the given ones; ``from`` is
        the source. Raises VolumeNotFoundError for the source (also when it goes while it is
        copied), VolumeExistsError, InvalidNameError, UnknownOptionError, InvalidLabelError, and
        what copy_tree raises, which explains the other arguments.
        """
        known = self.get(source)
        given = sidecar.check_options({**(options or {}), "from": source})
        record = Record(
            datetime.now(UTC),
            sidecar.check_labels({**known.labels, **(labels or {})}),
            {**known.options, **given},
        )
        copy = Copy(self.open_data, source, given, on_progress, stopping)
        volume = self._create(name, record, copy, True, _COPIES)
        assert copy.report is not None
        return volume, copy.report

    def create_filled(
        self,
        name: str,
        fill: Callable[[int, Callable[[], None]], None],
        options: Mapping[str, str] | None = None,
        *,
        labels: Mapping[str, str] | None = None,
    ) -> LocalVolume:
        """Make the new volume ``name`` of what ``fill`` puts into it.

        ``fill`` is called once, with a descriptor of the empty data directory and a function
        that it has to call from time to time; it may set the directory's owner and
        mode, which ``uid``, ``gid`` and ``mode`` in ``options`` overrule. What it raises leaves
        no volume. Raises VolumeExistsError before ``fill`` is called if that is known by then.
        """
        options = sidecar.check_options(options or {})
        if "from" in options:
            raise UnknownOptionError("option from: a volume is a copy, or filled otherwise")
        record = Record(datetime.now(UTC), sidecar.check_labels(labels or {}), options)
        whose = sidecar.owner_of(options, Owner(os.geteuid(), os.getegid()))

        def filling(data: int, stage: Stage) -> None:
            give(data, whose)
            fill(data, stage.keep_alive)
            give_as_told(data, options)
            syncfs(data)

        return self._create(name, record, filling, True, 1)

    @contextmanager
    def frozen_copy(
        self,
        name: str,
        *,
        on_progress: Callable[[int], None] | None = None,
        stopping: Callable[[], bool] = never,
    ) -> Iterator[tuple[int, CopyReport] | None]:
        """Yield a descriptor of a copy of a volume's data, which shares it and then goes.

        None where the filesystem has no reflinks, is read-only, or has no space for one. Raises
        VolumeNotFoundError, and what copy_tree raises.
        """
        with ExitStack() as stack:
            found = None
            try:
                found = self._freeze(name, stack, on_progress, stopping)
            except NoReflinksError:
                stack.close()
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                stack.close()
            yield found

    def _freeze(
        self,
        name: str,
        stack: ExitStack,
        on_progress: Callable[[int], None] | None,
        stopping: Callable[[], bool],
    ) -> tuple[int, CopyReport]:
        copy = Copy(self.open_data, name, {}, on_progress, stopping, only_reflinked=True)
        stage = stack.enter_context(staged(self.trash))
        os.mkdir(DATA, 0o700, dir_fd=stage.fd)
        data = stack.enter_context(opened(DATA, dir_fd=stage.fd))
        copy(data, stage)
        assert copy.report is not None
        return data, copy.report

    def open_data(self, name: str) -> int:
        """Return a descriptor of a volume's data path. Raises VolumeNotFoundError."""
        try:
            with self._names.opened(name) as directory:
                try:
                    return os.open(DATA, DIRECTORY, dir_fd=directory)
                except OSError as error:
                    if error.errno not in NO_ENTRY:
                        raise
            # An administrator may have made it a link.
            return os.open(self._names.require(name), DIRECTORY)
        except FileNotFoundError:
            place = self._names.require(name)
            raise VolumeNotFoundError(f"the data of volume {name!r} is not at {place}") from None

    def _create(
        self,
        name: str,
        record: Record,
        fill: Callable[[int, Stage], None],
        exclusive: bool,
        attempts: int = ATTEMPTS,
    ) -> LocalVolume:
        check_name(name)
        while True:
            existing = self._existing(name, record.options, exclusive)
            if existing is not None:
                return existing
            if attempts == 0:
                raise _restless(name)
            attempts -= 1
            try:
                self._make(name, record, fill)
            except VolumeExistsError:
                if self._names.is_taken(name) and self._names.data_path(name) is None:
                    raise  # something that is no volume has the name
            except FileNotFoundError:
                pass  # a housekeeper took the unpublished volume for a crash's leftover
            else:
                return LocalVolume(name, self._names.own_path(name), record)

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
        return LocalVolume(name, path, record)

    def _make(self, name: str, record: Record, fill: Callable[[int, Stage], None]) -> None:
        with staged(self.trash) as stage:
            write_new(sidecar.FILE, sidecar.encode(record), dir_fd=stage.fd)
            os.mkdir(DATA, 0o700, dir_fd=stage.fd)
            with opened(DATA, dir_fd=stage.fd) as data:
                fill(data, stage)
                sync_directory(data)
            sync_directory(stage.fd)
            self._names.publish(stage.name, name, dir_fd=self.trash.fd)

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
        return LocalVolume(new_name, path, self.read_record)

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
            return LocalVolume(name, path, record)
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


def _restless(name: str) -> OSError:
    return OSError(errno.EAGAIN, f"volume {name!r} comes and goes too fast; try again")
