"""Companion: something else that a process serves beside a tree, such as the volume plugin."""

from __future__ import annotations

from typing import Protocol

import trio


class Service(Protocol):
    """Serves until ``stop`` is set. Raises, before it has started, what keeps it from that."""

    async def __call__(
        self, stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None: ...


class Companion:
    """Begun once the tree answers, and ended before it is unmounted: it may use the tree."""

    def __init__(self, service: Service | None) -> None:
        """Without a service there is nothing to begin or to end."""
        self._service = service
        self._stop = trio.Event()
        self._ended = trio.Event()

    async def begin(self, nursery: trio.Nursery) -> None:
        """Return once the service has started. Raises what kept it from that."""
        if self._service is None or self._stop.is_set():
            self._ended.set()
        else:
            await nursery.start(self._run, self._service)

    async def end(self) -> None:
        """Tell the service to stop, and wait until it has."""
        self._stop.set()
        if self._service is not None:
            await self._ended.wait()

    async def _run(self, service: Service, task_status: trio.TaskStatus[None]) -> None:
        try:
            await service(self._stop, task_status=task_status)
        finally:
            self._ended.set()
