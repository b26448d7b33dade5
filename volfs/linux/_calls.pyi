"""System calls of frequent requests that Python lacks. They raise OSError as the call fails.

Those on inodes take O_PATH descriptors, and are made without the GIL.
"""

def setfsids(uid: int, gid: int, /) -> None:
    """setfsuid(2) and setfsgid(2) for the calling thread. Do not report failure."""

def backing_open(device: int, fd: int, uid: int, /) -> int:
    """A backing id for the file behind ``fd`` (FUSE_DEV_IOC_BACKING_OPEN of linux/fuse.h on the
    FUSE device), with which the kernel reads and writes with ``uid`` as its fsuid."""

def backing_close(device: int, backing_id: int, /) -> None:
    """Give a backing id back (FUSE_DEV_IOC_BACKING_CLOSE)."""

def chown(fd: int, uid: int, gid: int, /) -> None:
    """fchownat(2) of what ``fd`` refers to; -1 leaves an id alone."""

def chmod(fd: int, mode: int, /) -> None:
    """fchmodat2(2) of what ``fd`` refers to; ENOSYS before Linux 6.6."""

def utimens(fd: int, atime_sec: int, atime_nsec: int, mtime_sec: int, mtime_nsec: int, /) -> None:
    """utimensat(2) of what ``fd`` refers to; nanoseconds may be UTIME_NOW or UTIME_OMIT."""

def link(fd: int, directory: int, name: bytes, /) -> None:
    """linkat(2) of what ``fd`` refers to, without following it. Needs CAP_DAC_READ_SEARCH."""

def getxattr(fd: int, name: bytes, /) -> bytes | None:
    """getxattr(2) of what ``fd`` refers to, through /proc; None for an attribute that it does not
    have, as is the case for most that are asked for."""

def name_to_handle_at(fd: int, /) -> tuple[bytes, int]:
    """handle_type and f_handle of the file handle of what ``fd`` refers to, as bytes, and the id
    of the mount it is seen on (name_to_handle_at(2))."""
