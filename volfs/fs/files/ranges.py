"""Ranges of open files: allocating them, looking for holes, copying.

Plain functions on descriptors that are open on backing files. Whatever the backing filesystem
answers is the answer: OSError passes through with its errno. None of them may answer ENOSYS, which
the kernel takes as final: it never asks again for the rest of the mount.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

from volfs.linux import syscalls
from volfs.linux.syscalls import os_error

QUICK_COPY = 128 << 10
"""Bytes that are copied sooner than a worker thread is woken: 40 µs at most in the page cache."""

_QUICK_ALLOCATION = 4 << 20

_FARTHEST = (1 << 63) - 1

_FIRST_STEP = 16 << 20
_LEAST_STEP = 1 << 20
_GREATEST_STEP = 1 << 30
_SHORT_NS = 20_000_000
_LONG_NS = 100_000_000


def allocation_is_quick(mode: int, length: int) -> bool:
    """Whether ``allocate`` does not wait for a disk and is done within about a millisecond.

    Reserving blocks is a matter of the journal, or, on tmpfs, of filling pages with zeros.
    Holes and zeroed ranges are not quick: what is dirty in them is written back first.
    """
    return not mode & ~syscalls.FALLOC_FL_KEEP_SIZE and length <= _QUICK_ALLOCATION


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) on an open file.

    The kernel passes the modes 0, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE and refuses the others
    itself (EOPNOTSUPP, fuse_file_fallocate in fs/fuse/file.c). Clears setuid and setgid bits, as
    the daemon is without CAP_FSETID. Blocks come from the reserve where the calling thread's
    fsuid may use it: call it as the caller (Identity.acting).
    """
    try:
        syscalls.fallocate(fd, mode, offset, length)
    except OSError as error:
        raise _known(error) from None


def seek(fd: int, offset: int, whence: int, *, whole: bool = False) -> int:
    """The offset of the next data (os.SEEK_DATA) or hole (os.SEEK_HOLE) from ``offset`` on.

    ``whole``: the file is data up to its end, as lseek(2) allows. That has to be the answer while
    somebody may have written to a page of a mapping that the kernel has not written back yet: it
    does not do so for this request, and what copies the file would take data for a hole.

    Raises OSError(ENXIO) past the end of the file and, for data, in its last hole. Moves the
    descriptor's own position, which nothing else uses. A negative offset, or the unsigned number
    that it looks like on the wire, is as far past the end. Other values of ``whence`` are EINVAL:
    the kernel answers them itself.
    """
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise os_error(errno.EINVAL)
    if whole:
        size = os.fstat(fd).st_size
        if not 0 <= offset < size:
            raise os_error(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else size
    try:
        return os.lseek(fd, min(offset, _FARTHEST), whence)
    except OSError as error:
        raise _known(error) from None


def copy(
    source_fd: int,
    source_offset: int,
    target_fd: int,
    target_offset: int,
    length: int,
    flags: int,
    stopping: Callable[[], bool],
) -> int:
    """Copy a range from one open file to another and return how many bytes were copied.

    In steps of copy_file_range(2), until all is copied or the source ends, something fails after
    the first step, or ``stopping()`` is true. A copy that is cut short is a success, and the first
    step is always made: so a process that is interrupted again and again still gets on.

    The steps grow while they are done at once, as they are where the filesystem shares blocks
    (a reflink of 1 GiB is as quick as one of 1 MiB), and shrink when they take long: an interrupted
    caller waits for one step, even when it is killed.

    Raises OSError when nothing was copied. Upon EOPNOTSUPP and EXDEV (different filesystems) the
    kernel copies by reading and writing. ``flags`` is 0 in all kernels so far; EINVAL otherwise.
    """
    if flags:
        raise os_error(errno.EINVAL)
    copied = 0
    step = _FIRST_STEP
    while copied < length:
        start = time.monotonic_ns()
        try:
            count = os.copy_file_range(
                source_fd,
                target_fd,
                min(step, length - copied),
                source_offset + copied,
                target_offset + copied,
            )
        except OSError as error:
            if copied:
                break
            raise _known(error) from None
        if count == 0:
            break
        copied += count
        if stopping():
            break
        spent = time.monotonic_ns() - start
        if spent < _SHORT_NS:
            step = min(step * 2, _GREATEST_STEP)
        elif spent > _LONG_NS:
            step = max(step // 2, _LEAST_STEP)
    return copied


def _known(error: OSError) -> OSError:
    """The error to answer: ENOSYS from one backing file must not end this kind of request for
    all."""
    if error.errno == errno.ENOSYS:
        return os_error(errno.EOPNOTSUPP)
    return error
