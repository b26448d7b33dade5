"""Doing a store's chores from time to time, in a process that runs trio."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from volfs.store.store import VolumeStore

log = logging.getLogger(__name__)

Run = Callable[[Callable[[], None]], Awaitable[None]]
"""Runs a call that may block in a worker thread."""


async def housekeep(
    store: VolumeStore,
    stopping: Callable[[], bool],
    *,
    wait: Callable[[], Awaitable[object]],
    interval: float = 60.0,
    run: Run = trio.to_thread.run_sync,
) -> None:
    """Do the chores now and every ``interval`` seconds, until ``stopping()`` turns true.

    ``wait`` returns early when there is something to do, or it is time to end. What fails is
    logged, and tried again the next time.
    """
    while not stopping():
        try:
            await run(partial(store.housekeep, stopping))
        except Exception:
            log.exception("housekeeping failed; it is tried again")
        with trio.move_on_after(interval):
            await wait()
