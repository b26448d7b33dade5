"""Volume and Driver, what more some drivers can do, what a name may be, and NewVolume."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from volfs.errors import InvalidNameError, NameTooLongError

NAME_MAX = 255
"""Longest volume name in bytes, as NAME_MAX in linux/limits.h."""

_FORBIDDEN = frozenset("/:,\\\"'")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_NOTHING: Mapping[str, str] = MappingProxyType({})


def check_name(name: str) -> str:
    """Return ``name`` if it can name a volume.

    Every allowed name fits unquoted in ``-v NAME:/path`` and ``--mount source=NAME``, and none
    is an option, a hidden file or one of the names desktops probe for (``.Trash-0``).

    Raises InvalidNameError (EINVAL) or NameTooLongError (ENAMETOOLONG), saying what is wrong.
    """
    if _PLAIN.fullmatch(name):
        return name  # nearly all are, and every look-up asks
    if not name:
        raise InvalidNameError("a volume name cannot be empty")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidNameError(f"volume name {name!r} is not valid UTF-8") from None
    if size > NAME_MAX:
        raise NameTooLongError(f"a volume name has at most {NAME_MAX} bytes, this one has {size}")
    if name[0] in ".- ":
        raise InvalidNameError(f"volume name {name!r} cannot start with {name[0]!r}")
    if name[-1] == " ":
        raise InvalidNameError(f"volume name {name!r} cannot end with a space")
    for char in name:
        if char in _FORBIDDEN:
            raise InvalidNameError(f"volume name {name!r} cannot contain {char!r}")
        if unicodedata.category(char) == "Cc":
            raise InvalidNameError(f"volume name {name!r} cannot contain control characters")
    return name


def can_name(name: str) -> bool:
    """Whether ``name`` can name a volume: see check_name."""
    try:
        check_name(name)
    except InvalidNameError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a new data path belongs to: user id, group id; and its permission bits."""

    uid: int
    gid: int
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume that is to be made: its name, the driver's create options, its labels.

    ``owner`` is who gets the data path where the options do not say; None means whoever makes it,
    with mode 755. It is no option: an existing volume is not compared with it.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    labels: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    owner: Owner | None = None

    @classmethod
    def of(cls, new: NewVolume | str) -> NewVolume:
        """Return ``new`` itself; of a name alone, the volume of that name and nothing else."""
        return cls(new) if isinstance(new, str) else new


@dataclass(frozen=True, slots=True)
class CopyReport:
    """How a copy was made.

    ``changed`` is how many files and directories were changed by others while they were
    copied, of which ``examples`` names some: 0 when the copy is of one point in time.
    ``cloned`` files share their data with the source (reflinks), ``copied`` ones do not; empty
    ones are in neither. ``size`` is the bytes on disk of both.
    """

    changed: int
    examples: tuple[str, ...]
    cloned: int
    copied: int
    size: int

    @property
    def is_point_in_time(self) -> bool:
        """Whether the copy is what the source was at one moment."""
        return self.changed == 0

    @property
    def is_reflinked(self) -> bool:
        """Whether all data is shared with the source."""
        return self.cloned > 0 and self.copied == 0


@dataclass(frozen=True, slots=True)
class RemovedVolume:
    """A volume in the trash. ``removed_at`` is timezone-aware; ``by`` says for whom.

    ``left`` says, of one that was to be deleted for good, what could not be and why.
    """

    id: str
    name: str
    removed_at: datetime
    by: str
    left: tuple[str, ...] = ()


Fill = Callable[[int, Callable[[], None]], None]
"""Fills a volume that is being made: it is given a descriptor of the empty data directory, and a
function to call from time to time, as a sign of life for other processes."""


class Volume(Protocol):
    """A named place for data.

    ``path`` is the absolute real path of the data. ``created_at`` is timezone-aware, or None
    where nothing recorded it. ``options`` are those the volume was created with.
    """

    @property
    def name(self) -> str: ...
    @property
    def driver_name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def created_at(self) -> datetime | None: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def options(self) -> Mapping[str, str]: ...

    def mount(self) -> str:
        """Make the data reachable and return the absolute path where it can be used.

        Idempotent; may block."""
        ...

    def open(self) -> int:
        """Return an O_PATH descriptor of the data directory, which the caller has to close.

        The way there is none that others could lead astray, as a path may be. May block. Raises
        VolumeNotFoundError when there is no data now.
        """
        ...

    def unmount(self) -> None:
        """Undo ``mount``. Idempotent; may block."""
        ...


