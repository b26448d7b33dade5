"""Closing what may be the last descriptor of a deleted file, upon which its data is freed.

That takes as long as the file has extents: seconds for some ten thousand. And it is a change, for
which a frozen filesystem (fsfreeze(8)) keeps everybody waiting; so it is not done where a lock is
held.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from volfs.fs.native import Status, fstat

_THREADS = 2
_MOST_DUE = 16
_QUICK_BLOCKS = (256 << 10) // 512
"""Blocks, as st_blocks counts them, that are freed within a few milliseconds however many extents
they are."""


def is_long_freed(status: Status) -> bool:
    """Whether freeing the data of a file may take so long that others would notice."""
    return status.st_blocks > _QUICK_BLOCKS


class Closing:
    """Closes at once what frees nothing, what frees much in threads of its own, and the rest when
    ``finish`` is called.

    ``limit``: how many may wait to be closed. What comes then is closed at once, as each is a
    descriptor that somebody else could have. ``due``: those that ``finish`` closes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: set[Future[object]] = set()
        self.due: list[int] = []

    def __len__(self) -> int:
        """How many are still to be closed."""
        return len(self._waiting) + len(self.due)

    def close(self, fd: int) -> None:
        """Close a descriptor on a local filesystem that may be the last of its file."""
        status = fstat(fd)
        if status.st_nlink:
            os.close(fd)
        elif is_long_freed(status):
            self.later(lambda: os.close(fd))
        else:
            self.due.append(fd)
            if len(self.due) > _MOST_DUE:
                self.later(self.finish)

    def finish(self) -> None:
        """Close what is due. May wait for a frozen filesystem."""
        while self.due:
            try:
                fd = self.due.pop()
            except IndexError:  # another thread was faster
                return
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

    def settle(self) -> None:
        """Wait until what has to be closed by now is. Not in the threads that close."""
        self.finish()
        wait(self._waiting.copy())

    def end(self) -> None:
        """Wait until all is closed."""
        self.finish()
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None
