"""Acting with the caller's identity, and the privileges the daemon keeps for itself.

The kernel has checked every permission before a request arrives (default_permissions). What is
left is whose a new file becomes: creation runs with the caller's filesystem ids and umask, so
that owner, group, setgid directories, default ACLs and quotas come out as on the backing
filesystem and there is no moment with a wrong owner.
"""

from __future__ import annotations

import logging
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from volfs.linux import syscalls
from volfs.linux.calls import setfsids

log = logging.getLogger(__name__)

T = TypeVar("T")

UNRESERVED = 0xFFFF_FFFD
"""An fsuid and fsgid that nobody has, and no filesystem keeps its reserve for: ext4's is for uid
0, or, as some distributions make it, for nobody (resuid in ext4(5))."""


class Requester(Protocol):
    """Who sent a request: fsuid, fsgid, process id (0 outside our namespace) and umask."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def umask(self) -> int: ...


class Identity:
    """As whom the calling thread creates files.

    ``with identity.acting(uid, gid, umask): one system call``: no await in between, as the
    identity belongs to the thread.
    """

    def __init__(self) -> None:
        self._switch = os.geteuid() == 0
        self._own = threading.local()
        self._main = threading.main_thread().ident
        self._effective: int | None = None

    def take_privileges(self) -> None:
        """Set the process up for serving other users; called once, before threads start.

        - no supplementary groups: a file created in a setgid directory must not keep setgid
          because the daemon happens to be a member of the group (CVE-2022-0358 in virtiofsd);
        - no effective CAP_FSETID: writes and truncations made for others then clear setuid and
          setgid bits, as POSIX asks;
        - no effective CAP_SYS_RESOURCE, which opens the filesystem's reserve to whoever has it;
        - setfsuid changes the identity and not the capabilities (SECBIT_NO_SETUID_FIXUP): the
          kernel has checked permission with groups that the daemon does not have.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        os.umask(0)
        if not self._switch:
            return
        os.setgroups([])
        effective, permitted, inheritable = syscalls.capget()
        drop = 1 << syscalls.CAP_FSETID | 1 << syscalls.CAP_SYS_RESOURCE
        try:
            bits = syscalls.prctl(syscalls.PR_GET_SECUREBITS, 0)
            syscalls.prctl(syscalls.PR_SET_SECUREBITS, bits | syscalls.SECBIT_NO_SETUID_FIXUP)
        except OSError as error:
            # Without CAP_SETPCAP setfsuid drops the filesystem capabilities; they are raised
            # again around each creation.
            log.info("securebits unchanged (%s): capabilities are set around each creation", error)
            self._effective = effective & ~drop
        syscalls.capset(effective & ~drop, permitted, inheritable)

    def acting(self, uid: int, gid: int, umask: int) -> _Acting:
        """The context: file system ids ``uid`` and ``gid``, file creation mask ``umask``."""
        self.separate_umask()
        return _Acting(self._switch and (uid != 0 or gid != 0), uid, gid, umask, self._effective)

    def separate_umask(self) -> None:
        """Give a worker thread a umask (0) of its own, and let it not see those set here.

        Threads share the file creation mask until one of them unshares it.
        """
        if threading.get_ident() == self._main or hasattr(self._own, "umask"):
            return
        syscalls.unshare(syscalls.CLONE_FS)
        os.umask(0)
        self._own.umask = 0


class _Acting:
    __slots__ = ("_effective", "_gid", "_switch", "_uid", "_umask")

    def __init__(self, switch: bool, uid: int, gid: int, umask: int, effective: int | None) -> None:
        self._switch = switch
        self._uid = uid
        self._gid = gid
        self._umask = umask
        self._effective = effective

    def __enter__(self) -> None:
        os.umask(self._umask)
        if self._switch:
            setfsids(self._uid, self._gid)
            if self._effective is not None:
                self._regain(self._effective)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._switch:
            setfsids(0, 0)
            if self._effective is not None:
                self._regain(self._effective)
        os.umask(0)

    @staticmethod
    def _regain(effective: int) -> None:
        _, permitted, inheritable = syscalls.capget()
        syscalls.capset(effective & permitted, permitted, inheritable)


@contextmanager
def owning(uid: int, gid: int) -> Iterator[None]:
    """In here what the calling thread makes belongs to ``uid`` and ``gid`` from the beginning.

    It counts against their quota and does not come out of root's reserve. Permissions are the
    process's own, as before, but a server's filesystem may see another asking. For synchronous
    calls, few of them; of a process that is not root nothing is changed.
    """
    if os.geteuid() != 0 or (uid == 0 and gid == 0):
        yield
        return
    masks = syscalls.capget()
    setfsids(uid, gid)
    try:
        # The switch has dropped the filesystem's capabilities.
        syscalls.capset(*masks)
        yield
    finally:
        setfsids(0, 0)
        syscalls.capset(*masks)


def made_as(owner: tuple[int, int] | None, make: Callable[[], T]) -> T:
    """Return what ``make`` does as ``owner`` (uid, gid; None: as ourselves): see ``owning``.

    A server that lets root do more than its users may refuse it to the owner, since the
    directory is not theirs: there it is made as ourselves.
    """
    if owner is not None:
        with suppress(PermissionError), owning(*owner):
            return make()
    return make()


class KeepingSetgid:
    """Context in which chmod and ACL changes leave the setgid bit in place (CAP_FSETID).

    The kernel has decided whether the caller may set it; the daemon, not being a member of the
    file's group, would lose the bit on the backing filesystem.
    """

    __slots__ = ("_masks",)

    def __enter__(self) -> None:
        self._masks = syscalls.capget()
        effective, permitted, inheritable = self._masks
        syscalls.capset(effective | (permitted & 1 << syscalls.CAP_FSETID), permitted, inheritable)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        syscalls.capset(*self._masks)


def in_group(pid: int, gid: int, caller_gid: int) -> bool:
    """Whether process ``pid``, whose filesystem group is ``caller_gid``, is a member of ``gid``."""
    if gid == caller_gid:
        return True
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return False  # gone already, or in another pid namespace: not as far as can be told
    groups = next((line for line in status.splitlines() if line.startswith(b"Groups:")), b"")
    return str(gid).encode() in groups.split()[1:]
