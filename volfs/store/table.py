"""What a reference is, and how a store remembers them: ReferenceTable."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from volfs.volume import Volume

ID_MAX = 4096
"""Longest id of a reference in bytes."""

_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Origin:
    """A machine (machine-id(5), else its host name) and one of its boots."""

    host: str
    boot: str

    @classmethod
    def here(cls) -> Origin:
        """Return the running machine's."""
        host = _line("/etc/machine-id")
        if not _MACHINE_ID.fullmatch(host):  # missing, empty or "uninitialized"
            host = os.uname().nodename
        return cls(host, _line("/proc/sys/kernel/random/boot_id"))


@dataclass(frozen=True, slots=True)
class Reference:
    """One use of a volume by whoever chose the ``id``.

    ``since`` is when it was last acquired, for people to read (None: not known); ``awake`` the
    same in seconds of CLOCK_MONOTONIC in that boot, which no change of the clock moves. A file
    that cannot be read as a reference still keeps its volume from being removed: it is shown as
    one without an origin, whose id names the file.
    """

    id: str
    since: datetime | None = None
    awake: float = 0.0
    origin: Origin | None = None


def encoded_id(id: str) -> bytes:
    """Return an id as bytes. Raises OSError(EINVAL) when it is too long."""
    data = id.encode("utf-8", "surrogatepass")
    if len(data) > ID_MAX:
        raise OSError(
            errno.EINVAL, f"the id of a reference has at most {ID_MAX} bytes, not {len(data)}"
        )
    return data


class ReferenceTable(Protocol):
    """Keeps references by volume name. Safe against other threads."""

    def of(self, name: str) -> list[Reference]:
        """Return the references to a volume, sorted by id."""
        ...

    def names(self) -> list[str]:
        """Return the names for which anything is kept."""
        ...

    def add(self, name: str, id: str) -> None:
        """Note a reference, or renew it if it is known. Only while ``held(name, shared=True)``.

        Raises OSError(EINVAL) when the id is longer than ID_MAX.
        """
        ...

    def discard(self, name: str, id: str) -> None:
        """Forget a reference if it is known."""
        ...

    def forget(self, name: str) -> None:
        """Forget all references to a volume that is gone. Only while ``held(name)``."""
        ...

    def held(self, *names: str, shared: bool = False) -> AbstractContextManager[None]:
        """Keep others from acquiring and removing these volumes; with ``shared`` from removing."""
        ...

    def drop_stale(self, volumes: Iterable[Volume]) -> None:
        """Forget the references to these volumes whose holder is gone."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


class UnsavedReferences:
    """References in memory: nobody else knows of them, and they end with the process."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, Reference]] = {}
        self._lock = threading.Lock()

    def of(self, name: str) -> list[Reference]:
        return sorted(self._known.get(name, {}).values(), key=lambda reference: reference.id)

    def names(self) -> list[str]:
        return sorted(self._known)

    def add(self, name: str, id: str) -> None:
        encoded_id(id)
        with self._lock:
            self._known[name] = self._known.get(name, {}) | {id: Reference(id)}

    def discard(self, name: str, id: str) -> None:
        with self._lock:
            left = {key: value for key, value in self._known.get(name, {}).items() if key != id}
            if left:
                self._known[name] = left
            else:
                self._known.pop(name, None)

    def forget(self, name: str) -> None:
        with self._lock:
            self._known.pop(name, None)

    def held(self, *names: str, shared: bool = False) -> AbstractContextManager[None]:
        return nullcontext()

    def drop_stale(self, volumes: Iterable[Volume]) -> None:
        pass

    def close(self) -> None:
        pass


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
