"""LocalVolume: one volume of a scope, as it was when it was looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from volfs.local.sidecar import Record


class LocalVolume:
    """A volume of a LocalDriver: see volfs.volume.Volume.

    What its sidecar says is read when first asked for, and empty for a volume gone by then.
    """

    __slots__ = ("_opener", "_record", "name", "path")

    driver_name = "local"

    def __init__(
        self,
        name: str,
        path: str,
        record: Record | Callable[[str], Record | None],
        opener: Callable[[str], int],
    ) -> None:
        """``record`` is what its sidecar says, or reads that, given its name (None: it is gone).

        ``opener`` opens its data path, given its name: see Volume.open.
        """
        self.name = name
        self.path = path
        self._record = record
        self._opener = opener

    @property
    def created_at(self) -> datetime | None:
        return self._known().created_at

    @property
    def labels(self) -> Mapping[str, str]:
        return self._known().labels

    @property
    def options(self) -> Mapping[str, str]:
        return self._known().options

    def mount(self) -> str:
        return self.path

    def open(self) -> int:
        return self._opener(self.name)

    def unmount(self) -> None:
        pass

    def _known(self) -> Record:
        if not isinstance(self._record, Record):
            self._record = self._record(self.name) or Record()
        return self._record

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LocalVolume):
            return NotImplemented
        return (self.name, self.path) == (other.name, other.path)

    def __hash__(self) -> int:
        return hash((self.name, self.path))

    def __repr__(self) -> str:
        return f"LocalVolume({self.name!r}, {self.path!r})"
