"""The commands for volumes: create, rm, ls, inspect, rename."""

from __future__ import annotations

import getpass
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from volfs.cli.output import (
    complain,
    iso,
    json_option,
    local_time,
    pairs,
    print_json,
    print_table,
    printable,
)
from volfs.cli.scope import given_scope, open_scope, scope_option
from volfs.errors import VolfsError

if TYPE_CHECKING:
    from volfs.volume import Volume


@click.command()
@scope_option
@click.option(
    "--opt",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="A create option: uid, gid or mode (octal) of the data path.",
)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label to keep.")
@json_option
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def create(
    scope: str | None,
    options: tuple[str, ...],
    labels: tuple[str, ...],
    as_json: bool,
    names: tuple[str, ...],
) -> int:
    """Make volumes.

    \b
      volfs create web
      volfs create --label team=blue --opt uid=1000 --opt mode=0750 data logs

    Makes the scope as well when there is none yet. A volume that exists already is left as it
    is, which is success unless it was made with other options. Prints the names.
    """
    wanted, tags = _pairs(options, "--opt"), _pairs(labels, "--label")
    made: list[Volume] = []
    with open_scope(scope, make=True) as opened:

        def one(name: str) -> None:
            made.append(opened.store.create(name, wanted or None, labels=tags or None))
            if not as_json:
                click.echo(printable(name))

        code = _each(names, one)
        if as_json:
            print_json([describe(volume) for volume in made])
    return code


@click.command()
@scope_option
@click.option("--empty", is_flag=True, help="Remove only what holds no data.")
@json_option
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def rm(scope: str | None, empty: bool, as_json: bool, names: tuple[str, ...]) -> int:
    """Remove volumes, with their data, into the trash.

    \b
      volfs rm web
      volfs restore web        brings it back
      volfs prune              deletes it for good

    A volume that is in use is refused, and the message says by whom: a runtime's reference, a
    mount in any container, or a file open through the tree.
    """
    removed: list[str] = []
    with open_scope(scope) as opened:

        def one(name: str) -> None:
            opened.store.remove(name, by=f"volfs rm by {_user()}", only_empty=empty)
            removed.append(name)
            if not as_json:
                undo = f"volfs restore {given_scope()}{shlex.quote(name)}"
                click.echo(printable(f"removed {name} ({undo} brings it back)"))

        code = _each(names, one)
        if as_json:
            print_json([{"name": name} for name in removed])
    return code


@click.command()
@scope_option
@click.option("--removed", is_flag=True, help="List the trash instead: what can be restored.")
@click.option("-q", "--quiet", is_flag=True, help="Print only names (of removed volumes: ids).")
@json_option
def ls(scope: str | None, removed: bool, quiet: bool, as_json: bool) -> None:
    """List volumes.

    \b
      volfs ls
      volfs ls --removed                   what can be restored
      volfs ls --json | jq -r '.[].path'

    To a pipe, columns are separated by tabs.
    """
    with open_scope(scope) as opened:
        if removed:
            entries = opened.driver.trash.list()
            if as_json:
                print_json([asdict(e) | {"removed_at": iso(e.removed_at)} for e in entries])
            elif quiet:
                _lines(entry.id for entry in entries)
            else:
                print_table(
                    ("NAME", "REMOVED", "BY", "ID"),
                    ((e.name, local_time(e.removed_at), e.by or "-", e.id) for e in entries),
                )
        elif quiet and not as_json:
            _lines(opened.store.names())
        else:
            volumes = opened.store.list()
            if as_json:
                print_json([describe(volume) for volume in volumes])
            else:
                print_table(
                    ("NAME", "DRIVER", "CREATED", "LABELS"),
                    (
                        (v.name, v.driver_name, local_time(v.created_at), pairs(v.labels.items()))
                        for v in volumes
                    ),
                )


@click.command()
@scope_option
@json_option
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def inspect(scope: str | None, as_json: bool, names: tuple[str, ...]) -> int:
    """Show all that is known of volumes, and who uses them.

    \b
      volfs inspect web
      volfs inspect web --json | jq '.[0].holders'

    A holder is a runtime's reference, a mount (which process of which container has it where),
    or a file open through the tree. What one may see of others' processes is up to the kernel:
    root sees all, a user sees their own.
    """
    found = []
    with open_scope(scope) as opened:

        def one(name: str) -> None:
            volume = opened.store.get(name)
            holders = opened.store.holders(name)
            found.append(describe(volume) | {"holders": [asdict(holder) for holder in holders]})
            if as_json:
                return
            if len(found) > 1:
                click.echo()
            for title, value in (
                ("Name", volume.name),
                ("Driver", volume.driver_name),
                ("Path", volume.path),
                ("Created", local_time(volume.created_at)),
                ("Labels", pairs(volume.labels.items()) or "-"),
                ("Options", pairs(volume.options.items()) or "-"),
                ("Used by", str(holders[0]) if holders else "nobody"),
                *(("", str(holder)) for holder in holders[1:]),
            ):
                click.echo(f"{title + ':' if title else '':<9}{printable(value)}")

        code = _each(names, one)
        if as_json:
            print_json(found)
    return code


@click.command()
@scope_option
@json_option
@click.argument("old")
@click.argument("new")
def rename(scope: str | None, as_json: bool, old: str, new: str) -> None:
    """Give a volume another name.

    \b
      volfs rename web web-old

    Refused when the new name is taken, and while a runtime or a mount holds the volume: it
    would go on under a name that is no more. Open files do not matter.
    """
    with open_scope(scope) as opened:
        volume = opened.store.rename(old, new)
        if as_json:
            print_json(describe(volume))


def describe(volume: Volume) -> dict[str, object]:
    """Return a volume as JSON shows it."""
    return {
        "name": volume.name,
        "driver": volume.driver_name,
        "path": volume.path,
        "created_at": iso(volume.created_at),
        "labels": dict(volume.labels),
        "options": dict(volume.options),
    }


def _each(names: Iterable[str], one: Callable[[str], None]) -> int:
    """Do it for every name; complain of each that fails, and end with the first one's code."""
    code = 0
    for name in dict.fromkeys(names):
        try:
            one(name)
        except VolfsError as error:
            complain(str(error))
            code = code or error.exit_code
        except OSError as error:
            complain(f"{name}: {error.strerror or error}")
            code = code or VolfsError.exit_code
    return code


def _pairs(words: Iterable[str], option: str) -> dict[str, str]:
    values = {}
    for word in words:
        key, _, value = word.partition("=")
        if not key:
            raise click.BadParameter(f"{word!r} is not KEY=VALUE", param_hint=option)
        values[key] = value
    return values


def _lines(texts: Iterable[str]) -> None:
    for text in texts:
        click.echo(printable(text))


def _user() -> str:
    # sudo tells who is behind root.
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
