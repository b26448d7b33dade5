"""Later: the result of a request that has to be waited for."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from volfs.linux.syscalls import os_error

T = TypeVar("T")
U = TypeVar("U")


class Later(Generic[T]):
    """A result that has to be waited for: ``await later()``.

    ``interrupt`` is to be called when the caller is interrupted by a signal, and brings the end
    of the wait nearer. ``alone``: a call that gives the result too, in any thread that has
    nothing else to do.
    """

    __slots__ = ("_wait", "alone", "interrupt")

    def __init__(
        self,
        wait: Callable[[], Awaitable[T]],
        *,
        interrupt: Callable[[], object] | None = None,
        alone: Callable[[], T] | None = None,
    ) -> None:
        self._wait = wait
        self.interrupt = interrupt
        self.alone = alone

    def __call__(self) -> Awaitable[T]:
        return self._wait()

    def then(self, change: Callable[[T], U]) -> Later[U]:
        """The result as ``change`` makes it; that runs on the event loop."""
        wait = self._wait

        async def changed() -> U:
            return change(await wait())

        return Later(changed, interrupt=self.interrupt)


def interrupted() -> OSError:
    """The error of a request whose caller was interrupted by a signal."""
    return os_error(errno.EINTR)
