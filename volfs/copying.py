"""Copying a directory tree such that the copy is of one point in time, or known not to be.

How it is known. Each inode of the source gets a stamp (its change time, modification time and
size) before it is copied; then the tree is walked again, and what has another stamp by now is
copied again. In a walk that finds no change, each inode was as it had been copied, from before
the copying ended until after the walk began: the copy is the state of any moment between the
two. A directory has a stamp too, so that holds for names as well. Where changes are still found
after some rounds, they are reported. With reflinks each file is copied in one step, so the
window is small.

A change can hide in the granularity of change times, which were those of the clock's ticks
before Linux 6.13: a stamp taken within that time of the change is not trusted. Pages written
through a mapping change a file's times only when they were clean, so each file is written back
before its stamp is taken.

What is not seen: what a program has not yet written; writes through mappings on filesystems
that never write back (tmpfs), or by other hosts on network filesystems whose clocks or caches
differ; direct writes that are under way for longer than a tick. After a change of the clock
backwards, a stamp can recur.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from volfs.deletion import delete_tree
from volfs.duplicate import Duplicator, attributes, settle
from volfs.durable import DIRECTORY, NO_ENTRY, scanned
from volfs.syscalls import syncfs
from volfs.trash import never
from volfs.walking import Level, LostError, Walk, open_beneath

ROUNDS = 6
"""Walks through a source before those that change it have won."""
_TOLD = 10
_TICK = 20_000_000
"""Nanoseconds between two change times that may be the same: twice the slowest clock's tick."""
_WHOLE_SECONDS = 2_000_000_000
"""The same, for filesystems that keep no fractions."""


@dataclass(frozen=True, slots=True)
class CopyReport:
    """How a copy was made.

    ``changed`` is how many files and directories were changed by others while they were
    copied, of which ``examples`` names some: 0 when the copy is of one point in time.
    ``cloned`` files share their data with the source (reflinks), ``copied`` ones do not; empty
    ones are in neither. ``size`` is the bytes on disk that those had.
    """

    changed: int
    examples: tuple[str, ...]
    cloned: int
    copied: int
    size: int

    @property
    def is_point_in_time(self) -> bool:
        """Whether the copy is what the source was at one moment."""
        return self.changed == 0

    @property
    def is_reflinked(self) -> bool:
        """Whether all data is shared with the source."""
        return self.cloned > 0 and self.copied == 0


def copy_tree(
    src: int,
    dst: int,
    scratch: int,
    *,
    only_reflinked: bool = False,
    on_progress: Callable[[int], None] | None = None,
    stopping: Callable[[], bool] = never,
) -> CopyReport:
    """Make the empty directory ``dst`` a copy of the directory ``src``: see the module.

    ``scratch`` is an empty directory on the same filesystem as ``dst``, and is left with what
    has to be deleted. Nobody else may work in these two. Directories on which something is
    mounted are copied as empty ones, other mount points are left out. ``on_progress`` is told
    now and then how many bytes were copied.

    Raises InterruptedError when ``stopping()`` turns true, PermissionError where only root can
    copy something, NoReflinksError for ``only_reflinked``, and any other OSError, with the
    place in the tree as its file name. What is in ``dst`` then is of no use.
    """
    syncfs(src)  # all at once, which is quicker than one file after the other
    copier = _Copier(dst, scratch, only_reflinked, on_progress, stopping)
    return copier.run(src)


class Watch:
    """Notices what changes in a tree from ``begin`` to ``end``."""

    def __init__(self, top: int, *, stopping: Callable[[], bool] = never) -> None:
        self._top = top
        self._watcher = _Watcher(stopping)

    def begin(self) -> None:
        """Look at the tree as it is. Raises OSError, InterruptedError."""
        syncfs(self._top)
        for _ in range(ROUNDS):
            if not self._watcher.look(self._top).uncertain:
                return
            time.sleep(_TICK / 1e9)

    def end(self) -> tuple[int, tuple[str, ...]]:
        """Return how many files and directories have changed, and some of their names."""
        changes = self._watcher.look(self._top)
        return changes.count, tuple(changes.examples)


