"""A filesystem of a user that calls itself the tree of a scope, with a file in one volume.

``python -m tests.mount.pretender UID WORKSPACE MOUNTPOINT SCOPE VOLUME``
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import (
    ROOT_INODE,
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    RequestContext,
)

from tests.unprivileged import open_device_to_all

_VOLUME, _FILE = InodeT(2), InodeT(3)


class Pretender(pyfuse3.Operations):
    def __init__(self, volume: bytes) -> None:
        super().__init__()
        self._names = {(ROOT_INODE, volume): _VOLUME, (_VOLUME, b"file"): _FILE}

    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o644 if inode == _FILE else stat.S_IFDIR | 0o755
        entry.st_nlink = 1
        return entry

    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        inode = self._names.get((parent_inode, bytes(name)))
        if inode is None:
            raise FUSEError(errno.ENOENT)
        return await self.getattr(inode, ctx)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=FileHandleT(inode))

    async def release(self, fh: FileHandleT) -> None:
        pass


def main() -> None:
    uid, workspace, mountpoint, scope, volume = sys.argv[1:]
    open_device_to_all(Path(workspace))
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    operations = Pretender(os.fsencode(volume))
    pyfuse3.init(operations, mountpoint, {f"fsname={scope}", "subtype=volfs"})
    trio.run(pyfuse3.main)
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
