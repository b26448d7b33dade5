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
from volfs.store.usage import Scan, mount_holders, open_holders


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

    The store's holders are the references kept in the scope, the mounts of every namespace and,
    with ``open_files``, the files open through a tree: a tree's own daemon knows those better. They
    are looked for each time somebody asks; with ``once``, for programs that soon end, the first
    time only. ``keep_removed``: see LocalDriver. Raises ScopeError.
    """
    driver = LocalDriver(scope, keep_removed=keep_removed)
    store = VolumeStore([driver], references=References(driver.scope))
    try:
        if once:
            scan = Scan(driver.scope)
            sources = [scan.mount_holders, scan.open_holders]
        else:
            sources = [partial(look, scope=driver.scope) for look in (mount_holders, open_holders)]
        for source in sources if open_files else sources[:1]:
            store.add_holder_source(source)
        yield OpenScope(driver.scope, store)
    finally:
        store.close()
