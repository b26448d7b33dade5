"""Mounting the tree, serving it, unmounting it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import resource
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from volfs.errors import MountError
from volfs.fs.files.passthrough import Passthrough
from volfs.fs.files.tree import Tree
from volfs.fs.inodes.handles import HandleTable
from volfs.fs.inodes.table import InodeTable
from volfs.fs.mount.companion import Companion, Service
from volfs.fs.mount.level import Kernel
from volfs.fs.mount.options import MountOptions
from volfs.fs.plain.drain import Drain
from volfs.fs.plain.entries import Entries
from volfs.fs.plain.operations import VolumeFS
from volfs.fs.requests.requests import Requests
from volfs.fs.requests.threads import WorkerThreads
from volfs.fs.root.directory import Root
from volfs.linux import syscalls
from volfs.linux.identity import Caller
from volfs.store.housekeeping import housekeep
from volfs.store.store import VolumeStore
from volfs.store.usage import tree_mounts

log = logging.getLogger(__name__)
level_log = logging.getLogger("volfs.level")
"""Says at which level a tree is served, once for each mount; worth a line in every log."""

_FUSE_DEVICE = "/dev/fuse"
_TASKS = 256
"""Requests in progress at once; those beyond wait in the kernel. High, since requests waiting
for a filesystem that hangs must not keep the others from being read."""

_TABLE = 1 << 16
"""Descriptors at most that the kernel's table has room for from the start; 8 bytes each."""

_SWEEP_INTERVAL = 5.0
_SWEEP_SIZE = 1000


