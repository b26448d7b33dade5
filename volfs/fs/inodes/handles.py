"""Open files and directories, by the number that the kernel has for them."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator

from volfs.fs.inodes.device import Device
from volfs.fs.inodes.inode import Handle, Inode
from volfs.linux.syscalls import os_error

Data = bytes | bytearray | memoryview

_ONCE = os.O_TRUNC | os.O_TMPFILE
"""Flags that say how a file was made, not how it is open."""

_SYNCHRONOUS = os.O_SYNC | os.O_DSYNC
_PAGE = os.sysconf("SC_PAGE_SIZE")

_FOR_LISTING = 2
"""Descriptors of an open directory: that of a listing under way is a second."""

_SPARE = 64
"""Descriptors at most of open files that could do without: opening one again costs 5 µs, and a
file just made or opened for writing has one already."""

_SECONDS = 64
"""Second descriptors at most: few programs append and write elsewhere through one open file."""


class FileHandle(Handle):
    """An open file: ``fd`` is open on the backing file with the opener's access mode.

    ``fd`` is -1 while nothing needs it: the kernel reads and writes the backing file itself.
    ``fd_appends``: it is itself open with O_APPEND. ``second``: a further descriptor that is so if
    ``fd`` is not, and is not if ``fd`` is; -1 until it is needed: see Writing.
    ``flags``: those to open it again with. ``sync_error``: the errno of a failed fsync that this
    opener has yet to be told of, else 0. ``direct``: it was opened with O_DIRECT.
    ``synchronous``: writes wait for the disk. ``appending``: it was opened with O_APPEND.
    ``writes``: the opener may write to it; ``writes_maps``: through mappings, too. ``flocked``: it
    has a flock, which is on ``fd``.
    """

    __slots__ = (
        "appending",
        "direct",
        "fd_appends",
        "flags",
        "flocked",
        "second",
        "sync_error",
        "synchronous",
        "writes",
        "writes_maps",
    )

    def __init__(
        self, fd: int, inode: Inode, flags: int, pid: int, *, keeps_cache: bool = False
    ) -> None:
        super().__init__(fd, inode, pid, keeps_cache=keeps_cache)
        self.second = -1
        self.flags = flags & ~_ONCE
        self.sync_error = 0
        self.synchronous = bool(flags & _SYNCHRONOUS)
        self.appending = bool(flags & os.O_APPEND)
        self.fd_appends = appends_itself(flags, inode.device)
        self.direct = bool(flags & os.O_DIRECT)
        self.writes = bool(flags & os.O_ACCMODE)
        self.writes_maps = flags & os.O_ACCMODE == os.O_RDWR
        self.flocked = False

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those that there are at the moment."""
        return tuple(fd for fd in (self.fd, self.second) if fd >= 0)

    def is_append(self, data: Data, offset: int, told: bool | None) -> bool:
        """Whether ``data``, written at ``offset``, belongs to the end of the file.

        The kernel gives an append the offset that it takes for the end. Where somebody has
        appended behind the mount meanwhile, that is not the end, and the write still goes there.
        But pages of a mapping are written back through a descriptor by which the file was mapped:
        those go where they belong. ``told`` says which it is; where that is not known (None),
        whole pages or the last of the file are taken for pages of a mapping, if there may be one.
        """
        if told is not None:
            return told
        if not (self.appending and self.writes_maps):
            return self.appending
        size = os.fstat(self.fd).st_size
        end = offset + memoryview(data).nbytes
        pages = offset % _PAGE == 0 and (end % _PAGE == 0 or end == size)
        return not (offset > size or (pages and offset < size))

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)


