"""Serving the volume plugin protocol at a unix socket."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from functools import partial

import trio
from starlette.types import ASGIApp

from volfs.docker.application import make_application
from volfs.docker.clients import Bounds, Clients
from volfs.docker.listener import Listener
from volfs.docker.places import Places
from volfs.docker.plugin import VolumePlugin
from volfs.linux.signals import EndingSignals
from volfs.store import VolumeStore
from volfs.store.housekeeping import housekeep

log = logging.getLogger(__name__)

_GRACE = 5.0
"""Seconds for requests under way to be answered when the server ends."""

_RETRY = 0.1
_BOUNDS = Bounds()


async def serve(
    store: VolumeStore,
    places: Places,
    socket_path: str,
    stop: trio.Event,
    *,
    grace: float = _GRACE,
    bounds: Bounds = _BOUNDS,
    make: Callable[[VolumePlugin], ASGIApp] = make_application,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``store`` as a volume plugin at ``socket_path`` until ``stop`` is set.

    Started once clients can connect. The socket is gone when this returns or is cancelled.
    Raises PluginError when it cannot be made.

    ``grace``: seconds for requests under way to be answered in the end. ``bounds``: how many
    clients there may be, and how long they may take. ``make`` makes the application.
    """
    listener = await trio.to_thread.run_sync(Listener, socket_path)
    try:
        application = make(VolumePlugin(store, places))
        removed = trio.Event()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_remove_upon, stop, listener, removed)
            while not removed.is_set():
                try:
                    clients = Clients(listener.socket, application, bounds=bounds, grace=grace)
                    await clients.serve(removed)
                except Exception:
                    # The tree that this process may serve as well must not end with it, and
                    # clients try again: all requests may be repeated.
                    log.exception("the server of the plugin failed; it starts anew")
                    await trio.sleep(_RETRY)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(listener.remove)
        listener.close()


async def _remove_upon(stop: trio.Event, listener: Listener, removed: trio.Event) -> None:
    # Before the last requests are answered: nobody may connect any more and get no answer.
    await stop.wait()
    await trio.to_thread.run_sync(listener.remove)
    removed.set()


async def serve_alone(
    store: VolumeStore,
    places: Places,
    socket_path: str,
    ready: Callable[[], None],
    *,
    housekeeping: bool,
) -> None:
    """Serve as ``serve`` does until a signal would end the process (see EndingSignals), in a
    process without a tree.

    Calls ``ready`` once clients can connect. ``housekeeping``: do the store's chores as well,
    because no tree's daemon does them. Raises in an ExceptionGroup what ``serve`` does.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    stop = trio.Event()
    with EndingSignals() as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_upon, signals, stop)
            if housekeeping:
                nursery.start_soon(partial(housekeep, store, stop.is_set, wait=stop.wait))
            await nursery.start(serve, store, places, socket_path, stop)
            log.info("serving the plugin at %s", socket_path)
            ready()
            await stop.wait()


async def _stop_upon(signals: EndingSignals, stop: trio.Event) -> None:
    log.info("ending upon %s", await signals.wait())
    stop.set()
