"""What getdents64(2) tells, in the structures of <linux/fuse.h>.

All functions raise OSError as the system call fails, and make it without the GIL. Node ids and
inode numbers are any unsigned 64 bits.
"""

def list_bare(
    fd: int, offset: int, room: int, plus: bool, base: int, own: int, parent: int, /
) -> bytes:
    """Entries of a directory from its own ``offset`` on, as many as fit into ``room`` bytes.

    They are struct fuse_dirent, or with ``plus`` struct fuse_direntplus whose node id is 0, which
    does not count as looked up. Inode numbers are those that the directory tells, or, where
    ``base`` is not 0, that plus the number's low 48 bits; ``own`` and ``parent`` those of the
    dots. Empty at the end, and of a directory that was removed. Raises OSError(EINVAL) if there
    is no room for the next entry. A descriptor has one position: one call at a time.
    """

def read_entries(fd: int, offset: int, count: int, /) -> list[tuple[bytes, int, int, int]]:
    """Name, inode number, d_type and following offset of up to ``count`` entries of a directory
    from its own ``offset`` on, the dots among them."""

def direntplus(entry: bytes, ino: int, offset: int, kind: int, name: bytes, /) -> bytes:
    """struct fuse_direntplus from a struct fuse_entry_out and the fields of the dirent, with
    ``kind`` as d_type."""
