"""LocalDriver: volumes as directories under a scope.

``SCOPE/volumes/NAME/_data`` is the data of volume NAME and ``SCOPE/volumes/NAME/volume.json``
what else is known of it: the layout of Docker's local driver. A volume exists when its
``_data`` does; other entries of ``SCOPE/volumes`` are passed over.

The disk is the only truth, so several processes and hosts can work on one scope. What is not
yet a volume is prepared in the trash's directory, where a crash can leave it to housekeeping.
"""

from __future__ import annotations

import builtins
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime

from volfs.copies import NoReflinksError
from volfs.errors import (
    OptionConflictError,
    UnknownOptionError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from volfs.linux.deletion import never
from volfs.linux.durable import (
    DIRECTORY,
    NO_RESERVE,
    PLACE,
    make_directory,
    opened,
    sync_directory,
    write_new,
)
from volfs.linux.syscalls import syncfs
from volfs.local import sidecar
from volfs.local.entry import directory_of
from volfs.local.names import Names, exists
from volfs.local.scope import Scope
from volfs.local.sidecar import Record
from volfs.local.staging import Copy, Stage, give, give_as_told, staged
from volfs.local.trash import ATTEMPTS, DATA, Trash
from volfs.local.volume import LocalVolume
from volfs.volume import CopyReport, Fill, NewVolume, Owner, RemovedVolume, Volume, check_name

_log = logging.getLogger(__name__)
_NO_ROOM = frozenset((errno.EROFS, errno.ENOSPC, errno.EDQUOT))
_COPIES = 3
"""How often a copy is tried: a housekeeper may take it, unfinished, for a crash's leftover."""


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
        return self._volume(name, self._names.require(name))

    def names(self) -> list[str]:
        """Return the names of all volumes, sorted."""
        return self._names.all()

    def list(self) -> list[LocalVolume]:
        """Return all volumes, sorted by name."""
        return [self._volume(name, path) for name, path in self._names.data_paths()]

    def _volume(self, name: str, path: str, record: Record | None = None) -> LocalVolume:
        return LocalVolume(name, path, record or self.read_record, self._place)

    def _place(self, name: str) -> int:
        return self.open_data(name, PLACE)

    def read_record(self, name: str) -> Record | None:
        """Return what the sidecar of the volume ``name`` says, None when there is no volume."""
        try:
            with self._names.opened(name) as fd:
                return sidecar.read(fd, name)
        except FileNotFoundError:
            return None

    def create(self, new: NewVolume | str) -> LocalVolume:
        """Return the volume, and make it, durably, if it is not there: see Driver.create."""
        new = _checked(NewVolume.of(new))
        for _ in range(ATTEMPTS):
            existing = self._existing(new)
            if existing is not None:
                return existing
            try:
                volume, fd = self.make(new)
            except VolumeExistsError:
                if self._names.is_taken(new.name) and not self._names.has(new.name):
                    raise  # something that is no volume has the name
            else:
                os.close(fd)
                return volume
        raise _restless(new.name)

    def make(self, new: NewVolume | str) -> tuple[LocalVolume, int]:
        """Make a volume, durably: see Driver.make.

        Options are those of sidecar.KNOWN_OPTIONS. What is not said by ``uid``, ``gid`` and
        ``mode`` is as in the volume to copy, or as in ``new.owner``. A copy that is not of one
        point in time is logged; see ``clone``.
        """
        new = _checked(NewVolume.of(new))
        source = new.options.get("from")
        if source is None:
            whose = _owner_of(new)
            return self._make(new, lambda data, _: give(data, whose))
        copy = Copy(self.open_data, source, new.options, None, never)
        try:
            made = self._make(new, copy, _COPIES)
        except VolumeNotFoundError as error:
            raise VolumeNotFoundError(f"nothing to start from: {error}") from None
        if copy.report is not None and not copy.report.is_point_in_time:
            _log.warning(
                "volume %r is no copy of %r at one point in time: %d files or directories were"
                " changed meanwhile, such as %s",
                new.name,
                source,
                copy.report.changed,
                copy.report.examples[0],
            )
        return made

    def clone(
        self,
        source: str,
        new: NewVolume | str,
        *,
        on_progress: Callable[[int], None] | None = None,
        stopping: Callable[[], bool] = never,
    ) -> tuple[LocalVolume, CopyReport]:
        """Make a volume that is a copy of ``source``: see CopyingDriver.clone, and copy_tree.

        Its option ``from`` is the source.
        """
        known = self.get(source)
        new = NewVolume.of(new)
        new = _checked(replace(new, options={**new.options, "from": source}))
        copy = Copy(self.open_data, source, new.options, on_progress, stopping)
        whole = _checked(
            replace(
                new,
                options={**known.options, **new.options},
                labels={**known.labels, **new.labels},
            )
        )
        volume, fd = self._make(whole, copy, _COPIES)
        os.close(fd)
        assert copy.report is not None
        return volume, copy.report

    def make_filled(self, new: NewVolume | str, fill: Fill) -> LocalVolume:
        """Make a volume with what ``fill`` puts into it: see CopyingDriver.make_filled.

        The options that overrule what ``fill`` makes of the directory are ``uid``, ``gid`` and
        ``mode``.
        """
        new = _checked(NewVolume.of(new))
        if "from" in new.options:
            raise UnknownOptionError("option from cannot be used when importing")
        whose = _owner_of(new)
        options = new.options

        def filling(data: int, stage: Stage) -> None:
            give(data, whose)
            fill(data, stage.keep_alive)
            give_as_told(data, options)
            syncfs(data)

        volume, fd = self._make(new, filling, 1)
        os.close(fd)
        return volume

    @contextmanager
    def frozen_copy(self, name: str) -> Iterator[tuple[int, CopyReport] | None]:
        """Yield a reflinked copy of a volume's data: see CopyingDriver.frozen_copy.

        None where the filesystem has no reflinks, is read-only, or has no space for one. Raises
        what copy_tree raises, too.
        """
        with ExitStack() as stack:
            found = None
            try:
                found = self._freeze(name, stack)
            except NoReflinksError:
                stack.close()
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                stack.close()
            yield found

    def _freeze(self, name: str, stack: ExitStack) -> tuple[int, CopyReport]:
        copy = Copy(self.open_data, name, {}, None, never, only_reflinked=True)
        stage = stack.enter_context(staged(self.trash))
        os.mkdir(DATA, 0o700, dir_fd=stage.fd)
        data = stack.enter_context(opened(DATA, dir_fd=stage.fd))
        copy(data, stage)
        assert copy.report is not None
        return data, copy.report

    def open_data(self, name: str, flags: int = DIRECTORY) -> int:
        """Return a descriptor of a volume's data path.

        Raises VolumeNotFoundError, UntrustedLinkError.
        """
        try:
            return self._names.open_data(name, flags)
        except FileNotFoundError:
            place = self._names.require(name)
            raise VolumeNotFoundError(f"the data of volume {name!r} is not at {place}") from None

    def _existing(self, new: NewVolume) -> LocalVolume | None:
        """Return the volume if it exists and is what a creation asks for."""
        path = self._names.data_path(new.name)
        record = None if path is None else self.read_record(new.name)
        if path is None or record is None:
            return None
        if new.options and new.options != record.options:
            made_with = ", ".join(f"{key}={value}" for key, value in record.options.items())
            raise OptionConflictError(
                f"volume {new.name!r} exists and was made with {made_with or 'no options'}; "
                "remove it first, or leave the options out"
            )
        # Whoever made it might not have done this yet, and the caller relies on it.
        self._names.sync()
        return self._volume(new.name, path, record)

    def _make(
        self, new: NewVolume, fill: Callable[[int, Stage], None], attempts: int = ATTEMPTS
    ) -> tuple[LocalVolume, int]:
        """Make a volume that ``fill`` prepares; return it with a descriptor of its data path."""
        for _ in range(attempts):
            if self._names.has(new.name):
                raise exists(new.name)
            record = Record(datetime.now(UTC), new.labels, new.options)
            with suppress(FileNotFoundError):  # a housekeeper took it for a crash's leftover
                fd = self._publish(new, record, fill)
                return self._volume(new.name, self._names.own_path(new.name), record), fd
        raise _restless(new.name)

    def _publish(self, new: NewVolume, record: Record, fill: Callable[[int, Stage], None]) -> int:
        name = new.name
        # Whoever asks through a tree pays for it: no quota is evaded, and root's reserve is kept.
        payer = None if new.owner is None else (new.owner.uid, new.owner.gid)
        with (
            staged(self.trash, unreserved=payer not in (None, (0, 0))) as stage,
            ExitStack() as (on_failure),
        ):
            write_new(sidecar.FILE, sidecar.encode(record), dir_fd=stage.fd, owner=payer)
            make_directory(DATA, 0o700, dir_fd=stage.fd, owner=payer)
            with opened(DATA, dir_fd=stage.fd) as data:
                made = os.open(".", PLACE, dir_fd=data)
                on_failure.callback(os.close, made)
                fill(data, stage)
                sync_directory(data)
            sync_directory(stage.fd)
            self._names.publish(stage.name, name, dir_fd=self.trash.fd)
            on_failure.pop_all()
            return made

    def rename(self, volume: Volume, new_name: str) -> LocalVolume:
        """Give the volume another name: see Driver.rename."""
        check_name(new_name)
        path = self._names.require(volume.name)
        if new_name != volume.name:
            try:
                self._names.publish(volume.name, new_name)
            except FileNotFoundError:
                raise self._names.not_found(volume.name) from None
            if path == self._names.own_path(volume.name):
                path = self._names.own_path(new_name)
        return self._volume(new_name, path)

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
                owner = self._owner_now(name)
                with self._names.opened(name) as fd:
                    known = sidecar.read(fd, name)
                    record = Record(known.created_at, labels, known.options)
                    data = sidecar.encode(record)
                    write_new(staged, data, dir_fd=self.trash.fd, owner=owner)
                    os.rename(staged, sidecar.FILE, src_dir_fd=self.trash.fd, dst_dir_fd=fd)
                    sync_directory(fd)
            except FileNotFoundError:
                continue  # the volume is gone, or a housekeeper took the file for a leftover
            finally:
                self.trash.discard(staged)
            return self._volume(name, path, record)
        raise _restless(name)

    def _owner_now(self, name: str) -> tuple[int, int]:
        """Return whose a volume is: who pays for what is kept of it.

        Where that is root, or not known, it may be somebody else who asks.
        """
        try:
            data = self._place(name)
        except (OSError, VolumeNotFoundError):
            return NO_RESERVE
        status = os.fstat(data)
        os.close(data)
        return (status.st_uid, status.st_gid) if status.st_uid else NO_RESERVE

    def remove(self, volume: Volume, *, by: str = "") -> None:
        """Move the volume to the trash, durably: see Driver.remove.

        Raises OutsideScopeError when its data path really lies elsewhere.
        """
        self._names.take_away(volume.name, by)

    def removed(self) -> builtins.list[RemovedVolume]:
        """Return what is in the trash: see RestoringDriver.removed."""
        return self.trash.list()

    def restore(self, which: str, new_name: str | None = None) -> LocalVolume:
        """Bring a volume back from the trash, durably: see RestoringDriver.restore."""
        entry = self.trash.find(which)
        name = check_name(entry.name if new_name is None else new_name)
        try:
            self._names.publish(directory_of(entry.id), name, dir_fd=self.trash.fd)
        except FileNotFoundError:
            raise VolumeNotFoundError(
                f"removed volume {which!r} was restored or deleted for good meanwhile"
            ) from None
        self.trash.clear(entry.id)
        return self.get(name)

    def purge(
        self,
        ids: Iterable[str] | None = None,
        *,
        older_than: float | None = None,
        stopping: Callable[[], bool] = never,
    ) -> builtins.list[RemovedVolume]:
        """Delete what is in the trash for good: see Trash.purge."""
        return self.trash.purge(ids, older_than=older_than, stopping=stopping)

    def tidy(self, stopping: Callable[[], bool]) -> None:
        """Delete what unfinished work left: see CopyingDriver.tidy."""
        self.trash.tidy(stopping)

    def housekeep(self, stopping: Callable[[], bool]) -> None:
        """Delete what is due from the trash, and clear up what a crash left."""
        self.trash.housekeep(self._keep_removed, self._keep_free, stopping)


def _checked(new: NewVolume) -> NewVolume:
    """Return what is asked for, with its options in one spelling.

    Raises InvalidNameError, UnknownOptionError, InvalidLabelError.
    """
    return NewVolume(
        check_name(new.name),
        sidecar.check_options(new.options),
        sidecar.check_labels(new.labels),
        new.owner,
    )


def _owner_of(new: NewVolume) -> Owner:
    return sidecar.owner_of(new.options, new.owner or Owner(os.geteuid(), os.getegid()))


def _restless(name: str) -> OSError:
    return OSError(errno.EAGAIN, f"volume {name!r} comes and goes too fast; try again")
