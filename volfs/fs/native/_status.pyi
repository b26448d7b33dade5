"""What stat(2) and statx(2) tell, in the structures of <linux/fuse.h>.

All functions raise OSError as the system call fails, and make it without the GIL. Times are in
nanoseconds; node ids and inode numbers any unsigned 64 bits.
"""

class Status:
    """One struct stat; made by the functions below."""

    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_mode(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_rdev(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_blksize(self) -> int: ...
    @property
    def st_blocks(self) -> int: ...
    @property
    def st_atime_ns(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...
    def attr_out(self, number: int, timeout_ns: int, /) -> bytes:
        """struct fuse_attr_out, with ``number`` as inode number."""

    def entry_out(
        self, node_id: int, number: int, entry_timeout_ns: int, attr_timeout_ns: int, /
    ) -> bytes:
        """struct fuse_entry_out, with ``number`` as inode number and generation 0."""

def fstat(fd: int, /) -> Status:
    """fstat(2)."""

def fstatat(dir_fd: int, name: bytes, /) -> Status:
    """fstatat(2) of ``name`` in a directory, a symlink as itself."""

def open_path(dir_fd: int, name: bytes, /) -> tuple[int, Status] | None:
    """Open ``name`` in a directory with O_PATH, a symlink as itself, and look at it; None if it
    is absent."""

def statx_out(fd: int, flags: int, mask: int, number: int, timeout_ns: int, /) -> bytes:
    """struct fuse_statx_out of what ``fd`` refers to, from statx(2)."""
