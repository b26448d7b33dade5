"""Mounted: the daemon's own mount, told from any other by the device number of its superblock.

Another daemon may have mounted at the same place since, and paths and mount ids are given again.
The device number is not, while the connection to the kernel lives, because the superblock does.
No function here asks the tree anything: a daemon that waits for itself cannot be killed.
"""

from __future__ import annotations

import logging
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from volfs.fs.mount import daemons
from volfs.linux import syscalls
from volfs.linux.devices import fdinfo
from volfs.linux.durable import PLACE
from volfs.linux.mountinfo import Mount, MountTable
from volfs.store import FSTYPE

log = logging.getLogger(__name__)

_HELPER = str(Path(__file__).with_name("detach.py"))


class Mounted:
    """One mount that this process serves. ``target`` is where it was made, ``device`` its
    superblock's number, ``connection`` the descriptor of the FUSE device."""

    def __init__(self, target: str, device: str, connection: int) -> None:
        """Mark this process as the one that serves it, until ``end``."""
        self.target = target
        self.device = device
        self._connection = connection
        self._mark = daemons.mark(device)

    def leave(self) -> None:
        """Take the mount away from new users while its requests are still being answered.

        Returns when what was written to it through mappings has come, if nobody is left that
        uses it. May block for as long.
        """
        if os.geteuid() != 0:
            if self._is_there():
                self._ask_fusermount()
            return
        held = self._hold()
        if held is None:
            return
        # By a process of its own: who drops a filesystem's last reference waits in the kernel
        # for what is still to be written, which is for us to answer.
        command = [sys.executable, "-IS", _HELPER, str(held)]
        try:
            process = subprocess.Popen(command, pass_fds=(held,), stdin=subprocess.DEVNULL)
        except OSError as error:
            log.error("cannot unmount %s yet: %s", self.target, error)
            return
        finally:
            os.close(held)
        process.wait()

    def end(self, close_connection: Callable[[], None]) -> None:
        """Close the connection, and take the mount away if it is still there."""
        held = self._hold() if os.geteuid() == 0 else None
        there = held is not None or self._is_there()
        # From here on nobody waits for an answer, so that unmounting does not either.
        close_connection()
        if held is not None:
            try:
                syscalls.umount2(f"/proc/self/fd/{held}".encode(), syscalls.MNT_DETACH)
            except OSError as error:
                log.error("cannot unmount %s: %s", self.target, error.strerror)
            os.close(held)
        elif there:
            self._ask_fusermount()
        os.close(self._mark)

    def _is_connected(self) -> bool:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return not any(events & select.POLLERR for _, events in poll.poll(0))

    def _is_there(self) -> bool:
        """Whether what is seen at the target is this mount."""
        way = MountTable.of_process().way_to(self.target)
        return bool(way) and self._is_this(way[-1]) and self._is_connected()

    def _is_this(self, mount: Mount | None) -> bool:
        return mount is not None and mount.device == self.device and mount.root == "/"

    def _hold(self) -> int | None:
        """A descriptor of the mount's root, which keeps it and its number; None if it is gone.

        O_PATH: the filesystem is not asked.
        """
        if not self._is_there():
            return None
        fd = -1
        try:
            fd = os.open(self.target, PLACE)
            found = MountTable.of_process().get(int(fdinfo(fd)["mnt_id"]))
            if self._is_this(found) and self._is_connected():
                return fd
        except OSError as error:
            log.info("%s cannot be reached: %s", self.target, error.strerror)
        if fd >= 0:
            os.close(fd)
        return None

    def _ask_fusermount(self) -> None:
        command = ["fusermount3", "-u", "-z", "--", self.target]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            log.error("cannot unmount %s: fusermount3: %s", self.target, error.strerror)
            return
        if done.returncode != 0 and self._is_there():
            log.error("cannot unmount %s: %s", self.target, done.stderr.strip())


def own_device(connection: int, target: str, before: MountTable) -> str | None:
    """Return the device number of what was just mounted at ``target`` with that descriptor of
    the FUSE device; None where that cannot be told. ``before`` is the table as it was.

    Linux 6.18 says it. Before that it is the one tree that is new there, unless another daemon
    mounted at the same place at the same moment.
    """
    told = fdinfo(connection).get("fuse_connection")
    if told is not None:
        return f"0:{told}"
    known = {mount.device for mount in before}
    new = {
        mount.device
        for mount in MountTable.of_process()
        if mount.fstype == FSTYPE and mount.point == target and mount.device not in known
    }
    return new.pop() if len(new) == 1 else None
