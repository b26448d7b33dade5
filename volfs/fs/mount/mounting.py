"""Mounting and unmounting a tree: mount(2) and umount2(2) as root, fusermount3(1) otherwise."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess

import pyfuse3

from volfs.errors import MountError
from volfs.fs.mount.options import MountOptions
from volfs.linux import syscalls
from volfs.store import tree_mounts

log = logging.getLogger(__name__)

FUSE_DEVICE = "/dev/fuse"


def mount(operations: pyfuse3.Operations, scope: str, target: str, options: MountOptions) -> None:
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


def detach(target: str, scope: str) -> None:
    """Unmount at the end, unless that has been done from outside."""
    if target not in tree_mounts(scope):
        return
    try:
        syscalls.umount2(os.fsencode(target), syscalls.MNT_DETACH)
    except OSError as error:
        log.error("cannot unmount %s: %s", target, error.strerror)


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
