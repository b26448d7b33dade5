"""Opening a scope: the store of its volumes, with all that belongs to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from volfs.local import LocalDriver
from volfs.store.references import References
from volfs.store.store import VolumeStore
from volfs.store.usage import (
    Scan,
    disk_holders,
    mount_holders,
    open_elsewhere,
    open_holders,
)


@dataclass(frozen=True, slots=True)
class OpenScope:
    """A scope at work: ``path`` is its real path, ``store`` has its volumes."""

    path: str
    store: VolumeStore


@contextmanager
def open_scope(
    scope: str | os.PathLike[str],
    *,
    keep_removed: float = 86400.0,
    open_files: bool = True,
    once: bool = False,
) -> Iterator[OpenScope]:
    """Open a scope for as long as the context lasts, and make it if it is missing.

    The store's holders are the references kept in the scope, the mounts of every namespace and
    the files open through any tree; without ``open_files`` only through trees of others: a tree's
    own daemon knows better what is open in it.
    They are looked for each time somebody asks; with ``once``, for programs that soon end, the
    first time only. ``keep_removed``: see LocalDriver. Raises
    ScopeError.
    """
    driver = LocalDriver(scope, keep_removed=keep_removed)
    store = VolumeStore([driver], references=References(driver.scope))
    try:
        if once:
            scan = Scan(driver.scope, own_trees=open_files)
            sources = [scan.mount_holders, scan.disk_holders, scan.open_holders]
        else:
            opened = open_holders if open_files else open_elsewhere
            looks = (mount_holders, disk_holders, opened)
            sources = [partial(look, scope=driver.scope) for look in looks]
        for source in sources:
            store.add_holder_source(source)
        yield OpenScope(driver.scope, store)
    finally:
        store.close()
