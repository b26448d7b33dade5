"""Signals that end a process, received so that it can end in order (signal(7))."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

import trio

_NOT_CAUGHT = frozenset(
    (
        # Nobody catches these.
        *(signal.SIGKILL, signal.SIGSTOP),
        # They do not end a process: by default, or because Python ignores them.
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),
        *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE, signal.SIGXFSZ),
        # Faults: the process is in no state to go on.
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
        *(signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS),
        # To a daemon it means that it should open its log anew.
        signal.SIGHUP,
    )
)

ENDING = tuple(sorted(int(number) for number in signal.valid_signals() - _NOT_CAUGHT))
"""Those that end a process unless they are caught, realtime signals included."""

_ALWAYS = (signal.SIGTERM, signal.SIGINT)


def name_of(number: int) -> str:
    """Return the name of a signal, also of a realtime signal that has none of its own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class EndingSignals:
    """While entered, the signals of ENDING end nothing: the first of them is told to ``wait``.

    To be entered in the main thread, inside trio. What was ignored stays so, but for SIGTERM and
    SIGINT (which shells ignore for what they start in the background).
    """

    def __init__(self) -> None:
        self._first = 0
        self._came = trio.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        token = trio.lowlevel.current_trio_token()

        def note(number: int, frame: FrameType | None) -> None:
            if not self._first:
                self._first = number
                token.run_sync_soon(self._came.set)

        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN or number in _ALWAYS:
                self._before[number] = signal.signal(number, note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    async def wait(self) -> str:
        """Return the name of the first signal, once it has come."""
        await self._came.wait()
        return name_of(self._first)