class Driver(Protocol):
    """Makes, finds and removes volumes of one kind.

    Methods may block. All are safe against other threads and other processes on the same
    storage: what they promise is decided by single atomic steps of the storage, so of two
    creations of a name exactly one makes it, and a removal either happened or did not. Failures
    of the storage itself (ENOSPC, EROFS, EACCES, EIO) are raised as the OSError they are.
    """

    @property
    def name(self) -> str: ...

    def create(self, new: NewVolume | str) -> Volume:
        """Return the volume that ``new`` describes, and make it if it is not there.

        An existing volume is returned unchanged when ``new`` has no options, or those that it
        was made with. A name alone stands for a NewVolume of that name.

        Raises InvalidNameError, UnknownOptionError (listing the known ones), InvalidLabelError,
        OptionConflictError (EEXIST) when it exists with other options, VolumeNotFoundError when
        an option names a volume that is not there.
        """
        ...

    def make(self, new: NewVolume | str) -> tuple[Volume, int]:
        """Make a new volume.

        Returns it with an O_PATH descriptor of its data directory, reachable as by
        ``Volume.mount``; the caller has to close it. Raises VolumeExistsError when anything has the
        name, and what ``create`` raises.
        """
        ...

    def get(self, name: str) -> Volume:
        """Return the volume ``name``. Raises VolumeNotFoundError, also for impossible names."""
        ...

    def list(self) -> Sequence[Volume]:
        """Return all volumes, sorted by name."""
        ...

    def names(self) -> Sequence[str]:
        """Return the names of all volumes, sorted; cheaper than ``list``."""
        ...

    def remove(self, volume: Volume, *, by: str = "") -> None:
        """Take the volume off the list in one atomic step; the data may be kept restorable.

        ``by`` says for whom, for the record. Raises VolumeNotFoundError, OutsideScopeError,
        VolumeInUseError when the storage itself cannot let go of it.
        """
        ...

    def rename(self, volume: Volume, new_name: str) -> Volume:
        """Give the volume another name. Raises InvalidNameError, VolumeNotFoundError,
        VolumeExistsError when ``new_name`` is taken."""
        ...

    def exchange(self, first: Volume, second: Volume) -> None:
        """Swap the names of two volumes in one step. Raises VolumeNotFoundError."""
        ...

    def set_labels(self, volume: Volume, labels: Mapping[str, str]) -> Volume:
        """Replace the volume's labels, durably. Raises VolumeNotFoundError."""
        ...

    def housekeep(self, stopping: Callable[[], bool]) -> None:
        """Do slow chores (emptying the trash, finishing what a crash cut short).

        Called from time to time from a worker thread; returns soon after ``stopping()`` turns
        true, and what is left is done by the next call.
        """
        ...

    def close(self) -> None:
        """Give back what the driver holds. No other call may be under way, none may follow."""
        ...


@runtime_checkable
class CopyingDriver(Driver, Protocol):
    """A driver that can copy its volumes, and make one that its caller fills."""

    def clone(
        self,
        source: str,
        new: NewVolume | str,
        *,
        on_progress: Callable[[int], None] | None = None,
        stopping: Callable[[], bool] = ...,
    ) -> tuple[Volume, CopyReport]:
        """Make a new volume that is a copy of ``source``, and say how it was copied.

        Its labels and options are those of the source, overlaid by those of ``new``; its owner
        and mode are the source's where ``new`` has no options that say otherwise. ``on_progress``
        is told now and then how many bytes were copied.

        Raises VolumeNotFoundError for the source (also when it is removed meanwhile),
        InterruptedError when ``stopping()`` turns true, and what ``make`` raises. No volume is left
        then.
        """
        ...

    def make_filled(self, new: NewVolume | str, fill: Fill) -> Volume:
        """Make a new volume with what ``fill`` puts into it.

        The volume appears when ``fill`` has returned; if ``fill`` raises, there is none. ``fill``
        may set the data directory's owner and mode, which options of ``new`` overrule. Raises
        VolumeExistsError before ``fill`` is called if that is known by then, and what ``make``
        raises.
        """
        ...

    def frozen_copy(self, name: str) -> AbstractContextManager[tuple[int, CopyReport] | None]:
        """Yield a descriptor of a copy that costs no space and is gone after the context.

        None where the storage cannot make one, or cannot now. Raises VolumeNotFoundError.
        """
        ...

    def tidy(self, stopping: Callable[[], bool]) -> None:
        """Delete what processes killed at this work left behind, until ``stopping()``."""
        ...


@runtime_checkable
class RestoringDriver(Driver, Protocol):
    """A driver that keeps what is removed for a while."""

    def removed(self) -> Sequence[RemovedVolume]:
        """Return what can be restored, newest first."""
        ...

    def restore(self, which: str, new_name: str | None = None) -> Volume:
        """Bring a removed volume back, under its old name or ``new_name``.

        ``which`` is the id of a removed volume, or a name, meaning its newest removal. Raises
        VolumeNotFoundError when there is none, VolumeExistsError when the name is taken,
        InvalidNameError.
        """
        ...

    def purge(
        self,
        ids: Iterable[str] | None = None,
        *,
        older_than: float | None = None,
        stopping: Callable[[], bool] = ...,
    ) -> Sequence[RemovedVolume]:
        """Delete removed volumes for good and return them, oldest first.

        ``ids`` are those to delete, None means all; ``older_than`` spares what was removed less
        than that many seconds ago; no further deletion begins once ``stopping()`` is true. What
        could not be deleted is in the ``left`` of what is returned. Raises VolumeNotFoundError,
        with nothing deleted, for an unknown id.
        """
        ...
