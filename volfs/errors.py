"""Every way a volume operation can fail.

An error class is its meaning: the errno a system call through the tree answers, and the exit
code the command line ends with. The message says what to do about it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from volfs.holder import Holder


class VolfsError(Exception):
    """Base of all expected failures.

    ``errno`` is what the tree answers, ``exit_code`` what the command line ends with.
    Exit code 2 stays free: it is the command line's "wrong usage".
    """

    errno: ClassVar[int] = errno.EIO
    exit_code: ClassVar[int] = 1


class InvalidNameError(VolfsError):
    """The name cannot be a volume name."""

    errno = errno.EINVAL
    exit_code = 3


class NameTooLongError(InvalidNameError):
    """The name is longer than a directory entry can be (255 bytes)."""

    errno = errno.ENAMETOOLONG


class VolumeNotFoundError(VolfsError):
    """No volume (or no removed volume) of that name is known."""

    errno = errno.ENOENT
    exit_code = 4


class VolumeExistsError(VolfsError):
    """A volume of that name is already there."""

    errno = errno.EEXIST
    exit_code = 5


class OptionConflictError(VolumeExistsError):
    """A volume of that name is there, made with other options."""


class VolumeInUseError(VolfsError):
    """Somebody uses the volume; ``holders`` says who.

    EBUSY, as umount(2) and rmdir(2) answer for something in use.
    """

    errno = errno.EBUSY
    exit_code = 6

    def __init__(self, message: str, holders: Sequence[Holder] = ()) -> None:
        super().__init__(message)
        self.holders = tuple(holders)


class VolumeNotEmptyError(VolfsError):
    """Removal was asked for empty volumes only, and this one holds data."""

    errno = errno.ENOTEMPTY
    exit_code = 6


class OutsideScopeError(VolfsError):
    """The real data path lies outside the driver's root: removal is refused.

    EPERM and not EACCES: no change of permissions would allow it.
    """

    errno = errno.EPERM
    exit_code = 7


class UntrustedLinkError(VolfsError):
    """The data path is a link that others than root can have put there: it is not followed.

    EACCES, as the kernel answers for a link that it does not follow (fs.protected_symlinks).
    """

    errno = errno.EACCES
    exit_code = 7


class UnknownOptionError(VolfsError):
    """The driver does not know a create option, or its value is malformed."""

    errno = errno.EINVAL
    exit_code = 3


class InvalidLabelError(VolfsError):
    """A label has no name or is not valid UTF-8, or the labels are too large."""

    errno = errno.EINVAL
    exit_code = 3


class UnsupportedError(VolfsError):
    """The driver cannot do that."""

    errno = errno.EOPNOTSUPP


class UnknownDriverError(VolfsError):
    """No driver of that name is registered."""

    errno = errno.ENODEV
    exit_code = 8


class ScopeError(VolfsError):
    """The scope cannot serve: missing, no permission, or spread over filesystems."""

    errno = errno.EIO
    exit_code = 9


class MountError(VolfsError):
    """The tree cannot be mounted or unmounted here; the message says why."""

    errno = errno.EIO
    exit_code = 10


class PluginError(VolfsError):
    """The volume plugin cannot serve at its socket, or has no path to give for a volume."""

    errno = errno.EIO
    exit_code = 11


class ArchiveError(VolfsError):
    """An archive is incomplete or not one, cannot be written, or a program for it is missing."""
