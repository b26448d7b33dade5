"""Closing what may be the last descriptor of a deleted file, upon which its data is freed.

That takes as long as the file has extents: seconds for some ten thousand.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from volfs.fs.native import Status, fstat

_THREADS = 2
_QUICK_BLOCKS = (256 << 10) // 512
"""Blocks, as st_blocks counts them, that are freed within a few milliseconds however many extents
they are."""


def is_long_freed(status: Status) -> bool:
    """Whether freeing the data of a file may take so long that others would notice."""
    return status.st_blocks > _QUICK_BLOCKS


class Closing:
    """Closes at once what is quick, the rest in threads of its own.

    ``limit``: how many may wait to be closed. What comes then is closed at once, as each is a
    descriptor that somebody else could have.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: set[object] = set()

    def __len__(self) -> int:
        """How many are still to be closed."""
        return len(self._waiting)

    def close(self, fd: int) -> None:
        """Close a descriptor on a local filesystem that may be the last of its file."""
        status = fstat(fd)
        if status.st_nlink == 0 and is_long_freed(status):
            self.later(lambda: os.close(fd))
        else:
            os.close(fd)

    def later(self, call: Callable[[], object]) -> None:
        """Have ``call`` close something that may be the last of a large deleted file."""
        if len(self._waiting) >= self._limit:
            call()
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "closing")
        closing = self._threads.submit(call)
        self._waiting.add(closing)
        closing.add_done_callback(self._waiting.discard)

    def end(self) -> None:
        """Wait until all is closed."""
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