class _Changes:
    """What one walk found changed."""

    def __init__(self) -> None:
        self.count = 0
        self.examples: list[str] = []
        self.uncertain = False
        """Whether something was changed so lately that one more change might not show."""
        self.lost = False
        """Whether the walk was given up."""

    def add(self, walk: Walk, name: str) -> None:
        """Count what has a name where ``walk`` is."""
        self.count += 1
        if len(self.examples) < _TOLD:
            self.examples.append(walk.place(name))


class _StampedWalk(Walk):
    """A walk that tells what has changed since the last one.

    ``_known`` has for each inode of the source what its mark was, None when that was uncertain.
    """

    def __init__(self, stopping: Callable[[], bool]) -> None:
        super().__init__(stopping)
        self.changes = _Changes()
        self._known: dict[int, int | None] = {}

    def look(self, top: int) -> _Changes:
        """Walk once more; return what has changed since the last time."""
        self.changes = _Changes()
        try:
            self.walk(top)
        except LostError:
            self.changes.lost = True
            self.changes.add(self, ".")
        return self.changes

    def is_known(self, status: os.stat_result, copy: int) -> bool:
        """Return whether an inode is as it was, and ``copy`` the inode that is its copy."""
        return self._known.get(_key(status)) == _mark(status, copy)

    def know(self, status: os.stat_result, taken: int, copy: int) -> None:
        """Note how an inode was before it was copied; ``taken`` is when it was so."""
        age = abs(taken - status.st_ctime_ns)
        if age < (_TICK if status.st_ctime_ns % 1_000_000_000 else _WHOLE_SECONDS):
            self.changes.uncertain = True
            self._known[_key(status)] = None
        else:
            self._known[_key(status)] = _mark(status, copy)


class _Watcher(_StampedWalk):
    def arrive(self, parent: Level | None, level: Level) -> None:
        self._see(level.status, level.name)

    def meet(self, level: Level, entry: os.DirEntry[str]) -> None:
        try:
            self._see(entry.stat(follow_symlinks=False), entry.name)
        except FileNotFoundError:
            self.changes.add(self, entry.name)

    def leave(self, level: Level) -> None:
        pass

    def miss(self, level: Level, name: str, covered: bool) -> None:
        if not covered:
            self.changes.add(self, name)

    def _see(self, status: os.stat_result, name: str) -> None:
        if not self.is_known(status, 0):
            self.changes.add(self, name)
            self.know(status, time.time_ns(), 0)


