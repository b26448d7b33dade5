"""The command plugin."""

from __future__ import annotations

import logging
import os
import shlex
from functools import partial
from pathlib import Path

import click

from volfs.cli.durations import parse_duration
from volfs.cli.output import complain
from volfs.cli.scope import announcing, default_scope, served_scope_option


@click.command()
@served_scope_option
@click.option(
    "--mount", "mountpoint", metavar="MOUNTPOINT", help="Where the tree of the scope is mounted."
)
@click.option(
    "--socket",
    metavar="PATH",
    help="Where to serve (default: /run/docker/plugins/volfs.sock for root and "
    "$XDG_RUNTIME_DIR/volfs.sock for others).",
)
@click.option(
    "--native",
    is_flag=True,
    help="Let containers use volumes at their data path, without the tree, unless a volume was "
    "made with the option path=tree.",
)
@click.option(
    "--keep-removed",
    metavar="DURATION",
    help="How long a removed volume can be restored, 24h by default. Only without --mount: "
    "with it, the tree's daemon says so.",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay, and log to standard error.")
@click.option("--log-file", metavar="FILE", help="Where the daemon in the background logs.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, not only what fails.")
@click.option("--debug", is_flag=True, help="Log everything.")
def plugin(
    scope: str | None,
    mountpoint: str | None,
    socket: str | None,
    native: bool,
    keep_removed: str | None,
    foreground: bool,
    log_file: str | None,
    verbose: bool,
    debug: bool,
) -> None:
    """Serve a scope as a volume plugin for Docker and Podman.

    \b
      volfs plugin --scope /srv/volumes --mount /mnt/volumes
      volfs plugin --scope /srv/volumes --native
      docker volume create -d volfs -o uid=1000 -o label.team=web web
      docker run -v web:/data --volume-driver volfs IMAGE

    Containers find their volumes in the tree that is mounted at MOUNTPOINT, by this or another
    process: `volfs mount --plugin` serves both. With --native they use the data itself.

    \b
    Options of `docker volume create -o`, all of them optional:
      uid=N gid=N mode=OCTAL   owner and mode; the daemon's, 0755, by default
      label.KEY=VALUE          a label, as `volfs ls` shows it
      from=VOLUME              start as a copy of that volume
      path=tree|native         where containers find it, whatever the plugin does otherwise

    Podman finds the plugin by a line in containers.conf(5), below [engine.volume_plugins]:
    volfs = "/run/docker/plugins/volfs.sock".

    Returns when the plugin serves; a daemon goes on in the background and logs as that of
    `volfs mount` does. With -f it stays in the foreground instead, and tells systemd when
    it is ready. A signal such as SIGTERM ends it with 0; upon SIGHUP its log is opened anew. It
    should be up before dockerd is.

    The exit code is 11 when the socket cannot be served, also when another plugin serves it.
    """
    from volfs.cli import daemon, services

    if mountpoint is None and not native:
        raise click.UsageError("name the tree by --mount, or use the data itself by --native")
    if keep_removed is not None and mountpoint is not None:
        raise click.UsageError("--keep-removed is for the daemon of the tree at the mount point")
    keep: float | None = None
    if mountpoint is None:
        try:
            keep = parse_duration("24h" if keep_removed is None else keep_removed)
        except ValueError as error:
            raise click.UsageError(f"--keep-removed: {error}") from None
    request = services.PluginRequest(
        scope=str(Path(scope or default_scope()).absolute()),
        mountpoint=mountpoint and str(Path(mountpoint).absolute()),
        socket=str(Path(socket or services.default_socket()).absolute()),
        native=native,
        keep_removed=keep,
    )
    if request.mountpoint is not None:
        _tell_of_missing_tree(request.scope, request.mountpoint)
    serve = partial(services.serve_plugin, request)
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    with announcing(request.scope) as announce:
        if foreground:
            daemon.run_in_foreground(serve, request.scope, level, announce)
        else:
            daemon.run_in_background(serve, level, log_file)


def _tell_of_missing_tree(scope: str, mountpoint: str) -> None:
    """Say that no tree is mounted where containers are to find their volumes.

    It is no failure: at boot the tree may come later.
    """
    from volfs.store import tree_mounts

    if os.path.realpath(mountpoint) not in tree_mounts(os.path.realpath(scope)):
        command = shlex.join(["volfs", "mount", scope, mountpoint])
        complain(
            f"no tree of {scope} is mounted at {mountpoint}: containers get no volumes until"
            f" `{command}` has mounted it"
        )
