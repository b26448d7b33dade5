"""VolumeStore: the volumes of all drivers, and who may do what to them.

The drivers' storage is the truth about which volumes there are, and References about who refers
to them, so nothing is kept of either here. Changes of one volume follow each other under a lock
of its name; looking takes no lock.
"""

from __future__ import annotations

import builtins
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from volfs.errors import (
    OptionConflictError,
    UnsupportedError,
    UntrustedLinkError,
    VolfsError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNotEmptyError,
    VolumeNotFoundError,
)
from volfs.holder import Holder
from volfs.linux.deletion import never
from volfs.linux.durable import DIRECTORY
from volfs.store.drivers import DriverRegistry
from volfs.store.locks import NameLocks
from volfs.store.removed import all_kept, find_kept, purge_kept
from volfs.store.table import ReferenceTable, UnsavedReferences
from volfs.volume import (
    CopyingDriver,
    CopyReport,
    Driver,
    Fill,
    NewVolume,
    RemovedVolume,
    Volume,
)

_log = logging.getLogger(__name__)

_UNSEEN = " (nothing is mounted: if the runtime is gone, its reference is dropped within a minute)"

_SHOWN = 10
"""So many holders are named where a volume is refused."""

HolderSource = Callable[[Volume], Iterable[Holder]]
Permit = Callable[[Volume], None]