class DirectoryHandle(Handle):
    """An open directory: a listing that only grows, so that an offset stays what it was.

    The offset of an entry is its position in the listing. Names are read from the backing
    directory as they are asked for; rewinding (offset 0) starts a new listing.
    """

    __slots__ = ("_entries", "_error", "_source")

    def __init__(self, fd: int, inode: Inode, pid: int, *, keeps_cache: bool = False) -> None:
        super().__init__(fd, inode, pid, keeps_cache=keeps_cache)
        self._entries: list[tuple[str, int, int]] = []
        self._source: Iterator[os.DirEntry[str]] | None = None
        self._error: OSError | None = None

    def rewind(self) -> None:
        """Forget the listing; the next one shows the directory as it is then."""
        self.end()
        self._entries = []
        self._error = None
        os.lseek(self.fd, 0, os.SEEK_SET)
        self._source = os.scandir(self.fd)

    def entry(self, position: int) -> tuple[str, int, int] | None:
        """Name, inode number and type (as S_IFMT of st_mode, 0 if unknown) of the entry at
        ``position`` (0 is the first), or None past the end.

        Raises the OSError with which reading the directory ended, as often as asked.
        """
        entries = self._entries
        if self._source is None and not entries and self._error is None:
            self.rewind()
        while position >= len(entries):
            if self._error is not None:
                raise self._error
            try:
                found = next(self._source, None) if self._source is not None else None
            except FileNotFoundError:
                found = None  # the directory itself was removed, and so is empty
            except OSError as error:
                self._error = error
                raise
            if found is None:
                self.end()
                return None
            entries.append((found.name, found.inode(), _type(found)))
        return entries[position]

    def end(self) -> None:
        """Close the reading side of the listing."""
        source, self._source = self._source, None
        if source is not None:
            source.close()  # type: ignore[attr-defined]  # a ScandirIterator

    def close(self) -> None:
        self.end()
        os.close(self.fd)


class RootHandle:
    """The open root directory: its entries (offset and name) when it was opened or rewound."""

    __slots__ = ("entries", "number")

    def __init__(self) -> None:
        self.entries: list[tuple[int, str]] | None = None
        self.number = 0


