"""VolumePlugin: what each request of the volume plugin protocol means to the store."""

from __future__ import annotations

import builtins
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeVar

import trio

from volfs.docker.messages import DRIVER_TYPE, Reply, Request, failure, time_text
from volfs.docker.places import NotYetError, Places
from volfs.errors import (
    InvalidNameError,
    OptionConflictError,
    PluginError,
    UnknownOptionError,
    VolumeInUseError,
    VolumeNotFoundError,
)
from volfs.linux.identity import Identity, KeepingSetgid
from volfs.store import VolumeStore
from volfs.volume import NewVolume, Owner, Volume, check_name

T = TypeVar("T")

BY = "docker volume plugin"
"""For whom volumes are removed, in the record of the trash."""

LABEL = "label."
"""Create options that begin with this are labels."""

_LOOKING = 16
_CHANGING = 48
"""How many calls of the store run at once: those that only look, and those that change something.
Copies that take minutes, or a tree that hangs, must not keep others from being answered."""

_LINGER = 1.5
"""Seconds for which a tree may still show a volume that is gone; a little over the root_timeout of
volfs.fs.files.cache."""

_LOOK_AGAIN = 0.05
_PATIENCE = 10.0
"""Seconds after which a tree counts as hung. By default dockerd waits for two minutes, podman for
five seconds."""

_RELEASES = 10
_RELEASE_TIME = 0.1
"""Retries, and the seconds between them, while files are closing: the kernel tells a tree of that
only after the process that had them open has ended."""


