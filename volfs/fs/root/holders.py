"""Who has files of a volume open through this tree."""

from __future__ import annotations

import os
import time
from pathlib import Path

from volfs.errors import VolumeNotFoundError
from volfs.fs.inodes import Handle, HandleTable, Inode
from volfs.fs.native import birth_ns, fstat
from volfs.holder import Holder
from volfs.store import OpenFile
from volfs.volume import Volume

_PATH_PARTS = 256
"""How many names of a path are shown at most."""

_RELEASE_TIME = 0.03
_PATIENCE = 3
"""A release is waited for _PATIENCE times _RELEASE_TIME seconds; then the file counts as in use."""


class OpenHolders:
    """Looks for holders in the table of what is open."""

    def __init__(self, handles: HandleTable) -> None:
        self._handles = handles

    def of(self, volume: Volume) -> list[Holder]:
        """Open files and directories of a volume, one holder for each process and file."""
        return [
            Holder("open", item.path, item.pid, item.command, uid=user_of(item.pid))
            for item in self.files_of(volume)
        ]

    def files_of(self, volume: Volume) -> list[OpenFile]:
        """What is open of a volume. May block."""
        try:
            fd = open_top(volume)
        except (VolumeNotFoundError, FileNotFoundError):
            return []
        try:
            status = fstat(fd)
        finally:
            os.close(fd)
        return [
            OpenFile(handle.number, _path(handle.inode), handle.pid, command_of(handle.pid))
            for handle in self._open_in((status.st_dev, status.st_ino, birth_ns(status)))
        ]

    def await_releases(self, top: Inode) -> None:
        """Let files that were closed be released. May block for a moment.

        The kernel has a dozen RELEASE requests under way at a time and keeps others back, so a
        removal can come before those of files closed earlier.
        """
        left, patience = len(self._open_in(top.key)), _PATIENCE
        while left and patience:
            time.sleep(_RELEASE_TIME)
            before, left = left, len(self._open_in(top.key))
            patience = _PATIENCE if left < before else patience - 1

    def _open_in(self, volume: tuple[int, int, int]) -> list[Handle]:
        """What is open in the volume whose top directory this is: see Inode.key."""
        return [handle for handle in self._handles if handle.inode.volume_top.key == volume]


def open_top(volume: Volume) -> int:
    """An O_PATH descriptor of the top directory of a volume."""
    volume.mount()
    return volume.open()


def user_of(pid: int) -> int | None:
    """The effective user of a process, None if that cannot be told."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    ids = next((line.split() for line in status.splitlines() if line.startswith(b"Uid:")), [])
    return int(ids[2]) if len(ids) > 2 else None


def command_of(pid: int) -> str:
    """The name of the program that a process runs, empty if that cannot be told."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def _path(inode: Inode) -> str:
    parts: list[str] = []
    here: Inode | None = inode
    while here is not None and here.parent is not None and len(parts) < _PATH_PARTS:
        parts.append(os.fsdecode(here.name))
        here = here.parent
    return "/".join(reversed(parts))