class HandleTable:
    """Numbers for open files and directories.

    ``descriptors`` is how many the open files have of their own. Of those that the kernel serves
    itself at most ``_SPARE`` have one: see ``spare``. ``taken``: how many those of a user have
    that are not to be spared, by uid, directories among them.
    """

    def __init__(self) -> None:
        self.descriptors = 0
        self.taken: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, DirectoryHandle | RootHandle] = {}
        self._spared: OrderedDict[FileHandle, None] = OrderedDict()
        self._doubled: set[FileHandle] = set()

    def add_file(self, handle: FileHandle) -> int:
        """Keep an open file and return its number."""
        number = handle.number = next(self._numbers)
        self._files[number] = handle
        if handle.fd >= 0:
            self.descriptors += 1
            if not handle.inode.backing:
                self._take(handle, 1)
        _pin(handle)
        return number

    def add_directory(self, handle: DirectoryHandle | RootHandle) -> int:
        """Keep an open directory and return its number."""
        number = handle.number = next(self._numbers)
        self._directories[number] = handle
        if isinstance(handle, DirectoryHandle):
            self._take(handle, _FOR_LISTING)
            _pin(handle)
        return number

    def spare(self, handle: FileHandle, can_spare: Callable[[Inode, int], bool]) -> None:
        """Note that the descriptor of an open file was used, and can be opened again.

        If there are too many of the kind now, that of another is closed, unless ``can_spare``
        says of its inode and descriptor that this one is needed.
        """
        if handle.flocked:
            return
        spared = self._spared
        spared[handle] = None
        spared.move_to_end(handle)
        if len(spared) <= _SPARE:
            return
        other = next(iter(spared))
        if not can_spare(other.inode, other.fd):
            spared.move_to_end(other)
            return
        del spared[other]
        fd, other.fd = other.fd, -1
        self.descriptors -= 1
        os.close(fd)  # not the last: the kernel has another

    def keep_second(self, handle: FileHandle, fd: int) -> bool:
        """Take over ``fd``, a second descriptor of an open file.

        False, and it is not, if the file has one already or there are too many of the kind.
        """
        if handle.second >= 0 or len(self._doubled) >= _SECONDS:
            return False
        handle.second = fd
        self._doubled.add(handle)
        self.descriptors += 1
        return True

    def flock(self, handle: FileHandle, has: bool) -> None:
        """Note that an open file has a flock now, or has none.

        Its descriptor is not to be spared meanwhile, and so counts as its user's.
        """
        handle.flocked = has
        if not handle.inode.backing:
            return
        if has:
            self._spared.pop(handle, None)
            if not handle.takes:
                self._take(handle, 1)
        else:
            self._give(handle)
            handle.takes = 0
            if handle.fd >= 0:
                self._spared[handle] = None

    def file(self, number: int) -> FileHandle:
        """The open file with this number. Raises OSError(EBADF)."""
        try:
            return self._files[number]
        except KeyError:
            raise os_error(errno.EBADF) from None

    def directory(self, number: int) -> DirectoryHandle | RootHandle:
        """The open directory with this number. Raises OSError(EBADF)."""
        try:
            return self._directories[number]
        except KeyError:
            raise os_error(errno.EBADF) from None

    def remove_file(self, number: int) -> FileHandle | None:
        """Drop an open file from the table and return it; its descriptors are still open."""
        handle = self._files.pop(number, None)
        if handle is not None:
            self.descriptors -= (handle.fd >= 0) + (handle.second >= 0)
            self._spared.pop(handle, None)
            self._doubled.discard(handle)
            self._give(handle)
            _unpin(handle)
        return handle

    def remove_directory(self, number: int) -> DirectoryHandle | RootHandle | None:
        """Drop an open directory from the table and return it; it is still to be closed."""
        handle = self._directories.pop(number, None)
        if isinstance(handle, DirectoryHandle):
            self._give(handle)
            _unpin(handle)
        return handle

    @property
    def used(self) -> int:
        """How many descriptors there may be of all that is open."""
        return self.descriptors + _FOR_LISTING * len(self._directories)

    @property
    def open_files(self) -> int:
        """How many files are open."""
        return len(self._files)

    @property
    def open_directories(self) -> int:
        """How many directories are open."""
        return len(self._directories)

    def _take(self, handle: Handle, count: int) -> None:
        handle.takes = count
        self.taken[handle.uid] = self.taken.get(handle.uid, 0) + count

    def _give(self, handle: Handle) -> None:
        if handle.takes:
            left = self.taken[handle.uid] - handle.takes
            if left:
                self.taken[handle.uid] = left
            else:
                del self.taken[handle.uid]

    def __iter__(self) -> Iterator[Handle]:
        """Everything open below the root."""
        yield from list(self._files.values())
        for handle in list(self._directories.values()):
            if isinstance(handle, DirectoryHandle):
                yield handle

    def close(self) -> None:
        """Close everything."""
        for file in self._files.values():
            file.close()
        for directory in self._directories.values():
            if isinstance(directory, DirectoryHandle):
                directory.close()
        self._files.clear()
        self._directories.clear()
        self._spared.clear()
        self._doubled.clear()


def appends_itself(flags: int, device: Device) -> bool:
    """Whether the descriptor for an open with these flags is itself open with O_APPEND.

    On a local filesystem it need not be, and so does for any write: see Writing.
    """
    return device.slow and bool(flags & os.O_APPEND)


def _type(entry: os.DirEntry[str]) -> int:
    # Known from d_type, without a system call; the rarer types need one.
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFLNK if entry.is_symlink() else 0


def _pin(handle: Handle) -> None:
    if handle.inode.opens is None:
        handle.inode.opens = [handle]
    else:
        handle.inode.opens.append(handle)


def _unpin(handle: Handle) -> None:
    opens = handle.inode.opens
    if opens is not None and handle in opens:
        opens.remove(handle)
        if not opens:
            handle.inode.opens = None
