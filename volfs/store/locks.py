"""NameLocks: changes of one volume wait for each other, and for those of no other volume."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _NameLock:
    lock: threading.Lock = field(default_factory=threading.Lock)
    wanted_by: int = 0


class NameLocks:
    """A lock for each name, which exists only while somebody holds or wants it."""

    def __init__(self) -> None:
        self._table: dict[str, _NameLock] = {}
        self._table_lock = threading.Lock()

    @contextmanager
    def held(self, *names: str) -> Iterator[None]:
        """Hold the locks of all ``names``, taken in one order for everybody: no deadlock."""
        taken: list[_NameLock] = []
        wanted = sorted(set(names))
        with self._table_lock:
            locks = [self._table.setdefault(name, _NameLock()) for name in wanted]
            for lock in locks:
                lock.wanted_by += 1
        try:
            for lock in locks:
                lock.lock.acquire()
                taken.append(lock)
            yield
        finally:
            for lock in reversed(taken):
                lock.lock.release()
            with self._table_lock:
                for name, lock in zip(wanted, locks, strict=True):
                    lock.wanted_by -= 1
                    if lock.wanted_by == 0:
                        del self._table[name]
