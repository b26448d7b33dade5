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
from typing import NamedTuple, Protocol, TypeVar

from volfs.linux import syscalls
from volfs.linux.calls import setfsids

log = logging.getLogger(__name__)

T = TypeVar("T")

UNRESERVED = 0xFFFF_FFFD
"""An fsuid and fsgid that nobody has, and no filesystem keeps its reserve for: ext4's is for uid
0, or, as some distributions make it, for nobody (resuid in ext4(5))."""


UNKNOWN = 0xFFFF_FFFF
"""The uid and gid of who sent a request that makes nothing, where mounts can be idmapped."""

_DESCRIPTORS = 1 << 18
"""So many at most are asked for: each that is kept holds an inode in the kernel's memory."""


class Requester(Protocol):
    """Who sent a request: fsuid, fsgid, process id (0 outside the daemon's namespace) and umask.

    uid and gid can be UNKNOWN: see ``process`` for who it is then.
    """

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def umask(self) -> int: ...


class Identity:
    """The identity with which the calling thread creates files.

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
        _raise_descriptor_limit()
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
        """The context: file system ids ``uid`` and ``gid``, file creation mask ``umask``.

        UNKNOWN ids are nobody's, who may not use what a filesystem reserves.
        """
        self.separate_umask()
        if uid == UNKNOWN or gid == UNKNOWN:
            uid = gid = UNRESERVED  # setfsuid(2) takes -1 for a question
        return _Acting(self._switch and (uid != 0 or gid != 0), uid, gid, umask, self._effective)

    def separate_umask(self) -> None:
        """Give a worker thread a umask (0) of its own, which those set here do not change.

        Threads share the file creation mask until one of them unshares it.
        """
        if threading.get_ident() == self._main or hasattr(self._own, "umask"):
            return
        syscalls.unshare(syscalls.CLONE_FS)
        os.umask(0)
        self._own.umask = 0


def _raise_descriptor_limit() -> None:
    """To the hard limit, or to what the kernel allows at most if we may (CAP_SYS_RESOURCE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(int(Path("/proc/sys/fs/nr_open").read_text()), _DESCRIPTORS)
    if hard != resource.RLIM_INFINITY and hard < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        except (OSError, ValueError):
            pass
        else:
            return
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
    """Context in which changes leave set-user-ID and set-group-ID bits in place (CAP_FSETID).

    The kernel has decided whether the caller may set or keep them; the daemon, not being a member
    of the file's group, would lose the bits on the backing filesystem. Does nothing in a daemon
    that has no such right itself.
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


class Owning:
    """Context in which the daemon owns all files or none, and is a member of all groups or none.

    Permission to read and write is not taken: the kernel has checked that.
    """

    __slots__ = ("_all_files", "_all_groups", "_masks")

    def __init__(self, *, all_files: bool, all_groups: bool) -> None:
        self._all_files = all_files
        self._all_groups = all_groups

    def __enter__(self) -> None:
        self._masks = syscalls.capget()
        effective, permitted, inheritable = self._masks
        if not self._all_files:
            effective &= ~(1 << syscalls.CAP_FOWNER)
        if self._all_groups:
            effective |= permitted & 1 << syscalls.CAP_FSETID
        # First the ids, as changing them may change the capabilities.
        setfsids(0 if self._all_files else UNRESERVED, UNRESERVED)
        syscalls.capset(effective, permitted, inheritable)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        setfsids(0, 0)
        syscalls.capset(*self._masks)


class Process(NamedTuple):
    """Who a process is: filesystem user and groups, and its effective capabilities (a mask).

    Those that it has in a user namespace of its own do not count.
    """

    uid: int
    groups: frozenset[int]
    capabilities: int

    def has(self, capability: int) -> bool:
        """Whether it has a capability (CAP_*)."""
        return bool(self.capabilities & 1 << capability)


NOBODY = Process(UNRESERVED, frozenset(), 0)
"""Who a process is of which nothing can be told."""


def process(pid: int) -> Process:
    """Who process ``pid`` is; NOBODY if it is gone, or in another pid namespace.

    A process that waits for the answer to its request does not end meanwhile, unless it is killed.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return NOBODY
    fields = {}
    for line in status.splitlines():
        name, _, value = line.partition(b":")
        fields[name] = value.split()
    groups = frozenset(map(int, [fields[b"Gid"][3], *fields[b"Groups"]]))
    capabilities = int(fields[b"CapEff"][0], 16)
    if capabilities and not _in_our_user_namespace(pid):
        capabilities = 0
    return Process(int(fields[b"Uid"][3]), groups, capabilities)


def _in_our_user_namespace(pid: int) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/user"), os.stat("/proc/self/ns/user"))
    except OSError:
        return False


def who(requester: Requester) -> Process:
    """Who sent a request, as ``process`` tells, but for the ids that came with it."""
    found = process(requester.pid)
    if requester.uid == UNKNOWN:
        return found
    return found._replace(uid=requester.uid, groups=found.groups | {requester.gid})


def ids_of(requester: Requester) -> tuple[int, int]:
    """The uid and gid to act with for a requester: see Identity.acting.

    Of one who is not given only the process tells: its user, and root's group for root alone.
    """
    if requester.uid != UNKNOWN:
        return requester.uid, requester.gid
    uid = process(requester.pid).uid
    return uid, 0 if uid == 0 else UNRESERVED


def keeps_setgid(requester: Requester, gid: int) -> bool:
    """Whether a set-group-ID bit may stay on a file of group ``gid`` that ``requester`` changes:
    it is a member, or has CAP_FSETID (in_group_or_capable in the kernel's fs/inode.c)."""
    if gid == requester.gid:
        return True
    caller = process(requester.pid)
    return gid in caller.groups or caller.has(syscalls.CAP_FSETID)
