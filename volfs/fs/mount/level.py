"""The level of a mount: how much of the work the kernel does itself.

- plain: pyfuse3 brings all requests, and those that it does not know get no answer;
- tap: all requests are answered where they are read;
- passthrough: besides, open files are read, written and mapped by the kernel itself.
"""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING

import pyfuse3
import trio

from volfs.fs.files import CachePolicy
from volfs.fs.mount.assembly import Parts
from volfs.fs.mount.options import MountOptions
from volfs.fs.plain import Entries, VolumeFS
from volfs.fs.requests import Requests
from volfs.linux import syscalls

if TYPE_CHECKING:
    from volfs.fs.wire.session import TappedSession

_TASKS = 256
"""Requests of pyfuse3 in progress at once; those beyond wait in the kernel. High, since requests
waiting for a filesystem that hangs must not keep the others from being read."""

_FOR_ROOT = "passthrough needs root with CAP_SYS_ADMIN"


class Level(enum.Enum):
    """The three levels, from the least to the most."""

    PLAIN = "plain"
    TAP = "tap"
    PASSTHROUGH = "passthrough"


def highest_level() -> tuple[Level, str]:
    """The highest level that a mount by this process can have if the kernel agrees, and why it is
    not a higher one."""
    try:
        from volfs.fs.wire import _tap, session  # noqa: F401  (which needs all extensions)

        _tap.attach(pyfuse3.__file__)
    except (ImportError, RuntimeError) as error:
        return Level.PLAIN, f"the wire cannot be tapped: {error}"
    return (Level.PASSTHROUGH, "") if _may_pass_through() else (Level.TAP, _FOR_ROOT)


class _Operations(VolumeFS):
    def __init__(self, requests: Requests, entries: Entries, answers: trio.Event) -> None:
        super().__init__(requests, entries)
        self._answers = answers

    def init(self) -> None:
        # While INIT is being answered; who waits for this runs when it has been.
        self._answers.set()


class RequestSource:
    """Who brings the requests of one mount: the tap where it can be had, else pyfuse3.

    To be made before pyfuse3 mounts ``operations``.
    """

    def __init__(self, parts: Parts, options: MountOptions, scope_fd: int) -> None:
        self._parts = parts
        requests = parts.requests
        self.answers = trio.Event()
        """Set once the kernel's first request, INIT, has been answered: the mount can be used."""
        entries = Entries(requests.inodes, requests.root, options.cache)
        self.operations = _Operations(requests, entries, self.answers)
        self._session: TappedSession | None = None
        self._no_tap = ""
        if not options.tap:
            self._no_tap = "the tap is switched off by no-tap"
            return
        try:
            from volfs.fs.wire.negotiation import Wishes
            from volfs.fs.wire.session import TappedSession

            wishes = Wishes(
                filesystem=syscalls.filesystem_type(scope_fd),
                caches=options.cache is not CachePolicy.NEVER,
                lists_by_inode=options.cache is CachePolicy.ALWAYS,
                why_not=_why_no_passthrough(parts, options),
            )
            self._session = TappedSession(requests, options.cache, parts.connection, wishes)
        except (ImportError, RuntimeError) as error:
            self._no_tap = f"the wire cannot be tapped: {error}"

    def begin(self, nursery: trio.Nursery) -> int:
        """Answer requests from now on, as pyfuse3 has mounted; those that have to wait run in
        ``nursery``. Returns how many tasks pyfuse3 needs."""
        if self._session is None:
            return _TASKS
        if not self._session.is_mounted:
            self._session.close()
            self._session = None
            self._no_tap = "libfuse mounted past the tap"
            return _TASKS
        self._session.begin(nursery)
        return 1  # in the tap requests wait in tasks of their own, pyfuse3 only reads

    @property
    def level(self) -> Level:
        """The level in effect, once the mount answers."""
        if self._session is None:
            return Level.PLAIN
        return Level.TAP if self.why else Level.PASSTHROUGH

    @property
    def why(self) -> str:
        """Why it is not a higher one; empty for the highest."""
        if self._session is None:
            return self._no_tap
        refusal = self._parts.passthrough.refusal
        if refusal:
            return f"the kernel refuses passthrough of the scope's files: {refusal}"
        return self._parts.connection.agreement.why_not

    def statistics(self) -> dict[str, object]:
        """What there is to say beside the parts' counters."""
        session = self._session.statistics() if self._session is not None else {}
        return {"level": self.level.value, "why": self.why, **session}

    def close(self) -> None:
        """Let go of the session, before pyfuse3 closes it."""
        self._parts.descriptors.closing.end()  # backing ids are given back on the device
        self._parts.connection.close()
        if self._session is not None:
            self._session.close()


def _may_pass_through() -> bool:
    return os.geteuid() == 0 and bool(syscalls.capget()[0] & 1 << syscalls.CAP_SYS_ADMIN)


def _why_no_passthrough(parts: Parts, options: MountOptions) -> str:
    if not options.passthrough:
        return "passthrough is switched off by no-passthrough"
    if not _may_pass_through():
        return _FOR_ROOT
    if parts.requests.inodes.root.device.slow:
        return "the scope is on a network filesystem"
    return ""
