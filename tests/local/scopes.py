"""What the tests of the model do with a scope besides using it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from volfs.local import LocalDriver
from volfs.volume import NewVolume, Owner, Volume

SOMEBODY = Owner(1000, 1000) if os.geteuid() == 0 else Owner(os.geteuid(), os.getegid(), 0o700)
"""Somebody a volume can be made for."""


class OpenDriver(Protocol):
    def __call__(self, *, keep_removed: float = 86400.0, keep_free: float = 0.0) -> LocalDriver: ...


class Maker(Protocol):
    def make(self, new: NewVolume | str) -> tuple[Volume, int]: ...


def make(maker: Maker, new: NewVolume | str) -> Volume:
    """Make a volume that was not there, for those who want no descriptor."""
    volume, fd = maker.make(new)
    os.close(fd)
    return volume


def age(scope: Path, seconds: float = 3600.0) -> None:
    """Make everything in the trash look that much older."""
    for entry in os.scandir(scope / "trash"):
        then = entry.stat(follow_symlinks=False).st_mtime - seconds
        os.utime(entry.path, (then, then))


def hidden_entries(scope: Path) -> list[str]:
    """Return the names of what is being worked on in the trash."""
    return sorted(name for name in os.listdir(scope / "trash") if name.startswith("."))


def write(volume_path: str, text: str, name: str = "file") -> None:
    Path(volume_path, name).write_text(text)


def contents(driver: LocalDriver) -> dict[str, str]:
    """Return what was written to each volume."""
    return {volume.name: _text(Path(volume.path)) for volume in driver.list()}


def removed_contents(driver: LocalDriver) -> list[tuple[str, str]]:
    """Return the names of the removed volumes, newest first, with what was written to them."""
    return [
        (entry.name, _text(Path(driver.scope, "trash", entry.id, "volume", "_data")))
        for entry in driver.trash.list()
    ]


def _text(data: Path) -> str:
    file = data / "file"
    return file.read_text() if file.exists() else ""
