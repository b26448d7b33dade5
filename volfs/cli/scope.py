"""Which scope a command works on, and its store."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from volfs.errors import ScopeError

if TYPE_CHECKING:
    from volfs.store import OpenScope

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
    """Return ``--scope SCOPE `` if this command was given it: for the commands it suggests."""
    context = click.get_current_context()
    if context.get_parameter_source("scope") is not click.core.ParameterSource.COMMANDLINE:
        return ""
    return f"--scope {shlex.quote(context.params['scope'])} "


@contextmanager
def open_scope(scope: str | None, *, make: bool = False) -> Iterator[OpenScope]:
    """Open a scope for one command. With ``make`` it is made where there is none yet.

    Who uses its volumes is looked up only once. Raises ScopeError.
    """
    from volfs import store

    path = scope or default_scope()
    if not make and not Path(path, "volumes").is_dir():
        raise ScopeError(
            f"there are no volumes in {path} yet: "
            f"`volfs create --scope {path} NAME` makes the first, or name another --scope"
        )
    with store.open_scope(path, once=True) as opened:
        yield opened
