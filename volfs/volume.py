"""Volume and Driver: the two interfaces, what a name may be, and how a new volume is asked for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

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
    """Whose a new data path is: user id, group id and permission bits."""

    uid: int
    gid: int
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class NewVolume:
    """A volume that is to be made: its name, the driver's create options, its labels.

    ``owner`` is whose the data path becomes where the options do not say; None means whoever
    makes it, with mode 755. It is no option: an existing volume is not compared with it.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    labels: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    owner: Owner | None = None

    @classmethod
    def of(cls, new: NewVolume | str) -> NewVolume:
        """Return ``new`` itself; of a name alone, the volume of that name and nothing else."""
        return cls(new) if isinstance(new, str) else new


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
        """Make the data reachable and return the absolute path where it can be consumed.

        Idempotent; may block."""
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
        """Make a volume that was not there.

        Returns it with an O_PATH descriptor of the data directory that was made, reachable as
        by ``Volume.mount``; the caller has to close it. Raises VolumeExistsError when anything
        has the name, and what ``create`` raises.
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