class _Copier(_StampedWalk):
    """Copies in rounds.

    A file of several names is made in the scratch directory, named by its inode, and linked
    from there to each of its places: so it is found again without a path.
    """

    def __init__(
        self,
        dst: int,
        scratch: int,
        only_reflinked: bool,
        on_progress: Callable[[int], None] | None,
        stopping: Callable[[], bool],
    ) -> None:
        super().__init__(stopping)
        self._dst = dst
        self._scratch = scratch
        self._on_progress = on_progress
        self._size = 0
        self._duplicator = Duplicator(self._count, only_reflinked=only_reflinked)

    def run(self, src: int) -> CopyReport:
        for _ in range(ROUNDS):
            changes = self.look(src)
            if changes.count == 0:
                break
            if changes.uncertain:
                time.sleep(_TICK / 1e9)
        if changes.lost:
            raise OSError(
                errno.EAGAIN, "directories in it are moved about faster than they can be copied"
            )
        made = self._duplicator
        return CopyReport(
            changes.count, tuple(changes.examples), made.cloned, made.copied, self._size
        )

    def _count(self, size: int) -> None:
        self.tick()
        self._size += size
        if size and self._on_progress is not None:
            self._on_progress(self._size)

    # Directories

    def arrive(self, parent: Level | None, level: Level) -> None:
        fresh = False
        if parent is None:
            level.dst = os.open(".", DIRECTORY, dir_fd=self._dst)
        else:
            level.dst, fresh = self._directory(level.name, parent)
        status = os.fstat(level.dst)
        level.known = self.is_known(level.status, status.st_ino)
        if not level.known:
            level.names = None if fresh else set()
            self.changes.add(self, level.name)
        # Root passes all permission checks. An owner passes only those that the mode grants.
        if os.geteuid() != 0 and status.st_mode & 0o700 != 0o700:
            os.fchmod(level.dst, 0o700)
            level.touched = True

    def _directory(self, name: str, parent: Level) -> tuple[int, bool]:
        """Open the copy of a directory, and return whether it was made for that."""
        try:
            try:
                return os.open(name, DIRECTORY, dir_fd=parent.dst), False
            except PermissionError:
                os.chmod(name, 0o700, dir_fd=parent.dst)
                parent.touched = True
                return os.open(name, DIRECTORY, dir_fd=parent.dst), False
        except OSError as error:
            if error.errno not in NO_ENTRY:
                raise
        self._clear(name, parent)
        os.mkdir(name, 0o700, dir_fd=parent.dst)
        return os.open(name, DIRECTORY, dir_fd=parent.dst), True

    def leave(self, level: Level) -> None:
        if level.names is not None:
            with scanned(level.dst) as entries:
                surplus = [entry.name for entry in entries if entry.name not in level.names]
            for name in surplus:
                self._clear(name, level)
        if level.touched or not level.known:
            copy = attributes(level.src, level.status, level.dst)
            if not level.known:
                self.know(level.status, level.taken, copy)

    def miss(self, level: Level, name: str, covered: bool) -> None:
        if not covered:
            self.changes.add(self, name)
            return
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=level.dst)
            level.touched = True

    def _clear(self, name: str, level: Level) -> None:
        """Make way in a copy of a directory."""
        level.touched = True
        if not _remove(name, level.dst, self._stopping):
            self.tick()

    # All else

    def meet(self, level: Level, entry: os.DirEntry[str]) -> None:
        name = entry.name
        try:
            status = entry.stat(follow_symlinks=False)
            if self.is_known(status, _inode(name, level.dst)):
                return
            fd = open_beneath(level.src, name, os.O_PATH)
        except OSError as error:
            if error.errno == errno.ENOENT:
                self.changes.add(self, name)
            elif error.errno != errno.EXDEV:
                raise
            return
        with closing(fd):
            self.changes.add(self, name)
            if not stat.S_ISDIR(os.fstat(fd).st_mode):  # by now
                self._copy(name, fd, level)

    def _copy(self, name: str, fd: int, level: Level) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            self._place(name, fd, status, level)
            return
        with closing(_reopened(fd)) as src:
            settle(src)
            self._place(name, src, os.fstat(src), level)

    def _place(self, name: str, src: int, status: os.stat_result, level: Level) -> None:
        taken = time.time_ns()
        self._clear(name, level)
        if status.st_nlink < 2:
            self._make(name, level.dst, src, status, taken)
            return
        home = f"{status.st_dev:x}-{status.st_ino:x}"
        if not self.is_known(status, _inode(home, self._scratch)):
            _remove(home, self._scratch, self._stopping)
            self._make(home, self._scratch, src, status, taken)
        try:
            os.link(
                home,
                name,
                src_dir_fd=self._scratch,
                dst_dir_fd=level.dst,
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            # The source has as many names as there can be: ours in the scratch is one too many.
            os.rename(home, name, src_dir_fd=self._scratch, dst_dir_fd=level.dst)

    def _make(self, name: str, dir_fd: int, src: int, status: os.stat_result, taken: int) -> None:
        kind = stat.S_IFMT(status.st_mode)
        flags = os.O_PATH
        if kind == stat.S_IFREG:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink("", dir_fd=src), name, dir_fd=dir_fd)
        else:
            try:
                os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=dir_fd)
            except PermissionError:
                raise PermissionError(errno.EPERM, "only root can copy a device", name) from None
        with closing(
            os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
        ) as fd:
            if kind == stat.S_IFREG:
                self._duplicator.data(src, fd, status)
            self.know(status, taken, attributes(src, status, fd))


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Yield a descriptor and close it at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def _reopened(fd: int) -> int:
    """Open for reading what is open with O_PATH: a file, and never what has its name by now."""
    place, flags = f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(place, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(place, flags)  # O_NOATIME is for owners


def _key(status: os.stat_result) -> int:
    return status.st_dev << 64 | status.st_ino


def _mark(status: os.stat_result, copy: int) -> int:
    return hash((status.st_ctime_ns, status.st_mtime_ns, status.st_size, copy))


def _inode(name: str, dir_fd: int) -> int:
    """Return the inode number of a directory entry, 0 when there is none."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return 0


def _remove(name: str, dir_fd: int, stopping: Callable[[], bool]) -> bool:
    """Delete whatever has a name; return whether it is gone."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        return delete_tree(name, dir_fd=dir_fd, stopping=stopping)
    return True