class VolumePlugin:
    """Answers the requests of dockerd and podman on a store.

    Methods raise what the store raises, and PluginError. When one is cancelled, the call that it
    has under way in a thread still runs to its end.
    """

    def __init__(
        self,
        store: VolumeStore,
        places: Places,
        *,
        patience: float = _PATIENCE,
        release_time: float = _RELEASE_TIME,
    ) -> None:
        """``patience``: seconds after which a tree counts as hung. ``release_time``: those between
        two attempts to remove a volume whose files are closing."""
        self._patience = patience
        self._release_time = release_time
        self._store = store
        self._places = places
        self._identity = Identity()
        self._looking = trio.CapacityLimiter(_LOOKING)
        self._changing = trio.CapacityLimiter(_CHANGING)
        self._reaching = trio.CapacityLimiter(_LOOKING)

    @property
    def calls(self) -> Mapping[str, Callable[[Request], Awaitable[Reply]]]:
        """The method that answers, for each path of the protocol."""
        return {
            "/Plugin.Activate": self.activate,
            "/VolumeDriver.Capabilities": self.capabilities,
            "/VolumeDriver.Create": self.create,
            "/VolumeDriver.Remove": self.remove,
            "/VolumeDriver.Mount": self.mount,
            "/VolumeDriver.Unmount": self.unmount,
            "/VolumeDriver.Path": self.path,
            "/VolumeDriver.Get": self.get,
            "/VolumeDriver.List": self.list,
        }

    async def activate(self, request: Request) -> Reply:
        return {"Implements": [DRIVER_TYPE]}

    async def capabilities(self, request: Request) -> Reply:
        # Not "global", though a scope can be shared: swarm would then take it to be everywhere.
        return {"Capabilities": {"Scope": "local"}}

    # Changing

    async def create(self, request: Request) -> Reply:
        """Make a volume, or accept one that is there already and is what is asked for."""
        labels, options = {}, {}
        for key, value in request.options.items():
            if key.startswith(LABEL):
                labels[key.removeprefix(LABEL)] = value
            else:
                options[key] = value
        # As with Docker's local driver; a daemon that is not root can give nothing away.
        owner = Owner(os.geteuid(), os.getegid(), 0o755)
        await self._change(partial(self._create, NewVolume(request.name, options, labels, owner)))
        return {}

    def _create(self, new: NewVolume) -> None:
        try:
            volume = self._store.create(new)
        except UnknownOptionError as error:
            raise _with_labels(error) from None
        labels = new.labels
        if labels and (dict(volume.labels) != labels or (volume.options and not new.options)):
            made_with = [f"{key}={value}" for key, value in volume.options.items()]
            made_with += [f"{LABEL}{key}={value}" for key, value in volume.labels.items()]
            raise OptionConflictError(
                f"volume {new.name!r} exists and has {', '.join(made_with) or 'no options'}; "
                "remove it first, or leave the options out"
            )

    async def remove(self, request: Request) -> Reply:
        """Remove a volume, into the trash."""
        for attempt in range(_RELEASES + 1):
            try:
                await self._change(partial(self._store.remove, request.name, by=BY))
            except VolumeInUseError as error:
                open_only = error.holders and all(item.kind == "open" for item in error.holders)
                if attempt == _RELEASES or not open_only:
                    raise
                await trio.sleep(self._release_time)
            else:
                break
        return {}

    async def mount(self, request: Request) -> Reply:
        """Note that a container uses the volume, and say where it finds it."""
        # First the place, so that nothing is left behind when there is none.
        volume = await self._look(partial(self._store.get, request.name))
        place = await self._reach(volume)
        await self._change(partial(self._store.acquire, request.name, request.id))
        return {"Mountpoint": place}

    async def unmount(self, request: Request) -> Reply:
        """Note that a container no longer uses the volume, whether it was known to or not."""
        try:
            check_name(request.name)
        except InvalidNameError:
            return {}
        await self._change(partial(self._store.release, request.name, request.id))
        return {}

    async def _reach(self, volume: Volume) -> str:
        """Return the place of a volume once it can be seen there. Raises PluginError."""
        start = trio.current_time()
        with trio.move_on_at(start + self._patience):
            place = await self._look(partial(self._places.require, volume))
            while True:
                try:
                    await self._in_thread(partial(self._places.look, place, volume), self._reaching)
                except NotYetError:
                    if trio.current_time() < start + _LINGER:
                        await trio.sleep(_LOOK_AGAIN)
                        continue
                return place
        raise PluginError(f"the tree does not answer: volume {volume.name!r} cannot be reached")

    # Looking

    async def path(self, request: Request) -> Reply:
        """Say where the volume is found: also when no container uses it, as the place is there
        for everybody."""
        volume = await self._look(partial(self._store.get, request.name))
        (place,) = await self._look(partial(self._places.known, [volume]))
        return {"Mountpoint": place}

    async def get(self, request: Request) -> Reply:
        """Describe a volume. That there is none is an answer, not a failure."""
        try:
            return {"Volume": await self._look(partial(self._describe, request.name))}
        except VolumeNotFoundError:
            return failure(f"no such volume: {request.name}")

    def _describe(self, name: str) -> Reply:
        volume = self._store.get(name)
        (place,) = self._places.known([volume])
        status = {
            "driver": volume.driver_name,
            "data": volume.path,
            "labels": dict(volume.labels),
            "options": dict(volume.options),
            "references": sorted(self._store.references(name)),
        }
        return {**_entry(volume, place), "Status": status}

    async def list(self, request: Request) -> Reply:
        """List all volumes, whoever made them."""
        return {"Volumes": await self._look(self._entries)}

    def _entries(self) -> builtins.list[Reply]:
        volumes = self._store.list()
        found = self._places.known(volumes)
        return [_entry(volume, place) for volume, place in zip(volumes, found, strict=True)]

    # Threads

    async def _look(self, call: Callable[[], T]) -> T:
        return await self._in_thread(call, self._looking)

    async def _change(self, call: Callable[[], T]) -> T:
        return await self._in_thread(call, self._changing)

    async def _in_thread(self, call: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        def separately() -> T:
            # This may be the process of a tree, whose threads act as others and have no CAP_FSETID.
            self._identity.separate_umask()
            with KeepingSetgid():
                return call()

        return await trio.to_thread.run_sync(separately, limiter=limiter, abandon_on_cancel=True)


def _entry(volume: Volume, place: str) -> Reply:
    entry: Reply = {"Name": volume.name, "Mountpoint": place}
    with suppress(OSError):  # one broken volume must not hide the others
        if (created := time_text(volume.created_at)) is not None:
            entry["CreatedAt"] = created
    return entry


def _with_labels(error: UnknownOptionError) -> UnknownOptionError:
    text = str(error)
    if not text.startswith("unknown option"):
        return error
    return UnknownOptionError(f"{text}, {LABEL}KEY")
