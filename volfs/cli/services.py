"""What the daemons serve: a tree, the volume plugin, or both from one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from volfs.cli.scope import is_scope
from volfs.errors import PluginError, ScopeError, VolfsError
from volfs.linux.mountinfo import is_inside

if TYPE_CHECKING:
    from volfs.cli.options import MountRequest


@dataclass(frozen=True, slots=True)
class PluginRequest:
    """What a plugin that is served by itself is asked for.

    ``mountpoint`` is where another process serves the tree, None without one; ``native`` says
    that volumes are used at their data path. ``keep_removed``: seconds a removed volume stays
    restorable; None leaves the trash to the tree's daemon.
    """

    scope: str
    mountpoint: str | None
    socket: str
    native: bool = False
    keep_removed: float | None = None


def default_socket() -> str:
    """Return where the plugin is served unless told otherwise. Raises PluginError."""
    if os.geteuid() == 0:
        from volfs.docker.listener import DEFAULT

        return DEFAULT
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if not runtime.startswith("/"):
        raise PluginError("there is no $XDG_RUNTIME_DIR to serve in: name a path with --socket")
    return str(Path(runtime) / "volfs.sock")


def _require_no_tree(scope: str) -> None:
    """Raise ScopeError for a tree: as a scope, its volumes would be named for what a scope holds.

    Commands that look take it for the tree's scope. What serves for long is told to say so
    itself: as long as that tree is not mounted, the same words would mean another scope.
    """
    from volfs.store import MountedTrees

    at = MountedTrees().at(os.path.realpath(scope))
    if at is not None and not at.inside:
        raise ScopeError(f"{scope} is a tree of {at.scope}: give that as the scope")


def serve_tree(
    scope: str, mountpoint: str, request: MountRequest, ready: Callable[[], None]
) -> None:
    """Serve ``scope`` at ``mountpoint`` until it is unmounted, or a signal would end the process.

    With ``request.plugin`` the plugin as well, while the tree answers. Calls ``ready`` once all
    of it answers. Raises MountError, ScopeError, PluginError.
    """
    import trio

    from volfs.fs.mount.checks import check
    from volfs.fs.mount.companion import View
    from volfs.fs.mount.serving import serve as serve_mount
    from volfs.store import open_scope

    check(scope, mountpoint, request.options)
    _require_no_tree(scope)
    if not request.create_scope and not is_scope(scope):
        raise ScopeError(
            f"there are no volumes in {scope}, and no scope is made here by itself: if its disk is"
            " not mounted, mount that first; if it is to be a new one, add the option create-scope"
        )
    # The tree knows by itself what is open in it.
    with open_scope(scope, keep_removed=request.keep_removed, open_files=False) as opened:
        plugin, view = None, View()
        if request.plugin:
            from volfs.docker.places import Places
            from volfs.docker.server import serve

            target = os.path.realpath(mountpoint)
            places = Places(opened.path, target, view=view)
            socket = request.plugin_socket or default_socket()
            if is_inside(os.path.realpath(os.path.dirname(socket)), target):
                raise PluginError(
                    f"the plugin's socket {socket} cannot be in the tree itself: choose another"
                    " with --plugin-socket"
                )
            plugin = partial(serve, opened.store, places, socket)
        try:
            trio.run(
                serve_mount,
                opened.store,
                opened.path,
                mountpoint,
                request.options,
                ready,
                plugin,
                view,
            )
        except BaseExceptionGroup as group:
            raise _only(group) from None


def serve_plugin(request: PluginRequest, ready: Callable[[], None]) -> None:
    """Serve the plugin until a signal would end the process. Calls ``ready`` once it answers.

    Raises ScopeError, PluginError.
    """
    import trio

    from volfs.docker.places import Places
    from volfs.docker.server import serve_alone
    from volfs.store import open_scope

    _require_no_tree(request.scope)
    keep = request.keep_removed
    with open_scope(request.scope, keep_removed=keep or 0.0) as opened:
        mountpoint = request.mountpoint and os.path.realpath(request.mountpoint)
        places = Places(opened.path, mountpoint, native=request.native)
        alone = partial(serve_alone, housekeeping=keep is not None)
        try:
            trio.run(alone, opened.store, places, request.socket, ready)
        except BaseExceptionGroup as group:
            raise _only(group) from None


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the expected failure that a group holds and nothing else; otherwise the group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, VolfsError) else group
