"""A second driver, as simple as can be: volumes known to one object only."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from volfs.errors import (
    OptionConflictError,
    UnknownOptionError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from volfs.volume import Owner, Volume, check_name


@dataclass(frozen=True)
class MemoryVolume:
    name: str
    driver_name: str
    path: str
    created_at: datetime | None
    labels: Mapping[str, str]
    options: Mapping[str, str]

    def mount(self) -> str:
        return self.path

    def unmount(self) -> None:
        pass


class MemoryDriver:
    """Implements Driver. Its one option is ``mode``. The data lies in ``directory``."""

    def __init__(self, directory: Path, name: str = "memory") -> None:
        self.name = name
        self.closed = False
        self._directory = directory
        self._volumes: dict[str, MemoryVolume] = {}
        self._lock = threading.RLock()

    def create(
        self,
        name: str,
        options: Mapping[str, str] | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        owner: Owner | None = None,
        exclusive: bool = False,
    ) -> MemoryVolume:
        check_name(name)
        if unknown := set(options or {}) - {"mode"}:
            raise UnknownOptionError(f"unknown option {min(unknown)}; the options are mode")
        with self._lock:
            volume = self._volumes.get(name)
            if volume is None:
                path = tempfile.mkdtemp(dir=self._directory)
                volume = MemoryVolume(
                    name,
                    self.name,
                    path,
                    datetime.now(UTC),
                    dict(labels or {}),
                    dict(options or {}),
                )
                self._volumes[name] = volume
            elif exclusive:
                raise VolumeExistsError(name)
            elif options and options != volume.options:
                raise OptionConflictError(name)
            return volume

    def get(self, name: str) -> MemoryVolume:
        try:
            return self._volumes[name]
        except KeyError:
            raise VolumeNotFoundError(name) from None

    def list(self) -> list[MemoryVolume]:
        return [self._volumes[name] for name in sorted(self._volumes)]

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._volumes))

    def remove(self, volume: Volume, *, by: str = "") -> None:
        with self._lock:
            self.get(volume.name)
            del self._volumes[volume.name]

    def rename(self, volume: Volume, new_name: str) -> MemoryVolume:
        check_name(new_name)
        with self._lock:
            renamed = replace(self.get(volume.name), name=new_name)
            if new_name in self._volumes and new_name != volume.name:
                raise VolumeExistsError(new_name)
            del self._volumes[volume.name]
            self._volumes[new_name] = renamed
            return renamed

    def exchange(self, first: Volume, second: Volume) -> None:
        with self._lock:
            one, other = self.get(first.name), self.get(second.name)
            self._volumes[one.name] = replace(other, name=one.name)
            self._volumes[other.name] = replace(one, name=other.name)

    def set_labels(self, volume: Volume, labels: Mapping[str, str]) -> MemoryVolume:
        with self._lock:
            changed = replace(self.get(volume.name), labels=dict(labels))
            self._volumes[volume.name] = changed
            return changed

    def housekeep(self, stopping: Callable[[], bool]) -> None:
        pass

    def close(self) -> None:
        self.closed = True
