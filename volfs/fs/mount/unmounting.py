"""Unmounting a tree from outside: umount2(2) as root, fusermount3(1) otherwise."""

from __future__ import annotations

import errno
import os
import pwd
import re
import subprocess
import time
from collections.abc import Sequence

from volfs.errors import MountError
from volfs.fs.mount.daemons import Daemons, keepers
from volfs.holder import Holder
from volfs.linux import syscalls
from volfs.linux.mountinfo import Mount, MountTable
from volfs.store import FSTYPE, mount_users

PATIENCE = 30.0
"""Seconds in which a daemon that nobody keeps should have ended."""

_LOOK = 1.0
"""Seconds between two looks at who keeps a tree. What two looks see is there to stay."""

_SHOWN = 5
"""So many users of a tree are named."""


def unmount(mountpoint: str, *, lazy: bool = False, patience: float = PATIENCE) -> list[Holder]:
    """Unmount the tree at ``mountpoint``, and return when its daemon has ended.

    ``lazy`` takes it out of the namespace although it is in use. Then, and only then, this may
    return while the daemon serves on; who keeps it is returned, otherwise nobody.

    Raises MountError: when it cannot be unmounted (``__cause__`` is OSError(EBUSY) when somebody
    uses it), and when it is unmounted here but its daemon has not ended, because it is kept by
    others or because ``patience``, in seconds, ran out.
    """
    target, mount = _tree_at(mountpoint)
    owner = int(_option(mount, "user_id") or 0)
    daemons = Daemons(mount.device, owner) if mount.root == "/" else None
    try:
        _detach(target, mountpoint, owner, lazy=lazy)
        return _await_end(daemons, mount.device, mountpoint, lazy, patience) if daemons else []
    finally:
        if daemons:
            daemons.close()


def _tree_at(mountpoint: str) -> tuple[str, Mount]:
    """The real mount point, and the tree that is seen there. Raises MountError."""
    table = MountTable.of_process()
    absolute = os.path.abspath(mountpoint)
    # The last component is not looked at, as a dead mount cannot be; unless it is none.
    target = (
        os.path.join(
            os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute)
        ).rstrip("/")
        or "/"
    )
    if not any(mount.point == target for mount in table):
        target = os.path.realpath(target)
    way = table.way_to(target)
    if not way or way[-1].point != target:
        what = "nothing is mounted there" if os.path.lexists(target) else "no such directory"
        raise MountError(f"cannot unmount {mountpoint}: {what}")
    if way[-1].fstype != FSTYPE:
        raise MountError(
            f"cannot unmount {mountpoint}: what is mounted there is no tree of volumes"
            f" ({way[-1].fstype}); umount(8) is for that"
        )
    return target, way[-1]


def _option(mount: Mount, name: str) -> str | None:
    match = re.search(rf"(?:^|,){name}=([^,]*)", mount.options)
    return match[1] if match else None


def _detach(target: str, mountpoint: str, owner: int, *, lazy: bool) -> None:
    if os.geteuid() != 0:
        _ask_fusermount(target, mountpoint, owner, lazy=lazy)
        return
    flags = syscalls.MNT_DETACH if lazy else 0
    try:
        syscalls.umount2(os.fsencode(target), flags | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        raise _refusal(mountpoint, target, error) from error


def _ask_fusermount(target: str, mountpoint: str, owner: int, *, lazy: bool) -> None:
    if owner != os.geteuid():
        raise MountError(
            f"cannot unmount {mountpoint}: {_name(owner)} mounted it: only {_name(owner)}"
            f"{'' if owner == 0 else ' and root'} can unmount it"
        )
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", target]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise MountError(
            "fusermount3 is missing, which unmounts for users other than root:"
            " 'apt install fuse3' as root brings it"
        ) from None
    if done.returncode != 0:
        reason = done.stderr.strip()
        if "busy" in reason:
            busy = OSError(errno.EBUSY, reason)
            raise _refusal(mountpoint, target, busy) from busy
        raise MountError(f"cannot unmount {mountpoint}: {reason}")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _refusal(mountpoint: str, target: str, error: OSError) -> MountError:
    if error.errno != errno.EBUSY:
        return MountError(f"cannot unmount {mountpoint}: {error.strerror}")
    users = mount_users(target)
    if users:
        return MountError(f"cannot unmount {mountpoint}: it is in use: {shown(users)}")
    return MountError(
        f"cannot unmount {mountpoint}: it is in use by nobody that can be seen from here;"
        " --lazy unmounts nevertheless"
    )


def shown(users: Sequence[Holder]) -> str:
    """Return users for people, the first few of them by name."""
    more = f"; and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
    return "; ".join(str(user) for user in users[:_SHOWN]) + more


def _await_end(
    daemons: Daemons, device: str, mountpoint: str, lazy: bool, patience: float
) -> list[Holder]:
    pids = " and ".join(map(str, daemons.pids))
    deadline = time.monotonic() + patience
    seen: set[Holder] = set()
    while not daemons.wait(_LOOK):
        users = keepers(device)
        if not daemons.are_connected():
            users = []  # of another tree, which has been given the number since
        stay = [user for user in users if user in seen]
        seen = set(users)
        if stay and lazy:
            return stay
        if stay:
            raise MountError(
                f"{mountpoint} is unmounted here, but its daemon (process {pids}) serves on for"
                f" others: {shown(stay)}"
            )
        if time.monotonic() > deadline:
            raise MountError(
                f"{mountpoint} is unmounted, but its daemon (process {pids}) has not ended after"
                f" {patience:.0f} s; its log may say why"
            )
    return []
