"""BareEntry: an entry of a listing that carries no attributes.

With READDIRPLUS every entry counts as looked up and brings its attributes. A node id of 0 says
that it does not: the kernel then shows number and type and remembers nothing. pyfuse3 sets node
id and inode number as one, so the node id is cleared where the object keeps it.
"""

from __future__ import annotations

import ctypes
import functools
import logging

from pyfuse3 import EntryAttributes

log = logging.getLogger(__name__)

# struct fuse_entry_param of libfuse's fuse_lowlevel.h begins behind the object's head: ino,
# generation, then struct stat with st_dev and st_ino.
_HEAD = object.__basicsize__
_NODE_ID = _HEAD
_ST_INO = _HEAD + 24


class BareEntry:
    """A reusable ``entry`` for pyfuse3.readdir_reply, which copies it."""

    __slots__ = ("_node_id", "entry")

    def __init__(self) -> None:
        self.entry = EntryAttributes()
        self._node_id = ctypes.c_uint64.from_address(id(self.entry) + _NODE_ID)

    def set(self, ino: int, mode: int) -> None:
        """Make it the entry of inode number ``ino``, of the type that ``mode`` says."""
        self.entry.st_ino = ino
        self.entry.st_mode = mode
        self._node_id.value = 0


@functools.cache
def can_be_bare() -> bool:
    """Whether pyfuse3's object is laid out as expected; tried once, on an object of its own."""
    probe = 0x1122334455667788
    if EntryAttributes.__basicsize__ < _ST_INO + 8:
        return False
    entry = EntryAttributes()
    node_id = ctypes.c_uint64.from_address(id(entry) + _NODE_ID)
    st_ino = ctypes.c_uint64.from_address(id(entry) + _ST_INO)
    entry.st_ino = probe
    if node_id.value != probe or st_ino.value != probe:
        log.info("pyfuse3 keeps entries in another way than expected: listings carry attributes")
        return False
    node_id.value = 0
    return entry.st_ino == 0 and st_ino.value == probe
