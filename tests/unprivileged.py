"""Run ``volfs`` as another user: ``python -m tests.unprivileged UID WORKSPACE ARGUMENT...``.

The interpreter may live where only root can reach it (a home directory), so everything is
imported before the privileges are dropped, and nothing is executed after.

Where only root may open /dev/fuse, which is unusual, the process sees a node of its own there,
in a mount namespace of its own; what it mounts in the workspace is seen outside too.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import volfs
from volfs.linux import syscalls

MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
CLONE_NEWNS = 0x20000
PR_SET_DUMPABLE = 4

DEVICE = Path("/dev/fuse")


@contextmanager
def shared(workspace: Path) -> Iterator[None]:
    """Let mounts below ``workspace`` made in other namespaces appear in ours."""
    target = os.fsencode(workspace)
    syscalls.mount(target, target, b"", MS_BIND, b"")
    try:
        syscalls.mount(b"", target, b"", MS_SHARED, b"")
        yield
    finally:
        syscalls.umount2(target, syscalls.MNT_DETACH)


def open_device_to_all(workspace: Path) -> None:
    """Give this process a /dev/fuse that everybody may open."""
    if DEVICE.stat().st_mode & 0o006 == 0o006:
        return
    syscalls.unshare(CLONE_NEWNS)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4]
        if not Path(point).is_relative_to(workspace):
            syscalls.mount(b"", point.encode(), b"", MS_PRIVATE, b"")
    node = workspace / f"fuse.{os.getpid()}"
    os.mknod(node, stat.S_IFCHR | 0o666, DEVICE.stat().st_rdev)
    node.chmod(0o666)
    syscalls.mount(os.fsencode(node), os.fsencode(DEVICE), b"", MS_BIND, b"")
    node.unlink()


def import_everything() -> None:
    """Import all of volfs, and what it would import when first needed."""
    for module in pkgutil.walk_packages(volfs.__path__, "volfs."):
        # An extension that was not built is missed by those that need it, as anywhere.
        if not module.name.endswith("__main__"):
            with suppress(ImportError):
                importlib.import_module(module.name)
    datetime.strptime("2000", "%Y")  # imports a module when first called


def become(uid: int, workspace: Path) -> None:
    """Make this process one of that user, who can mount in the workspace."""
    open_device_to_all(workspace)
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    # As what a user starts: their other processes may look at it in /proc.
    syscalls.prctl(PR_SET_DUMPABLE, 1)


def main() -> None:
    import_everything()
    become(int(sys.argv[1]), Path(sys.argv[2]))
    from volfs.cli import main as run

    sys.argv = ["volfs", *sys.argv[3:]]
    run()


if __name__ == "__main__":
    main()
