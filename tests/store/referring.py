"""Stores whose references are kept in a scope, and what is asked of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from volfs.errors import VolumeInUseError
from volfs.holder import Holder
from volfs.local import LocalDriver
from volfs.store import VolumeStore
from volfs.store.references import Look, References
from volfs.store.table import Origin
from volfs.volume import Volume

DEADLINE = 20.0
OTHER_HOST = Origin("0" * 32, "some boot")
needs_first_namespaces = pytest.mark.skipif(
    os.readlink("/proc/self/ns/pid") != "pid:[4026531836]"
    or os.readlink("/proc/self/ns/user") != "user:[4026531837]",
    reason="needs the machine's first pid and user namespace, to see all mounts",
)


@dataclass
class Seen:
    """A look at who uses volumes: all of them have the same holders."""

    mounts: list[Holder] = field(default_factory=list)
    opened: list[Holder] = field(default_factory=list)
    everything: bool = True
    looks: int = 0

    def __call__(self, scope: str) -> Look:
        self.looks += 1
        return self

    def sees_all(self) -> bool:
        return self.everything

    def mount_holders(self, volume: Volume) -> list[Holder]:
        return self.mounts

    def open_holders(self, volume: Volume) -> list[Holder]:
        return self.opened


class OpenStore(Protocol):
    def __call__(
        self,
        *,
        grace: float = 60.0,
        origin: Origin | None = None,
        look: Callable[[str], Look] | None = None,
    ) -> VolumeStore: ...


def open_at(scope: Path) -> VolumeStore:
    driver = LocalDriver(scope, keep_free=0)
    return VolumeStore([driver], references=References(driver.scope))


def files(scope: Path, name: str = "vol") -> list[Path]:
    return sorted((scope / "references" / name).iterdir())


def refused(store: VolumeStore, name: str = "vol") -> str:
    """Return why the volume cannot be removed, and nothing else happens to it."""
    with pytest.raises(VolumeInUseError) as caught:
        store.remove(name)
    assert name in store.names()
    return str(caught.value)


def times_open(path: Path) -> int:
    """How many descriptors of a file this process has."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{fd}") == str(path)
    return found
