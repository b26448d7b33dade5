"""Negotiation: what is agreed with the kernel in the INIT reply.

libfuse answers INIT; the answer is changed on its way. Only what the request offers is asked for.
"""

from __future__ import annotations

import enum
import logging
import sys
from dataclasses import dataclass
from struct import Struct

from volfs.fs.agreement import Agreement

log = logging.getLogger(__name__)

_FLAGS_IN = Struct("=12xI")
_FLAGS_IN_2 = Struct("=16xI")
_FLAGS_OUT = 12
_BACKGROUND_OUT = 16
_MAX_WRITE_OUT = 20
_FLAGS_OUT_2 = 32
_DEPTH_OUT = 36
_OUT_SIZE = 64

_BACKGROUND = 256
"""Requests that nobody waits for (RELEASE, reading ahead) under way at a time. High enough that
what was closed is released before what comes next is answered."""

_STACKING = frozenset((0x794C7630, 0xF15F))
"""f_type of statfs(2) of filesystems that are themselves stacked: overlayfs, ecryptfs."""


class Flag(enum.IntFlag):
    """FUSE_* flags of INIT, the second word of them shifted by 32."""

    POSIX_LOCKS = 1 << 1
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36
    PASSTHROUGH = 1 << 37
    ALLOW_IDMAP = 1 << 40


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a mount would like to agree.

    ``filesystem`` is the f_type of the scope's filesystem; ``caches``: the kernel may keep what it
    was told; ``lists_by_inode``: directories shall be listed without being opened. ``passthrough``:
    the kernel shall read and write backing files itself, unless ``why_not`` says why not.
    """

    filesystem: int
    caches: bool
    lists_by_inode: bool
    why_not: str = ""

    @property
    def passthrough(self) -> bool:
        return not self.why_not


def negotiate(
    request: bytes, reply: bytes, wishes: Wishes, *, device: int
) -> tuple[bytes, Agreement]:
    """Return the INIT reply to send, and what it agrees.

    ``request`` and ``reply`` are the bodies of INIT and of libfuse's answer, ``device`` is the
    descriptor of the FUSE device.
    """
    (offered,) = _FLAGS_IN.unpack_from(request)
    if offered & Flag.INIT_EXT and len(request) >= _FLAGS_IN_2.size:
        offered |= _FLAGS_IN_2.unpack_from(request)[0] << 32
    out = bytearray(reply[:_OUT_SIZE].ljust(_OUT_SIZE, b"\0"))
    flags = int.from_bytes(out[_FLAGS_OUT : _FLAGS_OUT + 4], sys.byteorder)
    flags |= int.from_bytes(out[_FLAGS_OUT_2 : _FLAGS_OUT_2 + 4], sys.byteorder) << 32
    # The daemon has no CAP_FSETID, so that its writes and truncations clear set-user-id bits and
    # capabilities: the kernel need not ask for them before each write. Where it says that a caller
    # may leave them, the daemon takes the capability for the moment.
    wanted = (
        Flag.HANDLE_KILLPRIV_V2
        | Flag.PARALLEL_DIROPS
        | Flag.POSIX_ACL
        | Flag.DONT_MASK
        | Flag.POSIX_LOCKS
        | Flag.FLOCK_LOCKS
        | Flag.AUTO_INVAL_DATA
        | Flag.DIRECT_IO_ALLOW_MMAP
        | Flag.INIT_EXT
        # Then only requests that make something say whose it is to be; who sent the others is
        # UNKNOWN (volfs.linux.identity), also on mounts that are not idmapped.
        | Flag.ALLOW_IDMAP
    )
    # Listings decide themselves which entries carry attributes; changes behind the mount must
    # not leave stale pages; libfuse takes the longer SETXATTR for the shorter.
    refused = Flag.READDIRPLUS_AUTO | Flag.EXPLICIT_INVAL_DATA | Flag.SETXATTR_EXT
    if wishes.caches:
        wanted |= Flag.CACHE_SYMLINKS | Flag.READDIRPLUS
    else:  # attributes that may not be kept need not be listed
        refused |= Flag.READDIRPLUS
    if wishes.passthrough:
        wanted |= Flag.PASSTHROUGH
    if wishes.lists_by_inode:
        wanted |= Flag.NO_OPENDIR_SUPPORT
    flags = (flags | wanted) & offered & ~refused
    passthrough = bool(flags & Flag.PASSTHROUGH)
    why_not = wishes.why_not
    if not passthrough and not why_not:
        why_not = "the kernel does not offer it (it came with Linux 6.9)"
    out[_FLAGS_OUT : _FLAGS_OUT + 4] = (flags & 0xFFFFFFFF).to_bytes(4, sys.byteorder)
    out[_BACKGROUND_OUT : _BACKGROUND_OUT + 4] = _BACKGROUND.to_bytes(2, sys.byteorder) + (
        _BACKGROUND * 3 // 4
    ).to_bytes(2, sys.byteorder)
    out[_FLAGS_OUT_2 : _FLAGS_OUT_2 + 4] = (flags >> 32).to_bytes(4, sys.byteorder)
    # The depth counts the filesystems stacked on each other, this one among them: no more than
    # needed, so that an overlayfs can be mounted above.
    depth = (2 if wishes.filesystem in _STACKING else 1) if passthrough else 0
    out[_DEPTH_OUT : _DEPTH_OUT + 4] = depth.to_bytes(4, sys.byteorder)
    log.debug("INIT: offered %s, agreed %s", Flag(offered), Flag(flags))
    return bytes(out), Agreement(
        device=device,
        lists_by_inode=wishes.lists_by_inode and bool(flags & Flag.NO_OPENDIR_SUPPORT),
        maps_direct=bool(flags & Flag.DIRECT_IO_ALLOW_MMAP),
        says_when_to_clear=bool(flags & Flag.HANDLE_KILLPRIV_V2),
        passthrough=passthrough,
        why_not=why_not,
        max_write=int.from_bytes(out[_MAX_WRITE_OUT : _MAX_WRITE_OUT + 4], sys.byteorder),
    )
