"""System calls of the hot path that Python lacks. They raise OSError as the call fails."""

def setfsids(uid: int, gid: int, /) -> None:
    """setfsuid(2) and setfsgid(2) for the calling thread. Do not report failure."""

def backing_open(device: int, fd: int, uid: int, /) -> int:
    """A backing id for the file behind ``fd`` (FUSE_DEV_IOC_BACKING_OPEN of linux/fuse.h on the
    FUSE device), with which the kernel reads and writes with ``uid`` as its fsuid."""

def backing_close(device: int, backing_id: int, /) -> None:
    """Give a backing id back (FUSE_DEV_IOC_BACKING_CLOSE)."""
