"""Places: where containers find the data of volumes.

That is the volume's directory in a tree that is mounted, served by this process or another;
or, for volumes with the option ``path=native`` and for all where the plugin is told so, the data
path itself. Functions that may block say so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from volfs.errors import PluginError
from volfs.fs.mount.companion import View
from volfs.linux.mountinfo import MountTable
from volfs.store import FSTYPE
from volfs.volume import Volume

OPTION = "path"
"""The create option of a volume that says ``tree`` or ``native``."""


class NotYetError(Exception):
    """The tree shows a volume that had the name before.

    The kernel may answer from its memory for a while: see CachePolicy.root_timeout.
    """


class Places:
    """Where the volumes of a scope are found. ``scope`` is its real path.

    ``mountpoint`` is the absolute path where its tree is, or will be, mounted; None where no
    tree is used. ``native``: volumes that do not say otherwise are used at their data path.
    ``view`` is of that tree where this process serves it, which must not ask itself.
    """

    def __init__(
        self,
        scope: str,
        mountpoint: str | None,
        *,
        native: bool = False,
        view: View | None = None,
    ) -> None:
        self._scope = scope
        self._mountpoint = mountpoint
        self._native = native
        self._view = view

    def is_native(self, volume: Volume) -> bool:
        """Whether a volume is used at its data path. May block."""
        told = volume.options.get(OPTION)
        return told == "native" if told is not None else self._native

    def require(self, volume: Volume) -> str:
        """Return the place of a volume, absolute. May block.

        Raises PluginError, saying what to do, when no tree is mounted where it should be.
        """
        if self.is_native(volume):
            return volume.mount()
        if self._mountpoint is None:
            raise PluginError(
                f"volume {volume.name!r} is to be used in a tree (path=tree), and the plugin was"
                " started without one: add --mount MOUNTPOINT to `volfs plugin`"
            )
        if not self._is_mounted():
            raise PluginError(
                f"no tree of {self._scope} is mounted at {self._mountpoint}: start it with"
                f" `volfs mount {self._scope} {self._mountpoint}`"
            )
        return f"{self._mountpoint}/{volume.name}"

    def look(self, place: str, volume: Volume) -> None:
        """Look whether a volume is at the place that ``require`` gave. May block, for as long as
        the tree of another process hangs. Raises NotYetError, or PluginError, saying what to do.
        """
        if self._view is None or self.is_native(volume):
            look(place, volume)
        elif self._view.is_stale(volume.name, os.stat(volume.path).st_ino):
            raise NotYetError

    def known(self, volumes: Iterable[Volume]) -> list[str]:
        """Return the places of volumes; empty for those that have none now. May block."""
        mounted = self._mountpoint is not None and self._is_mounted()
        return [self._known(volume, mounted) for volume in volumes]

    def _known(self, volume: Volume, mounted: bool) -> str:
        try:
            if self.is_native(volume):
                return volume.mount()
        except OSError:
            return ""  # one broken volume must not hide the others
        return f"{self._mountpoint}/{volume.name}" if mounted else ""

    def _is_mounted(self) -> bool:
        """Whether what is seen at the mount point is the tree, whatever else is mounted there."""
        way = MountTable.of_process().way_to(self._mountpoint or "/")
        return bool(way) and (way[-1].fstype, way[-1].source, way[-1].root, way[-1].point) == (
            FSTYPE,
            self._scope,
            "/",
            self._mountpoint,
        )


def look(place: str, volume: Volume) -> None:
    """Look whether a volume is at its place, which is not in a tree that this process serves.
    May block for as long as a tree that hangs.

    Raises NotYetError, or PluginError, saying what to do.
    """
    try:
        here = os.stat(place)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            top = os.path.dirname(place)
            raise PluginError(
                f"the daemon of the tree at {top} is gone: `volfs umount {top}`, and mount it anew"
            ) from None
        raise PluginError(
            f"volume {volume.name!r} cannot be used: {place}: {error.strerror}"
        ) from None
    # The tree shows the inode numbers of the scope's filesystem.
    if here.st_ino != os.stat(volume.path).st_ino:
        raise NotYetError
