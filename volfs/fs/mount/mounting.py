"""Mounting a tree: by mount(2) as root, through fusermount3(1) otherwise."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from functools import partial
from types import TracebackType

import pyfuse3

from volfs.errors import MountError
from volfs.fs.mount.mounted import Mounted, own_device
from volfs.fs.mount.options import MountOptions
from volfs.linux import syscalls
from volfs.linux.mountinfo import MountTable

FUSE_DEVICE = "/dev/fuse"
_FUSE_NUMBER = os.makedev(10, 229)


def mount(
    operations: pyfuse3.Operations, scope: str, target: str, options: MountOptions
) -> Mounted:
    """Mount and attach pyfuse3, as root by mount(2) and otherwise through fusermount3.

    Raises MountError.
    """
    before, connections = MountTable.of_process(), _connections()
    said = _Complaints()
    try:
        if os.geteuid() == 0:
            place = f"/dev/fd/{_mount_as_root(scope, target, options)}"
            words: set[str] = set()
        else:
            place, words = target, _mount_options(scope, options)
        with said:
            pyfuse3.init(operations, place, words)
        (connection,) = _connections() - connections
    except (OSError, RuntimeError) as error:
        for fd in _connections() - connections:
            _undo(fd, target, before)
        why = error.strerror if isinstance(error, OSError) else said.text or error
        raise MountError(f"cannot mount at {target}: {why}") from error
    device = own_device(connection, target, before)
    if device is None:
        pyfuse3.close(unmount=False)
        raise MountError(
            f"another tree was mounted at {target} at the same moment: see what is mounted there,"
            " and unmount it before trying again"
        )
    return Mounted(target, device, connection)


def _undo(connection: int, target: str, before: MountTable) -> None:
    device = own_device(connection, target, before)
    if device is None:
        os.close(connection)
    else:
        Mounted(target, device, connection).end(partial(os.close, connection))


def _connections() -> set[int]:
    """The descriptors of the FUSE device that this process has."""
    found = set()
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if os.fstat(fd).st_rdev == _FUSE_NUMBER:
                found.add(fd)
    return found


class _Complaints:
    """Catches what libfuse and fusermount3 write to standard error: it is where they say why.

    Where nothing fails, what was caught is written there in the end. ``text`` has it in one line
    where something does.
    """

    text = ""

    def __enter__(self) -> None:
        self._caught = os.memfd_create("volfs-stderr", os.MFD_CLOEXEC)
        self._real = os.dup(2)
        os.dup2(self._caught, 2)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.dup2(self._real, 2)
        os.close(self._real)
        said = os.pread(self._caught, 1 << 16, 0)
        os.close(self._caught)
        if error is None:
            with suppress(OSError):
                os.write(2, said)
        lines = said.decode(errors="replace").splitlines()
        self.text = "; ".join(re.sub(r"^(fusermount3|fuse): ", "", line) for line in lines if line)


def _mount_as_root(scope: str, target: str, options: MountOptions) -> int:
    """Mount at ``target`` and return the descriptor of /dev/fuse that serves it.

    libfuse serves a descriptor given as /dev/fd/N as it is. Calling mount(2) here tells the errno
    when it fails, and allows MS_POSIXACL: with it the kernel leaves the umask to the daemon
    (fs/fuse sets dont_mask), without which default ACLs come out wrong.
    """
    device = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    data = [
        f"fd={device}",
        f"rootmode={stat.S_IFDIR:o}",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
        "default_permissions",
    ]
    if options.allow_other is not False:
        data.append("allow_other")
    flags = syscalls.MS_POSIXACL
    flags |= syscalls.MS_RDONLY if options.read_only else 0
    flags |= 0 if options.suid else syscalls.MS_NOSUID
    flags |= 0 if options.dev else syscalls.MS_NODEV
    flags |= syscalls.MS_NOEXEC if options.noexec else 0
    flags |= syscalls.MS_NOATIME if options.noatime else 0
    try:
        syscalls.mount(
            os.fsencode(scope), os.fsencode(target), b"fuse.volfs", flags, ",".join(data).encode()
        )
    except OSError:
        os.close(device)
        raise
    return device


def _mount_options(scope: str, options: MountOptions) -> set[str]:
    """The options of ``options`` as fusermount3 takes them."""
    source = scope.replace("\\", "\\\\").replace(",", "\\,")
    chosen = {f"fsname={source}", "subtype=volfs", "default_permissions"}
    if options.allow_other:
        chosen.add("allow_other")
    if options.read_only:
        chosen.add("ro")
    if options.noexec:
        chosen.add("noexec")
    if options.noatime:
        chosen.add("noatime")
    return chosen
