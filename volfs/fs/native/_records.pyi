"""What stat(2), statx(2) and getdents64(2) tell, in the structures of <linux/fuse.h>.

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
    @property
    def birth_ns(self) -> int:
        """When the inode was made; 0 where the filesystem does not say."""
    def attr_out(self, number: int, timeout_ns: int, /) -> bytes:
        """struct fuse_attr_out, with ``number`` as inode number."""

    def entry_out(
        self,
        node_id: int,
        generation: int,
        number: int,
        entry_timeout_ns: int,
        attr_timeout_ns: int,
        /,
    ) -> bytes:
        """struct fuse_entry_out, with ``number`` as inode number."""

def fstat(fd: int, /) -> Status:
    """fstat(2)."""

def fstatat(dir_fd: int, name: bytes, /) -> Status:
    """fstatat(2) of ``name`` in a directory, a symlink as itself."""

def open_path(dir_fd: int, name: bytes, /) -> tuple[int, Status] | None:
    """Open ``name`` in a directory with O_PATH, a symlink as itself, and look at it; None if it
    is absent."""

def statx_out(fd: int, flags: int, mask: int, number: int, timeout_ns: int, /) -> bytes:
    """struct fuse_statx_out of what ``fd`` refers to, from statx(2)."""

def list_bare(
    fd: int, offset: int, room: int, plus: bool, base: int, own: int, parent: int, /
) -> bytes:
    """Entries of a directory from its own ``offset`` on, as many as fit into ``room`` bytes.

    They are struct fuse_dirent, or with ``plus`` struct fuse_direntplus whose node id is 0, which
    does not count as looked up. Inode numbers are those that the directory tells, or, where
    ``base`` is not 0, what Device.node_id makes of them; ``own`` and ``parent`` those of the dots.
    Empty at the end, and of a directory that was removed. Raises OSError(EINVAL) if there
    is no room for the next entry. A descriptor has one position: one call at a time.
    """

def read_entries(fd: int, offset: int, count: int, /) -> list[tuple[bytes, int, int, int]]:
    """Name, inode number, d_type and following offset of up to ``count`` entries of a directory
    from its own ``offset`` on, the dots among them."""

def direntplus(entry: bytes, ino: int, offset: int, kind: int, name: bytes, /) -> bytes:
    """struct fuse_direntplus from a struct fuse_entry_out and the fields of the dirent, with
    ``kind`` as d_type."""
