"""Passthrough: the kernel reads, writes and maps open files on their backing files itself.

The rules of fs/fuse/iomode.c and passthrough.c, which answers EIO when they are broken: all opens
of an inode at the same time use one backing id, and none of them goes through the page cache of
FUSE. So an inode that is first opened with an id has all its opens passed through until the last is
closed, and one that is opened without has none.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os

from volfs.fs.agreement import Connection
from volfs.fs.inodes import Device, Inode, InodeTable
from volfs.linux import calls, syscalls
from volfs.linux.identity import UNRESERVED

with contextlib.suppress(ImportError):  # then there is no tap, and no device either
    from volfs.linux import _calls

log = logging.getLogger(__name__)

_FOR_GOOD = frozenset((errno.EPERM, errno.ELOOP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL))
"""What BACKING_OPEN answers where it will never work: not allowed, a filesystem stacked too deep,
one that cannot be read that way, another kernel."""


class Passthrough:
    """Backing ids of open files, on the descriptor of the FUSE device.

    Does nothing unless the kernel has agreed. ``refusal`` says why the kernel refuses it after all,
    once it was tried. ``noatime``: reading leaves times of access as they are.
    """

    def __init__(
        self, inodes: InodeTable, connection: Connection, *, noatime: bool = False
    ) -> None:
        self._inodes = inodes
        self._connection = connection
        self._noatime = noatime
        self._clones: dict[int, int] = {}
        self.count = 0
        self.refusal = ""

    def probe(self, directory: int) -> None:
        """Try it on the filesystem of ``directory``, and do without if the kernel refuses.

        May block for a moment. What cannot be tried is left to the first file that is opened.
        """
        agreement = self._connection.agreement
        if not agreement.passthrough:
            return
        try:
            fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
        except OSError:
            return
        try:
            number = _calls.backing_open(agreement.device, fd, UNRESERVED)
            _calls.backing_close(agreement.device, number)
        except OSError as error:
            self.refusal = error.strerror or str(error)
        finally:
            os.close(fd)

    def acquire(self, inode: Inode, fd: int = -1) -> int:
        """The backing id of a file that is being opened; 0 if the daemon has to serve it.

        ``fd`` is a descriptor of it, if there is one already.
        """
        if inode.backing:
            return inode.backing
        device = inode.device
        agreement = self._connection.agreement
        if not agreement.passthrough or self.refusal or inode.opens:
            return 0
        if self._noatime and device.anchor is None:
            return 0  # it could not be reached on a mount of its own
        if device.slow or not device.passthrough:
            # (On a network filesystem the identity above would be the one that its server sees.)
            return 0
        if fd < 0:
            fd = self._inodes.reach(inode)
        try:
            # The kernel then reads and writes with the identity that the daemon has now. Root's
            # could use the blocks that the filesystem reserves for root.
            if self._noatime:
                fd = self._on_clone(device, fd)
                try:
                    inode.backing = _calls.backing_open(agreement.device, fd, UNRESERVED)
                finally:
                    os.close(fd)
            else:
                inode.backing = _calls.backing_open(agreement.device, fd, UNRESERVED)
        except OSError as error:
            if error.errno in _FOR_GOOD:
                device.passthrough = False
            log.info("no passthrough on device %#x: %s", device.dev, error.strerror)
            return 0
        self.count += 1
        return inode.backing

    def _on_clone(self, device: Device, fd: int) -> int:
        """A further descriptor of a file, on a mount of its own that keeps no times of access.

        The kernel opens the backing file again on that mount, with the flags of its opener.
        """
        clone = self._clones.get(device.dev, -1)
        if clone < 0:
            assert device.anchor is not None
            tree = syscalls.open_tree_clone(device.anchor.fd)
            try:
                syscalls.set_noatime(tree)
                clone = os.open(f"/proc/self/fd/{tree}", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(tree)
            self._clones[device.dev] = clone
        handle, _ = calls.name_to_handle_at(fd)
        return syscalls.open_by_handle_at(clone, handle, os.O_PATH)

    def close(self) -> None:
        """Let go of the filesystems."""
        for clone in self._clones.values():
            os.close(clone)
        self._clones.clear()

    def release(self, inode: Inode, *, last: bool = False) -> None:
        """Give back the backing id of a file that nothing has open any more.

        ``last``: we have no descriptor of it, so that with the id its data may go.
        """
        if not inode.backing:
            return
        number, inode.backing = inode.backing, 0
        self.count -= 1
        device = self._connection.agreement.device
        if device < 0:
            return
        if last:
            self._inodes.descriptors.closing.later(lambda: _give_back(device, number))
        else:
            _give_back(device, number)


def _give_back(device: int, number: int) -> None:
    try:
        _calls.backing_close(device, number)
    except OSError as error:
        log.error("backing id %d cannot be given back: %s", number, error.strerror)
