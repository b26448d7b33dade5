"""CachePolicy: how long the kernel may answer from memory without asking."""

from __future__ import annotations

import enum


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
