"""Serving the tree: mounted, requests answered, unmounted at the end."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import resource
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pyfuse3
import trio

from volfs.fs.inodes import Descriptors
from volfs.fs.mount.assembly import Parts, assemble
from volfs.fs.mount.companion import Companion, Service, View, share
from volfs.fs.mount.level import RequestSource
from volfs.fs.mount.mounted import Mounted
from volfs.fs.mount.mounting import mount
from volfs.fs.mount.options import MountOptions
from volfs.fs.requests import WorkerThreads
from volfs.linux.identity import Identity
from volfs.linux.signals import EndingSignals
from volfs.store import (
    Announcement,
    VolumeStore,
    clear_announcements,
    device_at,
    mounted_devices,
)
from volfs.store.housekeeping import housekeep

log = logging.getLogger(__name__)
level_log = logging.getLogger("volfs.level")
"""Says at which level a tree is served, once for each mount; worth a line in every log."""
_TABLE = 1 << 16
"""Descriptors at most that the kernel's table has room for from the start; 8 bytes each."""

_SWEEP_INTERVAL = 5.0
_SWEEP_SIZE = 1000


async def serve(
    store: VolumeStore,
    scope: str,
    mountpoint: str,
    options: MountOptions,
    ready: Callable[[], None],
    service: Service | None = None,
    view: View | None = None,
) -> None:
    """Mount the tree of ``store`` at ``mountpoint`` and serve it until it is unmounted.

    ``scope`` is the real path that the mount shows as its source. ``service`` is served beside
    the tree, of which ``view`` tells it: see Companion. ``ready`` is called once, when the mount
    answers and the service has started. Signals that would end the process (see EndingSignals)
    unmount, and this returns. Raises MountError, or in an ExceptionGroup what kept the service
    from starting.

    Changes the process for good: umask, groups and capabilities (see Identity.take_privileges).
    """
    identity = Identity()
    identity.take_privileges()
    logging.getLogger("pyfuse3").addFilter(_is_news)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    scope_fd = os.open(scope, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _enlarge_descriptor_table(scope_fd, limit)
    beside = share(limit) if service is not None else 0
    chores = _Chores(store, options)
    parts = assemble(
        store,
        scope_fd,
        options,
        identity,
        Descriptors(limit, reserved=len(os.listdir("/proc/self/fd")) + beside),
        statistics=lambda: {**source.statistics(), **parts.statistics()},
        on_volume_removed=chores.hurry,
    )
    if view is not None:
        view.begin(parts.requests.inodes)
    source = RequestSource(parts, options, scope_fd)
    target = await trio.to_thread.run_sync(os.path.realpath, mountpoint)
    companion = Companion(service)
    # Before there is a mount, so that a signal never ends the process and leaves one behind.
    with EndingSignals() as signals:
        try:
            mounted = mount(source.operations, scope, target, options)
            # Before any request is answered: nothing may be open in it that others do not see.
            announcement = _announced(scope, scope_fd, target, parts, identity)
            try:
                async with trio.open_nursery() as nursery:
                    tasks = source.begin(nursery)
                    nursery.start_soon(_unmount_upon, signals, mounted, companion)
                    nursery.start_soon(chores.run, parts.requests.threads)
                    nursery.start_soon(_sweep, parts)
                    nursery.start_soon(
                        _announce, target, parts, source, scope_fd, companion, nursery, ready
                    )
                    try:
                        await pyfuse3.main(max_tasks=tasks)
                    finally:
                        chores.stop()
                        nursery.cancel_scope.cancel()
            finally:
                last = parts.statistics()
                source.close()
                mounted.end(partial(pyfuse3.close, unmount=False))
                if announcement is not None:
                    announcement.end()
                log.info("unmounted: %s", last)
        finally:
            parts.close()
            os.close(scope_fd)


def _enlarge_descriptor_table(fd: int, limit: int) -> None:
    """Have room for as many descriptors as will be used, by using a high number for a moment.

    Else the kernel doubles the table when it is full, and in a process with threads waits for all
    processors to have seen that (expand_fdtable in fs/file.c): milliseconds amid requests.
    """
    with suppress(OSError):
        os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, min(limit, _TABLE) - 1))


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of pyfuse3 is worth a line. That a reply comes too late is not: ENOENT
    says that the kernel has given the request up, as it does when unmounting."""
    return not (
        record.msg.endswith("fuse_reply_* failed with %s")
        and record.args == (os.strerror(errno.ENOENT),)
    )


class _Announced:
    """The tree, announced to other processes until its end."""

    def __init__(self, scope: str, announcement: Announcement, device: str) -> None:
        self._scope = scope
        self._announcement = announcement
        self._device = device

    def end(self) -> None:
        """Take it back, unless what was mounted is still mounted elsewhere."""
        self._announcement.close(keep=self._device in mounted_devices(self._scope))


def _announced(
    scope: str, scope_fd: int, target: str, parts: Parts, identity: Identity
) -> _Announced | None:
    try:
        device = device_at(scope, target)
        # The number that our superblock has was given back by whatever had it before.
        clear_announcements(scope_fd, mounted_devices(scope) - {device or ""})
        if device is None:
            log.warning(
                "the mount at %s cannot be seen from here: others do not see it used", target
            )
            return None
        announcement = Announcement(scope_fd, device, parts.requests.root.open_files, identity)
    except OSError as error:
        # Nothing can be removed from a read-only filesystem, be it used or not.
        level = logging.DEBUG if error.errno == errno.EROFS else logging.WARNING
        log.log(level, "the tree cannot be announced in the scope: %s", error)
        return None
    return _Announced(scope, announcement, device)


# -- beside the requests


async def _announce(
    target: str,
    parts: Parts,
    source: RequestSource,
    scope_fd: int,
    companion: Companion,
    nursery: trio.Nursery,
    ready: Callable[[], None],
) -> None:
    await source.answers.wait()
    parts.passthrough.probe(scope_fd)
    why = f" ({source.why})" if source.why else ""
    level_log.info("serving at %s, level %s%s", target, source.level.value, why)
    await companion.begin(nursery)
    ready()


async def _unmount_upon(signals: EndingSignals, mounted: Mounted, companion: Companion) -> None:
    log.info("unmounting upon %s", await signals.wait())
    await companion.end()
    # The event loop goes on serving while the kernel writes back and unmounts.
    await trio.to_thread.run_sync(mounted.leave)
    # Whoever still uses the tree: it goes away for them too.
    pyfuse3.terminate()


class _Chores:
    """The store's chores: from time to time, and when a volume was removed."""

    def __init__(self, store: VolumeStore, options: MountOptions) -> None:
        self._store = store
        self._interval = options.housekeeping_interval
        self._hurried = trio.Event()
        self._loop = trio.lowlevel.current_trio_token()
        self._stopping = threading.Event()

    def hurry(self) -> None:
        """Have the next round begin now. From any thread."""
        self._loop.run_sync_soon(lambda: self._hurried.set())

    def stop(self) -> None:
        """Have a round that is under way end soon."""
        self._stopping.set()

    async def run(self, threads: WorkerThreads) -> None:
        """Do them until stopped."""
        await housekeep(
            self._store,
            self._stopping.is_set,
            wait=self._wait,
            interval=self._interval,
            run=lambda call: threads.run(call, on="housekeeping"),
        )

    async def _wait(self) -> None:
        await self._hurried.wait()
        self._hurried = trio.Event()


async def _sweep(parts: Parts) -> None:
    """Let go of files deleted behind the mount, a part of the table at a time."""
    while True:
        await trio.sleep(_SWEEP_INTERVAL)
        parts.descriptors.release_deleted(_SWEEP_SIZE)
        requests = parts.requests
        requests.threads.finish(requests.inodes.root)