class VolumeStore:
    """All volumes of all drivers. A name means one volume, whichever driver has it.

    Methods raise what the drivers raise (see Driver). Those that change or refer to a volume
    may block for as long as another change of that volume takes.
    """

    def __init__(
        self,
        drivers: Iterable[Driver],
        *,
        default: str = "local",
        references: ReferenceTable | None = None,
    ) -> None:
        """``default`` is the driver that makes volumes when none is asked for.

        ``references`` keeps who refers to volumes, and is closed with the store; without it the
        store remembers that itself, for as long as it lives. Raises UnknownDriverError when
        ``default`` is not among ``drivers``.
        """
        self.drivers = DriverRegistry()
        for driver in drivers:
            self.drivers.register(driver)
        self._default = self.drivers.get(default)
        others = [self.drivers.get(name) for name in self.drivers.names() if name != default]
        self._in_order = [self._default, *others]
        self._locks = NameLocks()
        self._references = references or UnsavedReferences()
        self._sources: list[HolderSource] = []

    def close(self) -> None:
        """Close drivers and references. No other call may be under way, none may follow."""
        for driver in self._in_order:
            driver.close()
        self._references.close()

    # Looking

    def get(self, name: str) -> Volume:
        """Return the volume ``name``. Raises VolumeNotFoundError."""
        *others, last = self._in_order
        for driver in others:
            try:
                return driver.get(name)
            except VolumeNotFoundError:
                continue
        return last.get(name)

    def list(self) -> list[Volume]:
        """Return all volumes, sorted by name."""
        volumes = {
            volume.name: volume for driver in reversed(self._in_order) for volume in driver.list()
        }
        return [volumes[name] for name in sorted(volumes)]

    def names(self) -> builtins.list[str]:
        """Return the names of all volumes, sorted."""
        if len(self._in_order) == 1:
            return [*self._default.names()]
        return sorted({name for driver in self._in_order for name in driver.names()})

    # Changing

    def create(self, new: NewVolume | str, *, driver: str | None = None) -> Volume:
        """Return the volume that ``new`` describes, and make it if need be: see Driver.create.

        ``driver`` is the one that must have it; without it an existing volume of any driver is
        returned, and a new one is made by the default driver. Raises UnknownDriverError, and
        OptionConflictError when another driver has a volume of that name.
        """
        new = NewVolume.of(new)
        with self._locks.held(new.name):
            having = self._having(new.name, driver)
            if having is not None:
                return having.create(new)
            maker = self._maker(driver)
            if self._references.of(new.name):
                with suppress(VolumeExistsError), self._afresh(new.name):
                    volume, fd = maker.make(new)
                    os.close(fd)
                    return volume
            return maker.create(new)

    def make(self, new: NewVolume | str, *, driver: str | None = None) -> tuple[Volume, int]:
        """Make a new volume, by ``driver`` or the default one: see Driver.make.

        Raises UnknownDriverError too.
        """
        new = NewVolume.of(new)
        maker = self._maker(driver)
        with self._vacant(new.name):
            return maker.make(new)

    def _maker(self, driver: str | None) -> Driver:
        return self._default if driver is None else self.drivers.get(driver)

    def _having(self, name: str, asked: str | None) -> Driver | None:
        """Return the driver that has a volume of that name, which must be the one asked for."""
        having = self._driver_having(name)
        if having is not None and asked is not None and self.drivers.get(asked) is not having:
            raise OptionConflictError(f"volume {name!r} exists already, of driver {having.name!r}")
        return having

    @contextmanager
    def _vacant(self, name: str) -> Iterator[None]:
        """Inside, no volume has the name, and one can be made. Raises VolumeExistsError."""
        with self._locks.held(name):
            if self._driver_having(name) is not None:
                raise VolumeExistsError(f"volume {name!r} exists already")
            with self._afresh(name):
                yield

    @contextmanager
    def _afresh(self, name: str) -> Iterator[None]:
        """Inside, a new volume is made.

        References kept for its name are to an earlier one that somebody deleted by hand. They are
        forgotten once it is made, and nobody can acquire it before.
        """
        if not self._references.of(name):
            yield
            return
        with self._references.held(name):
            yield
            self._references.forget(name)

    def remove(
        self, name: str, *, by: str = "", only_empty: bool = False, permit: Permit | None = None
    ) -> None:
        """Remove the volume ``name``: see Driver.remove. ``by`` says for whom, for the record.

        ``permit`` raises what is to be raised for a volume that may not be removed. It is asked
        when no other removal can come between: a name can become another volume's.

        Raises VolumeInUseError, with the holders, while anything holds it. With ``only_empty``
        raises VolumeNotEmptyError when there is anything in it. (What somebody writes between
        that look and the removal goes with the volume, and can be restored with it.)
        """
        with self._locks.held(name):
            volume = self.get(name)
            self._require_free(volume, "reference", "mount", "open")
            if only_empty:
                _require_empty(volume)
            with self._references.held(name):
                self._require_unreferenced(volume)
                if permit is not None:
                    permit(volume)
                self._driver_of(volume).remove(volume, by=by)
                self._references.forget(name)

    def rename(self, name: str, new_name: str, *, permit: Permit | None = None) -> Volume:
        """Give a volume another name: see Driver.rename; ``permit``: see ``remove``.

        Raises VolumeInUseError while a reference or a mount holds it: such a holder knows the
        volume by its name. Open files do not matter.
        """
        with self._locks.held(name, new_name):
            volume = self.get(name)
            driver = self._driver_of(volume)
            self._require_free(volume, "reference", "mount")
            if self._driver_having(new_name) not in (None, driver):
                raise VolumeExistsError(f"volume {new_name!r} exists already")
            with self._references.held(name, new_name):
                self._require_unreferenced(volume)
                if permit is not None:
                    permit(volume)
                renamed = driver.rename(volume, new_name)
                for vacant in (name, new_name):
                    self._references.forget(vacant)
                return renamed

    def exchange(self, first: str, second: str, *, permit: Permit | None = None) -> None:
        """Swap the names of two volumes of one driver: see Driver.exchange; ``permit``: ``remove``.

        Raises VolumeInUseError as ``rename`` does, OSError(EXDEV) for different drivers.
        """
        with self._locks.held(first, second):
            volumes = self.get(first), self.get(second)
            for volume in volumes:
                self._require_free(volume, "reference", "mount")
            driver, other = (self._driver_of(volume) for volume in volumes)
            if driver is not other:
                raise OSError(errno.EXDEV, "volumes of different drivers cannot be exchanged")
            with self._references.held(first, second):
                for volume in volumes:
                    self._require_unreferenced(volume)
                    if permit is not None:
                        permit(volume)
                driver.exchange(*volumes)

    def set_labels(self, name: str, labels: Mapping[str, str]) -> Volume:
        """Replace the labels of a volume: see Driver.set_labels."""
        return self.change_labels(name, lambda _: labels)

    def change_labels(
        self, name: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]
    ) -> Volume:
        """Replace the labels of a volume by what ``change`` makes of them, and return it.

        Changes are made one after the other, across processes too: none is lost. What ``change``
        raises leaves the labels as they are.
        """
        with self._locks.held(name), self._references.held(name):
            volume = self.get(name)
            labels = change(volume.labels)
            if labels == volume.labels:
                return volume
            return self._driver_of(volume).set_labels(volume, labels)

    # Copies

    def clone(
        self,
        source: str,
        new: NewVolume | str,
        *,
        on_progress: Callable[[int], None] | None = None,
        stopping: Callable[[], bool] = never,
    ) -> tuple[Volume, CopyReport]:
        """Make a new volume that is a copy of ``source``: see CopyingDriver.clone.

        Raises UnsupportedError too, when the driver of the source cannot copy.
        """
        new = NewVolume.of(new)
        driver = _copying(self._driver_of(self.get(source)))
        with self._vacant(new.name):
            return driver.clone(source, new, on_progress=on_progress, stopping=stopping)

    def make_filled(self, new: NewVolume | str, fill: Fill, *, driver: str | None = None) -> Volume:
        """Make a new volume with what ``fill`` puts into it, by ``driver`` or the default one.

        See CopyingDriver.make_filled. Raises UnknownDriverError and UnsupportedError too.
        """
        new = NewVolume.of(new)
        maker = _copying(self._maker(driver))
        with self._vacant(new.name):
            return maker.make_filled(new, fill)

    @contextmanager
    def reading(self, name: str) -> Iterator[tuple[int, CopyReport | None]]:
        """Yield a descriptor of a volume's data, to read all of it, and how it was copied.

        Where the driver can make one, the descriptor is that of a frozen copy. Otherwise it is that
        of the data itself, which others may change meanwhile, and the report is None. Raises
        VolumeNotFoundError, and what CopyingDriver.frozen_copy raises.
        """
        volume = self.get(name)
        driver = self._driver_of(volume)
        with ExitStack() as stack:
            if isinstance(driver, CopyingDriver):
                frozen = stack.enter_context(driver.frozen_copy(name))
                if frozen is not None:
                    yield frozen
                    return
            fd = _open_data(volume)
            stack.callback(os.close, fd)
            yield fd, None

    def tidy(self, stopping: Callable[[], bool] = never) -> None:
        """Delete what killed processes left of their copies, until ``stopping()``.

        This is the part of ``housekeep`` that touches nothing else.
        """
        for driver in self._in_order:
            if isinstance(driver, CopyingDriver):
                driver.tidy(stopping)

    # What was removed

    def removed(self) -> builtins.list[RemovedVolume]:
        """Return what can be restored, newest first; nothing of drivers that keep nothing."""
        return [entry for _, entry in all_kept(self._in_order)]

    def restore(self, which: str, new_name: str | None = None) -> Volume:
        """Bring a removed volume back: see RestoringDriver.restore.

        Raises UnsupportedError too, when no driver keeps what is removed.
        """
        driver, entry = find_kept(self._in_order, which)
        name = entry.name if new_name is None else new_name
        with self._vacant(name):
            return driver.restore(entry.id, name)

    def purge(
        self,
        ids: Iterable[str] | None = None,
        *,
        older_than: float | None = None,
        stopping: Callable[[], bool] = never,
    ) -> builtins.list[RemovedVolume]:
        """Delete removed volumes for good and return them: see RestoringDriver.purge."""
        return purge_kept(self._in_order, ids, older_than, stopping)

    # Who holds it

    def acquire(self, name: str, reference: str) -> Volume:
        """Note that ``reference`` uses the volume, and return the volume. Idempotent.

        The volume cannot be removed or renamed until the reference is released, or its holder
        is gone (see References.drop_stale). Raises VolumeNotFoundError, OSError(EINVAL) when
        the reference is too long, and other OSError when it cannot be kept.
        """
        with self._locks.held(name):
            self.get(name)
            with self._references.held(name, shared=True):
                volume = self.get(name)
                self._references.add(name, reference)
                return volume

    def release(self, name: str, reference: str) -> None:
        """Forget a reference. Releasing an unknown reference does nothing."""
        with self._locks.held(name):
            self._references.discard(name, reference)

    def references(self, name: str) -> frozenset[str]:
        """Return the references to the volume ``name``."""
        return frozenset(reference.id for reference in self._references.of(name))

    def add_holder_source(self, source: HolderSource) -> None:
        """Add something that knows of holders, such as mounts or files open through a tree.

        It is asked, from any thread, before a volume is removed or renamed.
        """
        self._sources.append(source)

    def holders(self, name: str) -> builtins.list[Holder]:
        """Return all holders of the volume ``name``. Raises VolumeNotFoundError."""
        return self._holders(self.get(name))

    def _holders(self, volume: Volume) -> builtins.list[Holder]:
        holders = self._referrers(volume)
        for source in self._sources:
            holders.extend(source(volume))
        return holders

    def _referrers(self, volume: Volume) -> builtins.list[Holder]:
        return [Holder("reference", item.id) for item in self._references.of(volume.name)]

    def _require_free(self, volume: Volume, *kinds: str) -> None:
        holders = [holder for holder in self._holders(volume) if holder.kind in kinds]
        if holders and all(holder.kind == "reference" for holder in holders):
            self._references.drop_stale([volume])
            holders = self._referrers(volume)
            _refuse(volume, holders, _UNSEEN)
        _refuse(volume, holders)

    def _require_unreferenced(self, volume: Volume) -> None:
        _refuse(volume, self._referrers(volume))

    # Chores

    def housekeep(self, stopping: Callable[[], bool]) -> None:
        """Let every driver do its chores (see Driver.housekeep), and drop stale references.

        A failure of one is logged, and the others get their turn.
        """
        try:
            self._drop_stale_references()
        except (OSError, VolfsError):
            _log.exception("looking for stale references failed")
        for driver in self._in_order:
            if stopping():
                return
            try:
                driver.housekeep(stopping)
            except (OSError, VolfsError):
                _log.exception("housekeeping of driver %r failed", driver.name)

    def _drop_stale_references(self) -> None:
        volumes = []
        for name in self._references.names():
            with suppress(VolumeNotFoundError, UntrustedLinkError):
                volumes.append(self.get(name))
        self._references.drop_stale(volumes)

    def _driver_of(self, volume: Volume) -> Driver:
        return self.drivers.get(volume.driver_name)

    def _driver_having(self, name: str) -> Driver | None:
        try:
            return self._driver_of(self.get(name))
        except VolumeNotFoundError:
            return None


def _copying(driver: Driver) -> CopyingDriver:
    if isinstance(driver, CopyingDriver):
        return driver
    raise UnsupportedError(
        f"driver {driver.name!r} cannot copy volumes, nor make them of archives: create a volume,"
        " and copy the files"
    )


def _open_data(volume: Volume) -> int:
    volume.mount()
    place = volume.open()
    try:
        return os.open(".", DIRECTORY, dir_fd=place)
    finally:
        os.close(place)


def _refuse(volume: Volume, holders: Sequence[Holder], hint: str = "") -> None:
    """Raise VolumeInUseError if there are holders."""
    if holders:
        reasons = "; ".join(str(holder) for holder in holders[:_SHOWN])
        if len(holders) > _SHOWN:
            reasons += f"; and {len(holders) - _SHOWN} more"
        raise VolumeInUseError(f"volume {volume.name!r} is in use: {reasons}{hint}", holders)


def _require_empty(volume: Volume) -> None:
    fd = _open_data(volume)
    try:
        with os.scandir(fd) as entries:
            if next(entries, None) is not None:
                raise VolumeNotEmptyError(f"volume {volume.name!r} is not empty")
    finally:
        os.close(fd)
