"""CachePolicy: how long the kernel may answer from memory without asking."""

from __future__ import annotations

import enum
import stat


class CachePolicy(enum.Enum):
    """The three policies, with virtiofsd's names.

    ``timeout`` is for entries and attributes, in seconds.
    """

    NEVER = "never"
    AUTO = "auto"
    ALWAYS = "always"

    @property
    def timeout(self) -> float:
        return _TIMEOUTS[self]

    def attribute_timeout(self, mode: int) -> float:
        """For the attributes of a file with this st_mode, in seconds.

        Writing to a file with a set-user-id or set-group-id bit takes that away without the
        kernel being told, so the attributes of such a file are not kept.
        """
        return 0.0 if mode & 0o6000 and mode & 0o170000 == stat.S_IFREG else self.timeout

    @property
    def root_timeout(self) -> float:
        """For the root's entries, in seconds.

        Volumes are also made and removed beside the mount, by the command line and by runtimes,
        whatever the policy promises about the files below; a second is the most they may lag.
        """
        return min(self.timeout, 1.0)


_TIMEOUTS = {
    CachePolicy.NEVER: 0.0,
    CachePolicy.AUTO: 1.0,
    CachePolicy.ALWAYS: 86400.0,
}
