"""Which scope a command works on, and its store."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from volfs.errors import ScopeError

if TYPE_CHECKING:
    from volfs.local import LocalDriver
    from volfs.store import Scan, VolumeStore

scope_option = click.option(
    "--scope",
    envvar="VOLFS_SCOPE",
    metavar="SCOPE",
    help="The directory that keeps the volumes (default: $VOLFS_SCOPE, else /var/lib/volfs for "
    "root and $XDG_DATA_HOME/volfs for others).",
)


def default_scope() -> str:
    """Return the scope of somebody who names none."""
    if os.geteuid() == 0:
        return "/var/lib/volfs"
    data = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification says to ignore a relative path.
    return str((Path(data) if data.startswith("/") else Path.home() / ".local/share") / "volfs")


def given_scope() -> str:
    """Return ``--scope SCOPE `` if this command was told so: for commands that are suggested."""
    context = click.get_current_context()
    if context.get_parameter_source("scope") is not click.core.ParameterSource.COMMANDLINE:
        return ""
    return f"--scope {shlex.quote(context.params['scope'])} "


@dataclass(frozen=True, slots=True)
class OpenScope:
    """A scope at work: the store, its local driver, and one look at who uses what."""

    path: str
    store: VolumeStore
    driver: LocalDriver
    scan: Scan


@contextmanager
def open_scope(scope: str | None, *, make: bool = False) -> Iterator[OpenScope]:
    """Open a scope for one command. ``make`` allows to make it where there is none yet.

    The store's holders are the mounts of every namespace and the files open through a tree,
    as they were when first asked for. Raises ScopeError.
    """
    from volfs.local import LocalDriver
    from volfs.store import References, Scan, VolumeStore

    path = scope or default_scope()
    if not make and not Path(path, "volumes").is_dir():
        raise ScopeError(
            f"there are no volumes in {path} yet: "
            f"`volfs create --scope {path} NAME` makes the first, or name another --scope"
        )
    driver = LocalDriver(path)
    store = VolumeStore([driver], references=References(driver.scope))
    scan = Scan(driver.scope)
    store.add_holder_source(scan.mount_holders)
    store.add_holder_source(scan.open_holders)
    try:
        yield OpenScope(driver.scope, store, driver, scan)
    finally:
        store.close()
