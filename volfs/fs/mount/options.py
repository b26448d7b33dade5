"""MountOptions: what a mount of the tree can be told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from volfs.fs.files import CachePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """Options of one mount.

    ``allow_other``: whether users other than the one who mounts get in; None means yes for root,
    whose containers run as others, and no for everybody else.
    ``root_owner``: (uid, gid) of the tree's root directory; None means those of the daemon.
    ``noatime``: reading leaves times of access as they are.
    ``rmdir``: "data" removes a volume with its data (into the trash), "empty" refuses with
    ENOTEMPTY while it holds any.
    ``tap`` and ``passthrough``: whether the wire tap, and with it FUSE passthrough, are used
    where they can be; see fs/wire.
    ``housekeeping_interval``: seconds between two rounds of the store's chores.
    """

    cache: CachePolicy = CachePolicy.AUTO
    allow_other: bool | None = None
    read_only: bool = False
    suid: bool = False
    dev: bool = False
    noexec: bool = False
    noatime: bool = False
    rmdir: Literal["data", "empty"] = "data"
    root_mode: int = 0o755
    root_owner: tuple[int, int] | None = None
    tap: bool = True
    passthrough: bool = True
    housekeeping_interval: float = 60.0

    @property
    def owner(self) -> tuple[int, int]:
        """(uid, gid) of the tree's root directory."""
        return self.root_owner or (os.geteuid(), os.getegid())
