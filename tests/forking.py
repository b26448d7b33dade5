"""Having it cost less that the tests' process is forked, as it is some thousand times.

It has collected the whole suite, and a fork copies the page table of all that it has in memory.
"""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

HUGE_PAGE = 1 << 21

_M_MMAP_THRESHOLD = -3
_MADV_COLLAPSE = 25


def give_back_what_is_large() -> None:
    """Have large blocks of memory go back to the kernel when they are freed.

    By itself malloc(3) would keep them in its heap once it has seen some of them.
    """
    with suppress(AttributeError):  # of another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 << 10)


def settle() -> None:
    """What there is now lives to the end, and is held in huge pages where the kernel can.

    Looked through anew in each collection of garbage, of which ``conftest.open_descriptors`` asks
    for many, it would take a minute in all.
    """
    gc.collect()
    gc.freeze()
    # Refused before Linux 6.1, and where memory is short; then forks take as long as ever.
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, permissions, _, _, inode, *_ = line.split()
        if permissions == "rw-p" and inode == "0":
            start, end = (int(address, 16) for address in place.split("-"))
            start, end = -(-start // HUGE_PAGE) * HUGE_PAGE, end // HUGE_PAGE * HUGE_PAGE
            if start < end:
                madvise(start, end - start, _MADV_COLLAPSE)
