"""What the drivers keep of removed volumes, as one list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from volfs.errors import UnsupportedError, VolumeNotFoundError
from volfs.volume import Driver, RemovedVolume, RestoringDriver

Kept = tuple[RestoringDriver, RemovedVolume]
"""A removed volume, and the driver that can restore it."""


def all_kept(drivers: Iterable[Driver]) -> list[Kept]:
    """Return what can be restored, newest first; drivers that keep nothing are passed over."""
    found = [(driver, entry) for driver in _restoring(drivers) for entry in driver.removed()]
    return sorted(found, key=lambda kept: kept[1].removed_at, reverse=True)


def find_kept(drivers: Sequence[Driver], which: str) -> Kept:
    """Return the removed volume with the id ``which``, else the newest of that name.

    Raises VolumeNotFoundError, UnsupportedError when none of the drivers keeps any.
    """
    if not _restoring(drivers):
        raise UnsupportedError("no driver here keeps what is removed: it cannot be restored")
    kept = all_kept(drivers)
    for driver, entry in kept:
        if entry.id == which:
            return driver, entry
    for driver, entry in kept:
        if entry.name == which:
            return driver, entry
    raise VolumeNotFoundError(f"no removed volume {which!r} is in the trash")


def purge_kept(
    drivers: Sequence[Driver],
    ids: Iterable[str] | None,
    older_than: float | None,
    stopping: Callable[[], bool],
) -> list[RemovedVolume]:
    """Delete removed volumes for good and return them: see RestoringDriver.purge."""
    restoring = _restoring(drivers)
    if ids is None:
        return [
            entry
            for driver in restoring
            for entry in driver.purge(older_than=older_than, stopping=stopping)
        ]
    wanted = set(ids)
    known = [{entry.id for entry in driver.removed()} for driver in restoring]
    if unknown := wanted.difference(*known):
        raise VolumeNotFoundError(f"not in the trash: {', '.join(sorted(unknown))}")
    return [
        entry
        for driver, its in zip(restoring, known, strict=True)
        for entry in driver.purge(wanted & its, older_than=older_than, stopping=stopping)
    ]


def _restoring(drivers: Iterable[Driver]) -> list[RestoringDriver]:
    return [driver for driver in drivers if isinstance(driver, RestoringDriver)]
