"""Copying a directory tree such that the copy is of one point in time, or known not to be.

How it is known. Each inode of the source is marked before it is copied; then the tree is walked
again, and what has another mark by now is copied again. In a walk that finds no change, each
inode was as it had been copied, from before the copying ended until after the walk began: the
copy is the state of any moment between the two. Where changes are still found after some
rounds, they are reported. With reflinks each file is copied in one step, so the window is small.

What a program has not yet written is not in the copy; ``marks`` says what else is not seen.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from volfs.copies.file import Duplicator, attributes, settle
from volfs.copies.marks import ROUNDS, MarkedWalk, wait_a_tick
from volfs.linux.deletion import never
from volfs.linux.durable import DIRECTORY, NO_ENTRY, scanned
from volfs.linux.syscalls import syncfs
from volfs.linux.walking import Step, open_beneath
from volfs.volume import CopyReport


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


class _Copier(MarkedWalk):
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
        self._aside = 0
        self._duplicator = Duplicator(self._count, only_reflinked=only_reflinked)

    def run(self, src: int) -> CopyReport:
        for _ in range(ROUNDS):
            changes = self.look(src)
            if changes.count == 0:
                break
            if changes.uncertain:
                wait_a_tick()
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

    def arrive(self, parent: Step | None, step: Step) -> None:
        fresh = False
        if parent is None:
            step.dst = os.open(".", DIRECTORY, dir_fd=self._dst)
        else:
            step.dst, fresh = self._directory(step.name, parent)
        status = os.fstat(step.dst)
        step.known = self.is_known(step.status, status.st_ino)
        if not step.known:
            step.names = None if fresh else set()
            self.changes.add(self, step.name)
        # Root passes all permission checks. An owner passes only those that the mode grants.
        if os.geteuid() != 0 and status.st_mode & 0o700 != 0o700:
            os.fchmod(step.dst, 0o700)
            step.touched = True

    def _directory(self, name: str, parent: Step) -> tuple[int, bool]:
        """Open the copy of a directory; return whether it had to be made."""
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

    def leave(self, step: Step) -> None:
        if step.names is not None:
            with scanned(step.dst) as entries:
                surplus = [entry.name for entry in entries if entry.name not in step.names]
            for name in surplus:
                self._clear(name, step)
        if step.touched or not step.known:
            copy = attributes(step.src, step.status, step.dst)
            if not step.known:
                self.know(step.status, step.taken, copy)

    def miss(self, step: Step, name: str, covered: bool) -> None:
        if not covered:
            self.changes.add(self, name)
            return
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=step.dst)
            step.touched = True

    def _clear(self, name: str, step: Step) -> None:
        """Make way in a copy of a directory."""
        step.touched = True
        self._put_aside(name, step.dst)

    def _put_aside(self, name: str, dir_fd: int) -> None:
        """Move the entry ``name`` to the scratch directory.

        There it keeps its inode number until the end: another file with that number would be taken
        for the copy that this was.
        """
        self._aside += 1
        aside = f"aside-{self._aside}"
        try:
            os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=self._scratch)
        except FileNotFoundError:
            return
        except PermissionError:
            # A moved directory's ".." changes, so its owner needs to be able to write it.
            os.chmod(name, 0o700, dir_fd=dir_fd)
            os.rename(name, aside, src_dir_fd=dir_fd, dst_dir_fd=self._scratch)
        status = os.stat(aside, dir_fd=self._scratch, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            with suppress(PermissionError):  # its space can wait until the end
                flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(aside, flags, dir_fd=self._scratch))

    # All else

    def meet(self, step: Step, entry: os.DirEntry[str]) -> None:
        name = entry.name
        try:
            status = entry.stat(follow_symlinks=False)
            if self.is_known(status, _inode(name, step.dst)):
                return
            fd = open_beneath(step.src, name, os.O_PATH)
        except OSError as error:
            if error.errno == errno.ENOENT:
                self.changes.add(self, name)
            elif error.errno != errno.EXDEV:
                raise
            return
        with closing(fd):
            self.changes.add(self, name)
            if not stat.S_ISDIR(os.fstat(fd).st_mode):  # by now
                self._copy(name, fd, step)

    def _copy(self, name: str, fd: int, step: Step) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            self._place(name, fd, status, step)
            return
        with closing(_reopened(fd)) as src:
            settle(src)
            self._place(name, src, os.fstat(src), step)

    def _place(self, name: str, src: int, status: os.stat_result, step: Step) -> None:
        taken = time.time_ns()
        self._clear(name, step)
        if status.st_nlink < 2:
            self._make(name, step.dst, src, status, taken)
            return
        home = f"{status.st_dev:x}-{status.st_ino:x}"
        if not self.is_known(status, _inode(home, self._scratch)):
            self._put_aside(home, self._scratch)
            self._make(home, self._scratch, src, status, taken)
        try:
            os.link(
                home,
                name,
                src_dir_fd=self._scratch,
                dst_dir_fd=step.dst,
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            # The source has as many names as there can be: the one in the scratch directory is one
            # too many.
            os.rename(home, name, src_dir_fd=self._scratch, dst_dir_fd=step.dst)

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
    """Open for reading what is open with O_PATH: that file, never what has its name by now."""
    place, flags = f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(place, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(place, flags)  # O_NOATIME is for owners


def _inode(name: str, dir_fd: int) -> int:
    """Return the inode number of a directory entry, 0 when there is none."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return 0
