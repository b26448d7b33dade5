"""The level of a mount: how much of the kernel's work is done by the kernel itself.

- plain: pyfuse3 brings all requests, and those that it does not know get no answer;
- tap: all requests are answered where they are read;
- passthrough: besides, open files are read, written and mapped by the kernel itself.
"""

from __future__ import annotations

import enum
import logging
import os
from typing import TYPE_CHECKING

import pyfuse3
import trio

from volfs.fs.files.cache import CachePolicy
from volfs.fs.files.passthrough import Passthrough
from volfs.fs.mount.options import MountOptions
from volfs.fs.requests.requests import Requests
from volfs.fs.wire.negotiation import negotiate
from volfs.linux import syscalls
from volfs.linux.identity import Caller

if TYPE_CHECKING:
    from volfs.fs.wire.session import TappedSession

log = logging.getLogger(__name__)


class Level(enum.Enum):
    """The three levels, from the least to the most."""

    PLAIN = "plain"
    TAP = "tap"
    PASSTHROUGH = "passthrough"


_FOR_ROOT = "passthrough needs root with CAP_SYS_ADMIN"


def _may_pass_through() -> bool:
    return os.geteuid() == 0 and bool(syscalls.capget()[0] & 1 << syscalls.CAP_SYS_ADMIN)


def highest_level() -> tuple[Level, str]:
    """The level that a mount by this process can have at most as far as the kernel plays along,
    and why it is no higher one."""
    try:
        from volfs.fs.native import _records  # noqa: F401  (all are needed)
        from volfs.fs.wire import _tap
        from volfs.linux import _calls  # noqa: F401

        _tap.attach(pyfuse3.__file__)
    except (ImportError, RuntimeError) as error:
        return Level.PLAIN, f"the wire cannot be tapped: {error}"
    return (Level.PASSTHROUGH, "") if _may_pass_through() else (Level.TAP, _FOR_ROOT)


class Kernel:
    """What one mount has agreed with the kernel.

    ``level``, and ``why`` it is no higher one (empty for the highest), are known once the mount
    answers.
    """

    def __init__(
        self,
        requests: Requests,
        passthrough: Passthrough,
        caller: Caller,
        options: MountOptions,
        scope_fd: int,
    ) -> None:
        self._requests = requests
        self._passthrough = passthrough
        self._options = options
        self._scope_fd = scope_fd
        self._filesystem = syscalls.filesystem_type(scope_fd)
        self._session: TappedSession | None = None
        self.level = Level.PLAIN
        self.why = "the tap is switched off by no-tap"
        if options.tap:
            try:
                from volfs.fs.wire.session import TappedSession

                self._session = TappedSession(requests, caller, options.cache, self._negotiate)
            except (ImportError, RuntimeError) as error:
                self.why = f"the wire cannot be tapped: {error}"

    def mounted(self, nursery: trio.Nursery) -> bool:
        """Note that pyfuse3 has mounted; whether requests are answered in the tap.

        Those that have to wait run in ``nursery``.
        """
        if self._session is None:
            return False
        if self._session.descriptor < 0:
            self._session.close()
            self._session = None
            self.why = "libfuse mounted past the tap"
            return False
        self._session.begin(nursery)
        return True

    def probe(self) -> None:
        """Try passthrough, once the mount answers; without it if the kernel refuses. May block
        for a moment."""
        if self.level is not Level.PASSTHROUGH:
            return
        why = self._passthrough.probe(self._scope_fd)
        if why:
            self._passthrough.device = -1
            self.level = Level.TAP
            self.why = f"the kernel refuses passthrough of the scope's files: {why}"

    def statistics(self) -> dict[str, object]:
        """What there is to say beside the tables' counters."""
        numbers: dict[str, object] = {"level": self.level.value, "why": self.why}
        if self._session is not None:
            numbers["requests"] = self._session.counts()
            numbers["waiting"] = self._session.waiting
            numbers["backing_ids"] = self._passthrough.count
        return numbers

    def close(self) -> None:
        """Let go of the session, before pyfuse3 closes it."""
        self._passthrough.device = -1
        if self._session is not None:
            self._session.close()

    def _negotiate(self, request: bytes, reply: bytes) -> bytes:
        assert self._session is not None
        why = self._no_passthrough()
        new, agreed = negotiate(
            request,
            reply,
            filesystem=self._filesystem,
            caches=self._options.cache is not CachePolicy.NEVER,
            lists_by_inode=self._options.cache is CachePolicy.ALWAYS,
            passthrough=not why,
        )
        if agreed.lists_by_inode:
            self._session.list_by_inode()
        # The kernels that can also drop what they have cached where such a file is written.
        self._session.append_directly(agreed.maps_direct)
        if agreed.passthrough:
            self._passthrough.device = self._session.descriptor
            self.level, self.why = Level.PASSTHROUGH, ""
        else:
            self.level, self.why = Level.TAP, why or agreed.why_no_passthrough
        return new

    def _no_passthrough(self) -> str:
        if not self._options.passthrough:
            return "passthrough is switched off by no-passthrough"
        if not _may_pass_through():
            return _FOR_ROOT
        if self._requests.inodes[pyfuse3.ROOT_INODE].device.slow:
            return "the scope is on a network filesystem"
        return ""
