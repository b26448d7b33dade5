"""File capabilities as the kernel's extended attribute holds them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tests.mount.comparing import outcome

CAPABILITY = struct.pack("<IIIII", 0x0200_0001, 1 << 10, 0, 0, 0)
"""security.capability for cap_net_bind_service=ep (linux/capability.h, revision 2)."""


def capability(path: Path) -> object:
    """The attribute of what is at ``path``, or why there is none."""
    return outcome(os.getxattr, path, "security.capability")
