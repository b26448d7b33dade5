"""Inode: what is known of one inode that the kernel knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volfs.fs.inodes.device import Device

if TYPE_CHECKING:
    from volfs.fs.inodes.handles import DirectoryHandle, FileHandle

ROOT_ID = 1
"""Node id of the tree's root (FUSE_ROOT_ID in linux/fuse.h)."""

DEEPEST = 1 << 14
"""Directories above an inode that are walked at most."""


class Inode:
    """One inode the kernel knows.

    ``number``: the inode number that users see, and its node id unless another has that.
    ``generation``: how many files had its node id before. ``replaced``: its number was given to
    another file. ``fd``: its O_PATH descriptor, or -1.
    ``handle``: its file handle, once it was needed; ``reopens``: whether the handle leads back to
    it on the mount it was seen on. ``parent``, ``name``: where it was seen last. ``opens``: open
    handles, which pin it. ``pins``: worker threads that use its descriptor. ``gone``: its volume
    was removed. ``listed``: replied by a listing in such a way that we hear if its attributes are
    asked for. ``searched``: (a directory) how many entries were asked for since it was listed,
    the last at ``searched_at`` (time.monotonic); ``bare``: it was listed without attributes.
    ``backing``: its backing id while it is open for passthrough, else 0. ``locked``: it has or
    had POSIX locks.
    """

    __slots__ = (
        "backing",
        "bare",
        "device",
        "fd",
        "generation",
        "gone",
        "handle",
        "ino",
        "listed",
        "locked",
        "lookups",
        "name",
        "node_id",
        "number",
        "opens",
        "parent",
        "pins",
        "reopens",
        "replaced",
        "searched",
        "searched_at",
        "version",
    )

    def __init__(
        self,
        node_id: int,
        number: int,
        device: Device,
        ino: int,
        parent: Inode | None,
        name: bytes,
    ) -> None:
        self.node_id = node_id
        self.number = number
        self.generation = 0
        self.device = device
        self.ino = ino
        self.lookups = 0
        self.parent = parent
        self.name = name
        self.fd = -1
        self.handle: bytes | None = None
        self.reopens = False
        self.opens: list[FileHandle | DirectoryHandle] | None = None
        self.pins = 0
        self.gone = False
        self.replaced = False
        self.backing = 0
        self.locked = False
        self.bare = False
        self.listed = False
        self.searched = 0
        self.searched_at = 0.0
        self.version: tuple[int, int, int] | None = None

    @property
    def volume_top(self) -> Inode:
        """The top directory of the volume this inode is in, as far as is known."""
        inode = self
        # Bounded, as directories moved behind the mount can be remembered inside each other.
        for _ in range(DEEPEST):
            if inode.parent is None or inode.parent.node_id == ROOT_ID:
                break
            inode = inode.parent
        return inode
