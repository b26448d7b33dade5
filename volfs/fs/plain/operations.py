"""VolumeFS: the requests as pyfuse3 brings them.

One short method per request, no logic of its own: Requests does the work. pyfuse3's loop ends
with any exception but FUSEError, so nothing else may leave a method here.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from volfs.fs.files import Changes
from volfs.fs.inodes import ROOT_ID, DirectoryHandle, RootHandle
from volfs.fs.plain.entries import Entries
from volfs.fs.requests import Later, Requests, errno_of

log = logging.getLogger(__name__)

S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")


def boundary(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Let nothing but FUSEError out of a request handler: any other exception would end
    pyfuse3's loop."""

    @functools.wraps(handler)
    async def bounded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:  # noqa: BLE001  (errno_of logs what is unexpected)
            raise FUSEError(errno_of(error, handler.__name__)) from None

    return bounded


class VolumeFS(pyfuse3.Operations):
    """The store as a filesystem."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, requests: Requests, entries: Entries) -> None:
        super().__init__()
        self._requests = requests
        self._entries = entries

    # -- inodes and names

    @boundary
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        found = await _result(self._requests.names.lookup(parent_inode, name))
        if found is None:
            return self._entries.missing(name, in_root=parent_inode == ROOT_ID)
        return self._entries.attributes(*found)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        try:
            self._requests.names.forget(inode_list)
        except Exception:
            log.exception("forget failed unexpectedly")

    @boundary
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        status = await _result(self._requests.attributes.getattr(inode))
        return self._entries.attributes(self._requests.inodes[inode], status)

    @boundary
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
        )
        status = await _result(self._requests.attributes.setattr(inode, changes, fh, ctx))
        return self._entries.attributes(self._requests.inodes[inode], status)

    @boundary
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        target = await _result(self._requests.names.readlink(inode))
        return FileNameT(target)

    @boundary
    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        found = await _result(self._requests.names.mknod(parent_inode, name, mode, rdev, ctx))
        return self._entries.attributes(*found)

    @boundary
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        found = await _result(self._requests.names.mkdir(parent_inode, name, mode, ctx))
        return self._entries.attributes(*found)

    @boundary
    async def symlink(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        target: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        found = await _result(self._requests.names.symlink(parent_inode, name, target, ctx))
        return self._entries.attributes(*found)

    @boundary
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await _result(self._requests.names.unlink(parent_inode, name))

    @boundary
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await _result(self._requests.names.rmdir(parent_inode, name, ctx))

    @boundary
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        await _result(
            self._requests.names.rename(
                parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx
            )
        )

    @boundary
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        found = await _result(self._requests.names.link(inode, new_parent_inode, new_name))
        return self._entries.attributes(*found)

    # -- open files

    @boundary
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        opened = await _result(self._requests.files.open(inode, flags, ctx))
        handle = opened.handle
        return FileInfo(fh=FileHandleT(handle.number), keep_cache=handle.keeps_cache)

    @boundary
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        reply = await _result(self._requests.files.create(parent_inode, name, mode, flags, ctx))
        opened, found = reply
        return FileInfo(fh=FileHandleT(opened.handle.number)), self._entries.attributes(*found)

    @boundary
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        data: object = await _result(self._requests.files.read(fh, off, size))
        return cast(bytes, data)  # any buffer does

    @boundary
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return await _result(self._requests.files.write(fh, off, buf))

    @boundary
    async def flush(self, fh: FileHandleT) -> None:
        if not self._requests.inodes.root.device.slow:
            raise FUSEError(errno.ENOSYS)  # the kernel then does not ask again
        await _result(self._requests.files.flush(fh))

    @boundary
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._requests.files.fsync(fh, datasync)()

    @boundary
    async def release(self, fh: FileHandleT) -> None:
        await _result(self._requests.files.release(fh))

    # -- open directories

    @boundary
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        opened: DirectoryHandle | RootHandle
        opened = await _result(self._requests.directories.opendir(inode, ctx))
        return FileHandleT(opened.number)

    @boundary
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        handle = self._requests.handles.directory(fh)
        if isinstance(handle, RootHandle):
            await self._requests.threads.elsewhere(
                lambda: self._entries.list_root(handle, start_id, token), on="listing"
            )()
        elif handle.inode.device.slow:
            await self._requests.threads.elsewhere(
                lambda: self._entries.list_directory(handle, start_id, token), handle.inode
            )()
        else:
            self._entries.list_directory(handle, start_id, token)

    @boundary
    async def releasedir(self, fh: FileHandleT) -> None:
        await _result(self._requests.directories.releasedir(fh))

    @boundary
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        await _result(self._requests.directories.fsyncdir(fh, datasync))

    # -- the filesystem

    @boundary
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        status = await _result(self._requests.attributes.statfs())
        data = StatvfsData()
        data.f_bsize = status.f_bsize
        data.f_frsize = status.f_frsize
        data.f_blocks = status.f_blocks
        data.f_bfree = status.f_bfree
        data.f_bavail = status.f_bavail
        data.f_files = status.f_files
        data.f_ffree = status.f_ffree
        data.f_favail = status.f_favail
        data.f_namemax = status.f_namemax
        return data

    @boundary
    async def access(self, inode: InodeT, mode: int, ctx: RequestContext) -> bool:
        # default_permissions: the kernel decides from mode, owner and ACL and does not ask.
        raise FUSEError(errno.ENOSYS)

    # -- extended attributes

    @boundary
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        await _result(self._requests.attributes.setxattr(inode, name, value, 0, ctx))

    @boundary
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        value = await _result(self._requests.attributes.getxattr(inode, name))
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @boundary
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        names = await _result(self._requests.attributes.listxattr(inode, ctx))
        return [XAttrNameT(name) for name in names]

    @boundary
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        await _result(self._requests.attributes.removexattr(inode, name, ctx))


async def _result(answer: T | Later[T]) -> T:
    return await answer() if isinstance(answer, Later) else answer
