"""A second driver, as simple as can be: volumes known to one object only."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tests.words.volumes import PlainVolume
from volfs.errors import (
    OptionConflictError,
    UnknownOptionError,
    VolumeExistsError,
    VolumeNotFoundError,
)
from volfs.volume import NewVolume, Volume, check_name


class MemoryDriver:
    """Implements Driver. Its one option is ``mode``. The data lies in ``directory``."""

    def __init__(self, directory: Path, name: str = "memory") -> None:
        self.name = name
        self.closed = False
        self._directory = directory
        self._volumes: dict[str, PlainVolume] = {}
        self._lock = threading.RLock()

    def create(self, new: NewVolume | str) -> PlainVolume:
        new = _checked(new)
        with self._lock:
            volume = self._volumes.get(new.name)
            if volume is None:
                return self._made(new)
            if new.options and new.options != volume.options:
                raise OptionConflictError(new.name)
            return volume

    def make(self, new: NewVolume | str) -> tuple[PlainVolume, int]:
        new = _checked(new)
        with self._lock:
            if new.name in self._volumes:
                raise VolumeExistsError(new.name)
            volume = self._made(new)
            return volume, volume.open()

    def _made(self, new: NewVolume) -> PlainVolume:
        path = tempfile.mkdtemp(dir=self._directory)
        volume = PlainVolume(
            new.name, path, self.name, datetime.now(UTC), dict(new.labels), dict(new.options)
        )
        self._volumes[new.name] = volume
        return volume

    def get(self, name: str) -> PlainVolume:
        try:
            return self._volumes[name]
        except KeyError:
            raise VolumeNotFoundError(name) from None

    def list(self) -> list[PlainVolume]:
        return [self._volumes[name] for name in sorted(self._volumes)]

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._volumes))

    def remove(self, volume: Volume, *, by: str = "") -> None:
        with self._lock:
            self.get(volume.name)
            del self._volumes[volume.name]

    def rename(self, volume: Volume, new_name: str) -> PlainVolume:
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

    def set_labels(self, volume: Volume, labels: Mapping[str, str]) -> PlainVolume:
        with self._lock:
            changed = replace(self.get(volume.name), labels=dict(labels))
            self._volumes[volume.name] = changed
            return changed

    def housekeep(self, stopping: Callable[[], bool]) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def _checked(new: NewVolume | str) -> NewVolume:
    new = NewVolume.of(new)
    check_name(new.name)
    if unknown := set(new.options) - {"mode"}:
        raise UnknownOptionError(f"unknown option {min(unknown)}; the options are mode")
    return new
