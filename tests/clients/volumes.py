"""A volume as the clients see it, and the check that it can and cannot be removed."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Mounted, volfs


@dataclass(frozen=True)
class VolumeDir:
    """One volume's directory in the mounted tree, and its real data path behind the mount."""

    path: Path
    data: Path
    scope: Path

    @classmethod
    def at(cls, tree: Mounted, name: str) -> VolumeDir:
        """The volume of that name, existing or yet to be made."""
        return cls(tree.mnt / name, tree.data(name), tree.scope)

    @classmethod
    def make(cls, tree: Mounted, name: str) -> VolumeDir:
        volume = cls.at(tree, name)
        volume.path.mkdir()
        assert volume.data.is_dir(), "mkdir in the tree makes the real data path"
        return volume

    @property
    def name(self) -> str:
        return self.path.name

    def side(self, name: str) -> Path:
        """The directory as reached through the ``tree``, or behind the mount, as ``data``."""
        return {"tree": self.path, "data": self.data}[name]

    def assert_held_by(self, *containers: str) -> None:
        """These containers hold the volume, and nobody else, by the command line's account."""
        printed = volfs(self.scope, "inspect", "--json", self.name)
        holders = json.loads(printed)[0]["holders"]
        assert sorted(holder["container"] for holder in holders) == sorted(containers)
        assert all(holder["kind"] == "mount" for holder in holders)
        assert all(holder["detail"] == "/data" for holder in holders)

    def assert_busy(self) -> None:
        """Removing the volume is refused as busy, and the data stays."""
        before = sorted(entry.name for entry in self.data.iterdir())
        with pytest.raises(OSError) as refused:
            self.path.rmdir()
        assert refused.value.errno == errno.EBUSY, refused.value
        assert sorted(entry.name for entry in self.data.iterdir()) == before

    def remove(self) -> None:
        """Remove the volume by rmdir, with its data."""
        self.path.rmdir()
        assert not self.path.exists()
        assert not self.data.exists()