def check(scope: str, mountpoint: str, options: MountOptions) -> None:
    """Raise MountError, saying what to do, if the tree of ``scope`` cannot be mounted here."""
    if not os.path.exists(_FUSE_DEVICE):
        raise MountError(f"{_FUSE_DEVICE} is missing: load the module with 'modprobe fuse'")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise MountError(
            "fusermount3 is missing, which mounts for users other than root:"
            " 'apt install fuse3' as root brings it"
        )
    try:
        status = os.stat(mountpoint)
        os.statvfs(mountpoint)  # never answered from the kernel's cache, as stat may be
    except FileNotFoundError:
        raise MountError(
            f"mount point {mountpoint} does not exist: create it with 'mkdir {mountpoint}'"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountError(
                f"{mountpoint} holds a mount whose daemon is gone:"
                f" remove it with 'volfs umount {mountpoint}'"
            ) from None
        raise MountError(f"cannot use mount point {mountpoint}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise MountError(f"mount point {mountpoint} is not a directory")
    real = os.path.realpath(mountpoint)
    source = os.path.realpath(scope)
    if source == real or source.startswith(real.rstrip("/") + "/"):
        raise MountError(
            f"scope {scope} lies inside the mount point {mountpoint}, which would hide it:"
            " choose another mount point"
        )
    if real.startswith(source + "/"):
        raise MountError(
            f"mount point {mountpoint} lies inside the scope {scope}: choose one beside it"
        )
    if os.path.ismount(real):
        raise MountError(
            f"{mountpoint} is a mount point already: unmount it first, or choose another"
        )
    try:
        if os.listdir(real):
            raise MountError(
                f"mount point {mountpoint} is not empty: its content would be hidden;"
                " choose an empty directory"
            )
    except PermissionError:
        raise MountError(f"no permission to read mount point {mountpoint}") from None
    if os.geteuid() != 0:
        if not os.access(real, os.W_OK):
            raise MountError(
                f"no permission to write to mount point {mountpoint}: fusermount3 asks for it"
            )
        if options.allow_other and not _users_may_allow_other():
            raise MountError(
                "allow-other needs the line 'user_allow_other' in /etc/fuse.conf for users"
                " other than root"
            )
    if not os.access(_FUSE_DEVICE, os.R_OK | os.W_OK):
        raise MountError(
            f"no permission to open {_FUSE_DEVICE}: 'chmod 666 {_FUSE_DEVICE}' as root allows it,"
            " as is usual"
        )


async def serve(
    store: VolumeStore,
    scope: str,
    mountpoint: str,
    options: MountOptions,
    ready: Callable[[], None],
    service: Service | None = None,
) -> None:
    """Mount the tree of ``store`` at ``mountpoint`` and serve it until it is unmounted.

    ``scope`` is the real path that the mount shows as its source. ``service`` is served beside
    the tree: see Companion. ``ready`` is called once, when the mount answers and the service has
    started. SIGTERM and SIGINT unmount and return. Raises MountError, or in an ExceptionGroup
    what kept the service from starting.

    Changes the process for good: umask, groups and capabilities (see Caller.take_privileges).
    """
    caller = Caller()
    caller.take_privileges()
    logging.getLogger("pyfuse3").addFilter(_is_news)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    scope_fd = os.open(scope, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _enlarge_descriptor_table(scope_fd, limit)
    inodes = InodeTable(limit, reserved=len(os.listdir("/proc/self/fd")))
    handles = HandleTable()
    inodes.make_root(scope_fd)
    passthrough = Passthrough(inodes)
    tree = Tree(inodes, handles, caller, options.cache, passthrough)
    root = Root(store, inodes, handles, tree, options)
    threads = WorkerThreads(caller)
    requests = Requests(inodes, handles, root, tree, threads, scope_fd)
    operations = VolumeFS(requests, Entries(inodes, root, tree, options.cache))
    kernel = Kernel(requests, passthrough, caller, options, scope_fd)
    root.more_statistics = kernel.statistics
    target = await trio.to_thread.run_sync(os.path.realpath, mountpoint)
    own_mount = os.geteuid() == 0
    companion = Companion(service)
    stopping = threading.Event()
    # Before there is a mount, so that a signal never ends the process and leaves one behind.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        try:
            _mount(operations, scope, target, options)
            try:
                async with trio.open_nursery() as nursery:
                    tapped = inodes.renumbers = kernel.mounted(nursery)
                    drain = None if tapped else _drain(threads)
                    nursery.start_soon(_unmount_upon, signals, target, drain, companion)
                    nursery.start_soon(
                        partial(
                            housekeep,
                            store,
                            stopping.is_set,
                            wait=partial(_removal, requests),
                            interval=options.housekeeping_interval,
                            run=lambda call: threads.run(call, on="housekeeping"),
                        )
                    )
                    nursery.start_soon(_sweep, inodes)
                    nursery.start_soon(_announce, target, kernel, companion, nursery, ready)
                    try:
                        # In the tap requests wait in tasks of their own, pyfuse3 only reads.
                        await pyfuse3.main(max_tasks=1 if tapped else _TASKS)
                    finally:
                        stopping.set()
                        nursery.cancel_scope.cancel()
            finally:
                if own_mount:
                    _detach(target, scope)
                kernel.close()
                pyfuse3.close(unmount=not own_mount)
                log.info("unmounted: %s", root.statistics())
        finally:
            requests.locks.close()
            handles.close()
            inodes.close()
            tree.close()
            os.close(scope_fd)


def _enlarge_descriptor_table(fd: int, limit: int) -> None:
    """Have room for as many descriptors as will be used, by using a high number for a moment.

    Else the kernel doubles the table when it is full, and in a process with threads waits for all
    processors to have seen that (expand_fdtable in fs/file.c): milliseconds amid requests.
    """
    with suppress(OSError):
        os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, min(limit, _TABLE) - 1))


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount the tree at ``mountpoint``; the daemon then ends by itself.

    ``lazy`` takes it out of the namespace although it is in use. Raises MountError; its
    ``__cause__`` is OSError(EBUSY) when somebody uses the mount.
    """
    # The last component is not followed, as a dead mount cannot be looked at.
    target = os.path.join(
        os.path.realpath(os.path.dirname(os.path.abspath(mountpoint))),
        os.path.basename(os.path.abspath(mountpoint)),
    )
    if os.geteuid() != 0:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = done.stderr.strip()
            busy = OSError(errno.EBUSY, reason) if "busy" in reason else None
            raise MountError(f"cannot unmount {mountpoint}: {reason}") from busy
        return
    flags = syscalls.MNT_DETACH if lazy else 0
    try:
        syscalls.umount2(os.fsencode(target), flags | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        known = {
            errno.EBUSY: "it is in use",
            errno.EINVAL: "nothing is mounted there",
            errno.ENOENT: "no such directory",
        }
        text = known.get(error.errno or 0, error.strerror)
        raise MountError(f"cannot unmount {mountpoint}: {text}") from error


# -- mounting


def _mount(operations: VolumeFS, scope: str, target: str, options: MountOptions) -> None:
    """Mount and attach pyfuse3, as root by mount(2) and otherwise through fusermount3."""
    try:
        if os.geteuid() == 0:
            device = _mount_as_root(scope, target, options)
            try:
                pyfuse3.init(operations, f"/dev/fd/{device}", set())
            except BaseException:
                os.close(device)
                syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)
                raise
        else:
            pyfuse3.init(operations, target, _mount_options(scope, options))
    except OSError as error:
        raise MountError(f"cannot mount at {target}: {error.strerror}") from error
    except RuntimeError as error:
        raise MountError(f"cannot mount at {target}: {error} (see the lines above)") from error


def _mount_as_root(scope: str, target: str, options: MountOptions) -> int:
    """Mount at ``target`` and return the descriptor of /dev/fuse that serves it.

    libfuse serves a descriptor given as /dev/fd/N as it is. Mounting ourselves tells the errno
    when it fails, and allows MS_POSIXACL: with it the kernel leaves the umask to us (fs/fuse
    sets dont_mask), without which default ACLs come out wrong.
    """
    device = os.open(_FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
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
    return chosen


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of pyfuse3 is worth a line. That a reply comes too late is not: ENOENT
    says that the kernel has given the request up, as it does when unmounting."""
    return not (
        record.msg.endswith("fuse_reply_* failed with %s")
        and record.args == (os.strerror(errno.ENOENT),)
    )


def _users_may_allow_other() -> bool:
    try:
        lines = Path("/etc/fuse.conf").read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def _detach(target: str, scope: str) -> None:
    """Unmount at the end, unless that has been done from outside."""
    if target not in tree_mounts(scope):
        return
    try:
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)
    except OSError as error:
        log.error("cannot unmount %s: %s", target, error.strerror)


