"""What is agreed with the kernel about one mount: Agreement, and the Connection that has it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from struct import Struct

log = logging.getLogger(__name__)

_INVAL_INODE = Struct("=IiQQqq")
"""FUSE_NOTIFY_INVAL_INODE: length, code, 0, node id, offset (-1: attributes only), length."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the INIT reply settles, once for a mount.

    ``device``: the descriptor of the FUSE device on which requests are answered; -1 where pyfuse3
    brings them. ``lists_by_inode``: directories are listed without having been opened.
    ``maps_direct``: a file opened to bypass the page cache can be mapped. ``says_when_to_clear``:
    requests say whether a change takes set-user-ID and set-group-ID bits away. ``passthrough``:
    the kernel can read and write backing files itself; ``why_not`` says why it cannot.
    ``max_write``: bytes of the largest write.
    """

    device: int = -1
    lists_by_inode: bool = False
    maps_direct: bool = False
    says_when_to_clear: bool = False
    passthrough: bool = False
    why_not: str = ""
    max_write: int = 0

    @property
    def tapped(self) -> bool:
        """Whether requests are answered where they are read, and not brought by pyfuse3."""
        return self.device >= 0


PLAIN = Agreement()
"""What holds for a mount for which nothing was negotiated."""


class Connection:
    """One connection to the kernel. Its agreement is PLAIN until INIT is answered in the tap."""

    __slots__ = ("agreement",)

    def __init__(self) -> None:
        self.agreement = PLAIN

    def forget_attributes(self, node_id: int) -> None:
        """Have the kernel ask for an inode's attributes again. Does not block."""
        device = self.agreement.device
        if device < 0:
            return
        try:
            os.write(device, _INVAL_INODE.pack(_INVAL_INODE.size, 2, 0, node_id, -1, 0))
        except OSError as error:  # ENOENT: it has none
            log.debug("attributes of node %#x: %s", node_id, error.strerror)

    def close(self) -> None:
        """Note that the FUSE device is not to be used any more."""
        self.agreement = PLAIN
