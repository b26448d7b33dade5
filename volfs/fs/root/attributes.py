"""The extended attributes of the root and of volumes that volfs answers itself (``volfs.*``)."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping

from volfs.fs.inodes import Inode, InodeTable
from volfs.fs.native import birth_ns, fstat
from volfs.fs.root.holders import open_top
from volfs.linux.syscalls import os_error
from volfs.store import VolumeStore
from volfs.volume import Volume

XATTR_PREFIX = b"volfs."

_LABEL_PREFIX = b"volfs.label."


class VolumeAttributes:
    """A volume's top directory has what the store knows of it, the root has counters.

    ``statistics`` gives the counters, for finding leaks.
    """

    def __init__(
        self,
        store: VolumeStore,
        inodes: InodeTable,
        statistics: Callable[[], Mapping[str, object]],
    ) -> None:
        self._store = store
        self._inodes = inodes
        self._statistics = statistics

    def get(self, inode: Inode, name: bytes) -> bytes:
        """A ``volfs.*`` attribute of a volume's top directory or of the root. May block."""
        if inode is self._inodes.root:
            if name == b"volfs.stats":
                return json.dumps(dict(self._statistics())).encode()
            raise os_error(errno.ENODATA)
        volume = self._volume_of(inode)
        if name == b"volfs.name":
            return volume.name.encode()
        if name == b"volfs.driver":
            return volume.driver_name.encode()
        if name == b"volfs.created_at" and volume.created_at is not None:
            return volume.created_at.isoformat().encode()
        if name == b"volfs.users":
            return "\n".join(map(str, self._store.holders(volume.name))).encode()
        if name.startswith(_LABEL_PREFIX):
            value = volume.labels.get(name[len(_LABEL_PREFIX) :].decode(errors="replace"))
            if value is not None:
                return value.encode()
        raise os_error(errno.ENODATA)

    def set(self, inode: Inode, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set a label, with ``flags`` as for setxattr(2). May block.

        The other attributes are read-only.
        """
        self._change(inode, name, value, flags)

    def remove(self, inode: Inode, name: bytes) -> None:
        """Remove a label. May block."""
        self._change(inode, name, None, 0)

    def _change(self, inode: Inode, name: bytes, value: bytes | None, flags: int) -> None:
        if inode is self._inodes.root or not name.startswith(_LABEL_PREFIX):
            # As for other attributes that a filesystem only shows (trusted.overlay, ceph.*).
            raise OSError(errno.EPERM, "only volfs.label.KEY can be set")
        key = name[len(_LABEL_PREFIX) :]
        try:
            text = key.decode()
            content = None if value is None else value.decode()
        except UnicodeDecodeError:
            raise OSError(errno.EINVAL, "labels are UTF-8 text") from None
        if not text:
            raise OSError(errno.EINVAL, "a label needs a key")

        def change(labels: Mapping[str, str]) -> Mapping[str, str]:
            if content is None:
                if text not in labels:
                    raise os_error(errno.ENODATA)
                return {key: value for key, value in labels.items() if key != text}
            if flags & os.XATTR_CREATE and text in labels:
                raise os_error(errno.EEXIST)
            if flags & os.XATTR_REPLACE and text not in labels:
                raise os_error(errno.ENODATA)
            return {**labels, text: content}

        self._store.change_labels(self._volume_of(inode).name, change)

    def _volume_of(self, inode: Inode) -> Volume:
        if inode.parent is not self._inodes.root:
            raise os_error(errno.ENODATA)  # below its top directory a volume has no such attributes
        volume = self._store.get(inode.name.decode())
        fd = open_top(volume)
        try:
            status = fstat(fd)
        finally:
            os.close(fd)
        if (status.st_dev, status.st_ino, birth_ns(status)) != inode.key:
            # The name has become another volume's: the kernel has checked permission for this one.
            raise os_error(errno.ESTALE)
        return volume
