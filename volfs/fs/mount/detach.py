"""A program: detach the mount whose root is the inherited descriptor given as an argument.

Run by ``mounted`` with nothing but the standard library, so that it starts at once.
"""

import ctypes
import os
import sys

_MNT_DETACH = 2


def main() -> None:
    """Detach it, and end when it has been let go of."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(f"/proc/self/fd/{int(sys.argv[1])}".encode(), _MNT_DETACH) != 0:
        sys.exit(f"cannot unmount: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
