"""Inode: what is known of one inode that the kernel knows; Handle: what is open of it."""

from __future__ import annotations

from volfs.fs.inodes.device import Device

ROOT_ID = 1
"""Node id of the tree's root (FUSE_ROOT_ID in linux/fuse.h)."""

DEEPEST = 1 << 14
"""Directories above an inode that are walked at most."""


class Handle:
    """A file or directory that somebody has open, and that keeps its inode from being lost.

    ``fd`` is open on the backing file. ``number`` is what the kernel calls it by, once it is in
    the table; ``pid`` the process that opened it, for naming who uses a volume, ``uid`` its user;
    ``takes``: how many descriptors count against that. ``keeps_cache``: what the kernel has cached
    of it is still right.
    """

    __slots__ = ("fd", "inode", "keeps_cache", "number", "pid", "takes", "uid")

    def __init__(self, fd: int, inode: Inode, pid: int, *, keeps_cache: bool = False) -> None:
        self.fd = fd
        self.inode = inode
        self.number = 0
        self.pid = pid
        self.uid = 0
        self.takes = 0
        self.keeps_cache = keeps_cache


class Listed:
    """What Listings has noted of an inode.

    ``told``: a listing replied it without letting the kernel keep its attributes, so that the
    kernel has to ask for them. ``searched``: (a directory) how many entries were asked for since it
    was listed, the last at ``searched_at`` (time.monotonic). ``bare``: it was listed without
    attributes.
    """

    __slots__ = ("bare", "searched", "searched_at", "told")

    def __init__(self) -> None:
        self.told = False
        self.bare = False
        self.searched = 0
        self.searched_at = 0.0


class Inode:
    """One inode the kernel knows.

    ``number``: the inode number that users see, and its node id unless another inode has that.
    ``generation``: what tells it from another file that had its node id, 32 bits; part of the file
    handles that the kernel makes. ``replaced``: its number was given to another file.
    ``forgotten``: the kernel does not know it any more. ``fd``: its O_PATH descriptor, or -1.
    ``birth``: when it was made (nanoseconds since 1970, 0 if not known). ``young``: it was last
    pinned so soon after its birth that another file with its number can have the same one. See
    reaching.is_same. ``file_handle``: the filesystem's, once it was needed; ``reopens``: whether
    that leads back to it on the mount it was seen on. ``parent``, ``name``: where it was seen last.
    ``opens``: what is open of it, which pins it. ``pins``: worker threads that use its descriptor.
    ``gone``: its volume was removed. ``listed``: notes of Listings. ``backing``: its backing id
    while it is open for passthrough, else 0. ``locked``: it has or had POSIX locks. ``version``:
    how its content was when it was opened last.
    """

    __slots__ = (
        "backing",
        "birth",
        "device",
        "fd",
        "file_handle",
        "forgotten",
        "generation",
        "gone",
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
        "version",
        "young",
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
        self.birth = 0
        self.young = True
        self.file_handle: bytes | None = None
        self.reopens = False
        self.opens: list[Handle] | None = None
        self.pins = 0
        self.gone = False
        self.replaced = False
        self.forgotten = False
        self.backing = 0
        self.locked = False
        self.listed: Listed | None = None
        self.version: tuple[int, int, int] | None = None

    @property
    def key(self) -> tuple[int, int, int]:
        """Device number, inode number and birth."""
        return self.device.dev, self.ino, self.birth

    @property
    def is_pinned(self) -> bool:
        """Whether a descriptor of the daemon's keeps its number from being given away."""
        return self.fd >= 0 or bool(self.opens)

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

    @property
    def wants_flush(self) -> bool:
        """Whether the kernel is to report each close of it: there are locks to drop, or the
        filesystem has errors to report."""
        return self.locked or self.device.slow

    @property
    def is_volume_top(self) -> bool:
        """Whether it is the top directory of a volume."""
        return self.parent is not None and self.parent.node_id == ROOT_ID
