"""Later: the result of a request that has to be waited for."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from volfs.linux.syscalls import os_error

T = TypeVar("T")
U = TypeVar("U")


class Later(Generic[T]):
    """A result that has to be waited for: ``await later()``.

    ``interrupt`` is to be called when the caller is interrupted by a signal, and brings the end
    of the wait nearer. Instead of waiting, ``call`` can be called in any thread that has nothing
    else to do, and may have to wait for ``on``; the result is what ``finish`` makes of what it
    returns. None if it takes the event loop. ``alone``: it is to be had so, and finished as it is.
    """

    __slots__ = ("_changes", "_wait", "alone", "call", "interrupt", "on")

    def __init__(
        self,
        wait: Callable[[], Awaitable[T]],
        *,
        interrupt: Callable[[], object] | None = None,
        call: Callable[[], Any] | None = None,
        on: object = None,
        alone: bool = False,
    ) -> None:
        self._wait = wait
        self._changes: tuple[Callable[[Any], Any], ...] = ()
        self.interrupt = interrupt
        self.call = call
        self.on = on
        self.alone = alone

    def __call__(self) -> Awaitable[T]:
        return self._wait()

    def then(self, change: Callable[[T], U]) -> Later[U]:
        """The result as ``change`` makes it; that runs on the event loop."""
        wait = self._wait

        async def changed() -> U:
            return change(await wait())

        later = Later(changed, interrupt=self.interrupt, call=self.call, on=self.on)
        later._changes = (*self._changes, change)
        return later

    def finish(self, found: Any) -> T:
        """The result, from what ``call`` returned. To be called on the event loop, or by who
        relieves it."""
        for change in self._changes:
            found = change(found)
        result: T = found
        return result


def interrupted() -> OSError:
    """The error of a request whose caller was interrupted by a signal."""
    return os_error(errno.EINTR)
