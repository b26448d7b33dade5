"""Whether a tree can be mounted at a place, and if not, what to do about it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from volfs.errors import MountError
from volfs.fs.mount.mounting import FUSE_DEVICE
from volfs.fs.mount.options import MountOptions


def check(scope: str, mountpoint: str, options: MountOptions) -> None:
    """Raise MountError, saying what to do, if the tree of ``scope`` cannot be mounted here."""
    if not os.path.exists(FUSE_DEVICE):
        raise MountError(f"{FUSE_DEVICE} is missing: load the module with 'modprobe fuse'")
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
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise MountError(
            f"no permission to open {FUSE_DEVICE}: 'chmod 666 {FUSE_DEVICE}' as root allows it,"
            " as is usual"
        )


def _users_may_allow_other() -> bool:
    try:
        lines = Path("/etc/fuse.conf").read_text().splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)
