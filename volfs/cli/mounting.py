"""The commands mount and umount."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import click

from volfs.cli.options import mount_options, request_of
from volfs.cli.output import complain, json_option, print_json, print_lines, print_table
from volfs.cli.scope import announcing, default_scope, served_scope_option
from volfs.errors import MountError


@click.command()
@served_scope_option
@mount_options
@click.option("-f", "--foreground", is_flag=True, help="Stay, and log to standard error.")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, not only what fails.")
@click.option("--debug", is_flag=True, help="Log everything.")
@click.option("-q", "--quiet", is_flag=True, help="Of what is mounted, print only mount points.")
@json_option
@click.argument("places", metavar="[SCOPE] MOUNTPOINT", nargs=-1)
def mount(
    scope: str | None,
    o: tuple[str, ...],
    foreground: bool,
    verbose: bool,
    debug: bool,
    quiet: bool,
    as_json: bool,
    places: tuple[str, ...],
    **fields: object,
) -> None:
    """Serve a scope as a tree of volumes.

    \b
      volfs mount /srv/volumes /mnt/volumes
      volfs mount /srv/volumes /mnt/volumes -o cache=never,rmdir=empty
      volfs mount --keep-removed 7d /var/lib/docker /mnt/volumes
      volfs mount -f /srv/volumes /mnt/volumes        in a service file
      volfs mount --plugin /srv/volumes /mnt/volumes  for Docker and Podman as well
      volfs mount                                     lists the trees that are mounted

    In the tree mkdir makes a volume and rmdir removes it, with its data, into the trash.

    Makes the scope when there is none, and says so. Returns when the tree serves; a daemon goes
    on in the background and logs to /var/log/volfs.log, or for users other than root to
    $XDG_STATE_HOME/volfs.log. With -f it stays in the foreground instead. A signal
    such as SIGTERM unmounts the tree and ends it with 0; upon SIGHUP its log is opened anew.
    systemd is told when it is ready.

    With --plugin the same process is the volume plugin of Docker and Podman: see
    `volfs plugin --help`.

    When it cannot work, the exit code is 10 and the message says why; `volfs doctor` shows
    what this machine lacks.
    """
    from volfs.cli import daemon, services

    if not places:
        _list_trees(quiet=quiet, as_json=as_json)
        return
    if quiet or as_json:
        raise click.UsageError("--quiet and --json are for listing what is mounted")
    if len(places) > 2:
        raise click.UsageError("mount takes a scope and a mount point")
    if (
        len(places) == 2
        and click.get_current_context().get_parameter_source("scope")
        is click.core.ParameterSource.COMMANDLINE
    ):
        raise click.UsageError("name the scope either by --scope or as an argument")
    mountpoint = places[-1]
    if len(places) == 2:
        scope = places[0]
    request = request_of(o, fields)
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    scope = str(Path(scope or default_scope()).absolute())
    serve = partial(services.serve_tree, scope, str(Path(mountpoint).absolute()), request)
    with announcing(scope) as announce:
        if foreground:
            daemon.run_in_foreground(serve, scope, level, announce)
        else:
            daemon.run_in_background(serve, level, request.log_file)


def _list_trees(*, quiet: bool, as_json: bool) -> None:
    """Show the trees that are mounted, of whatever scope; other options have no place there."""
    context = click.get_current_context()
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        listing = param.name in ("quiet", "as_json", "places")
        if source is click.core.ParameterSource.COMMANDLINE and not listing:
            raise click.UsageError(f"{param.opts[0]} is for mounting: name a mount point")
    from volfs.store import MountedTrees

    trees = [(tree.root or "", tree.scope) for tree in MountedTrees().roots()]
    if as_json:
        print_json([{"mountpoint": point, "scope": scope} for point, scope in trees])
    elif quiet:
        print_lines(point for point, _ in trees)
    else:
        print_table(("MOUNTPOINT", "SCOPE"), trees)
        if not trees:
            click.echo("no trees are mounted", err=True)


@click.command()
@click.option(
    "-l",
    "--lazy",
    is_flag=True,
    help="Take it away from the namespace now, and end it when its last user goes.",
)
@click.argument("mountpoints", metavar="MOUNTPOINT...", nargs=-1, required=True)
def umount(lazy: bool, mountpoints: tuple[str, ...]) -> int:
    """Unmount trees; their daemons end.

    \b
      volfs umount /mnt/volumes
      volfs umount --lazy /mnt/volumes

    Returns when the daemon has ended. A busy tree is refused (exit code 10), and the message says
    who is busy in it; with --lazy, who still is, and the exit code is 0. The volumes stay in the
    scope.
    """
    from volfs.fs.mount.unmounting import shown, unmount

    code = 0
    for mountpoint in mountpoints:
        try:
            keepers = unmount(str(Path(mountpoint).absolute()), lazy=lazy)
        except MountError as error:
            complain(str(error))
            code = code or error.exit_code
        else:
            if keepers:
                complain(f"{mountpoint} ends with its last user: {shown(keepers)}")
    return code