# -- beside the requests


async def _announce(
    target: str,
    kernel: Kernel,
    companion: Companion,
    nursery: trio.Nursery,
    ready: Callable[[], None],
) -> None:
    await trio.to_thread.run_sync(os.stat, target)
    kernel.probe()
    why = f" ({kernel.why})" if kernel.why else ""
    level_log.info("serving at %s, level %s%s", target, kernel.level.value, why)
    await companion.begin(nursery)
    ready()


def _drain(threads: WorkerThreads) -> Drain | None:
    devices = [fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_fuse_device(fd)]
    if len(devices) != 1:
        log.info("the descriptor of %s was not found: requests are not drained", _FUSE_DEVICE)
        return None
    return Drain.install(devices[0], lambda: threads.busy)


def _is_fuse_device(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == _FUSE_DEVICE
    except FileNotFoundError:  # the descriptor that the listing was read from
        return False


async def _unmount_upon(
    signals: AsyncIterator[int], target: str, drain: Drain | None, companion: Companion
) -> None:
    number = await anext(signals)
    log.info("unmounting upon %s", signal.Signals(number).name)
    await companion.end()
    try:
        # The event loop goes on serving while the kernel writes back and unmounts.
        await trio.to_thread.run_sync(unmount, target)
    except (MountError, OSError) as error:
        log.info("%s; it goes away for new users, and for all when the daemon ends", error)
    pyfuse3.terminate()
    if drain is not None:
        drain.close()


async def _removal(requests: Requests) -> None:
    """Wait until a volume was removed since the last time."""
    await requests.volume_removed.wait()
    requests.volume_removed = trio.Event()


async def _sweep(inodes: InodeTable) -> None:
    """Let go of files deleted behind the mount, a part of the table at a time."""
    while True:
        await trio.sleep(_SWEEP_INTERVAL)
        inodes.release_deleted(_SWEEP_SIZE)
