"""Holder: who uses a volume."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Holder:
    """One user of a volume.

    ``detail`` is the reference, or the path at which the holder sees the volume (in its own
    mount namespace). ``pid`` is the process, or for a mount the first process of its namespace:
    None for a mount in this process's own namespace, where the mount point says it all. ``uid`` is
    the process's user, None where that cannot be told.
    """

    kind: Literal["reference", "mount", "open"]
    detail: str
    pid: int | None = None
    command: str = ""
    container: str | None = None
    uid: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        what = {"reference": "reference", "mount": "mounted at", "open": "open"}[self.kind]
        by = f" by process {self.pid} ({self.command})" if self.pid is not None else ""
        by += f" of uid {self.uid}" if self.uid else ""
        where = f" in container {self.container[:12]}" if self.container else ""
        return f"{what} {self.detail}{by}{where}"
