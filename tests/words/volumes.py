"""The least that is a volume."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from volfs.linux.durable import PLACE


@dataclass(frozen=True)
class PlainVolume:
    """What a Volume tells, as it is told here. Its data is at ``path``, if anywhere."""

    name: str
    path: str = "/nowhere"
    driver_name: str = "local"
    created_at: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    def mount(self) -> str:
        return self.path

    def open(self) -> int:
        return os.open(self.path, PLACE)

    def unmount(self) -> None:
        pass
