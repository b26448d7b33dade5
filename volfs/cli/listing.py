"""The commands that look at volumes: ls, inspect."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from volfs.cli.filters import FILTERS, Filters, parse_filters
from volfs.cli.output import (
    complain,
    iso,
    json_option,
    local_time,
    pairs,
    print_json,
    print_lines,
    print_table,
    printable,
    size,
    users,
)
from volfs.cli.scope import find_each, open_scope, scope_option
from volfs.cli.space import by_size, measured, space_cell, space_fields
from volfs.cli.volumes import describe, for_each
from volfs.errors import VolfsError, VolumeNotFoundError

if TYPE_CHECKING:
    from volfs.cli.measuring import Space
    from volfs.holder import Holder
    from volfs.store import OpenScope
    from volfs.volume import Volume

_SORTS = ("name", "created", "size")


@dataclass(slots=True)
class ListedVolume:
    """A volume and what was found out about it; ``space`` is None where it was not measured."""

    volume: Volume
    holders: list[Holder]
    space: Space | None = None


def filter_option(
    *names: str, known: Iterable[str] = FILTERS, globs: bool = False, help: str
) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Return the option ``--filter``, whose value is the Filters it asks for.

    ``names`` are further spellings of the option, ``known`` the filters it takes; for ``globs``
    see parse_filters.
    """
    allowed = tuple(known)

    def parse(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> Filters:
        try:
            return parse_filters(words, known=allowed, globs=globs)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return click.option(
        *names,
        "--filter",
        "filters",
        multiple=True,
        metavar="NAME=VALUE",
        callback=parse,
        help=help,
    )


def find(
    opened: OpenScope, filters: Filters, *, look: bool = True
) -> tuple[list[ListedVolume], int]:
    """Return the volumes that match, sorted by name, and an exit code.

    With ``look`` their holders are found out too, otherwise only where a filter asks for them.
    A volume that is removed meanwhile is left out; one that cannot be read is complained of.
    """
    found, code = [], 0
    for volume in opened.store.list():
        held: dict[str, list[Holder]] = {}

        def in_use(volume: Volume, held: dict[str, list[Holder]] = held) -> bool:
            held[volume.name] = opened.store.holders(volume.name)
            return bool(held[volume.name])

        try:
            if filters.matches(volume, in_use):
                if look:
                    _ = volume.labels  # read now, so that a failure is this volume's only
                    held or in_use(volume)
                found.append(ListedVolume(volume, held.get(volume.name, [])))
        except VolumeNotFoundError:
            continue
        except OSError as error:
            complain(f"{volume.name}: {error.strerror or error}")
            code = VolfsError.exit_code
    return found, code


def measure_all(found: Iterable[ListedVolume]) -> None:
    """Find out how much space the volumes take, behind a progress bar."""
    listed = list(found)
    spaces = measured([(item.volume.name, item.volume.path) for item in listed])
    for item, space in zip(listed, spaces, strict=True):
        item.space = space


@click.command()
@scope_option
@filter_option("-f", help="Only some: see above. Can be given several times.")
@click.option("-s", "--size", "with_size", is_flag=True, help="Show the space each takes.")
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="name",
    help="By name (default), newest first, or largest first.",
)
@click.option("-r", "--reverse", is_flag=True, help="The other way round.")
@click.option("--removed", is_flag=True, help="List the trash instead: what can be restored.")
@click.option("-q", "--quiet", is_flag=True, help="Print only names (of removed volumes: ids).")
@json_option
def ls(
    scope: str,
    filters: Filters,
    with_size: bool,
    sort: str,
    reverse: bool,
    removed: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """List volumes.

    \b
      volfs ls
      volfs ls -f label=team=web -f dangling=true
      volfs ls --size --sort size
      volfs ls --removed                   what can be restored
      volfs ls --json | jq -r '.[].path'

    To a pipe, columns are separated by tabs.

    \b
    Filters mean what they mean to Docker:
      dangling=true|false     nobody, or somebody, uses it
      driver=NAME             it is of this driver
      label=KEY[=VALUE]       it has this label; of several, all
      label!=KEY[=VALUE]      it does not have this label; of several, none
      name=TEXT               a part of the name, or a regular expression; of several, any
      until=24h|2026-01-31    it was made longer ago, or before then

    A volume is used when a runtime refers to it, any container has it mounted, or a file of it is
    open through the tree. Root sees all of this, a user what their own processes do.
    """
    with open_scope(scope) as opened:
        if removed:
            if with_size or sort != "name" or filters != Filters():
                raise click.UsageError("--removed goes with --quiet, --reverse and --json only")
            _list_removed(opened, reverse=reverse, quiet=quiet, as_json=as_json)
            return 0
        with_size = with_size or sort == "size"
        look = as_json or not quiet
        found, code = find(opened, filters, look=look)
        if with_size and (look or sort == "size"):
            measure_all(found)
        found = _sorted(found, sort, reverse)
        if as_json:
            print_json(
                [
                    describe(item.volume)
                    | (space_fields(item.space) if with_size else {})
                    | {"holders": [asdict(holder) for holder in item.holders]}
                    for item in found
                ]
            )
        elif quiet:
            print_lines(item.volume.name for item in found)
        else:
            print_volumes(found, with_size=with_size, with_users=True)
            if not found and not code:
                nothing = "no volumes" if filters == Filters() else "no such volumes"
                click.echo(printable(f"{nothing} in {opened.path}"), err=True)
    return code


def print_volumes(found: Iterable[ListedVolume], *, with_size: bool, with_users: bool) -> None:
    """Print a table of volumes."""
    columns: dict[str, Callable[[ListedVolume], str]] = {
        "NAME": lambda item: item.volume.name,
        "DRIVER": lambda item: item.volume.driver_name,
        "CREATED": lambda item: local_time(item.volume.created_at),
        "SIZE": lambda item: space_cell(item.space),
        "USED BY": lambda item: users(item.holders),
        "LABELS": lambda item: pairs(item.volume.labels.items()),
    }
    if not with_size:
        del columns["SIZE"]
    if not with_users:
        del columns["USED BY"]
    print_table(
        [*columns], ([cell(item) for cell in columns.values()] for item in found), right="SIZE"
    )


def _list_removed(opened: OpenScope, *, reverse: bool, quiet: bool, as_json: bool) -> None:
    entries = opened.store.removed()
    if reverse:
        entries.reverse()
    if as_json:
        told = (
            {"id": e.id, "name": e.name, "removed_at": iso(e.removed_at), "by": e.by}
            for e in entries
        )
        print_json(list(told))
    elif quiet:
        print_lines(entry.id for entry in entries)
    else:
        print_table(
            ("NAME", "REMOVED", "BY", "ID"),
            ((e.name, local_time(e.removed_at), e.by or "-", e.id) for e in entries),
            whole="ID",
        )
        if not entries:
            click.echo(printable(f"nothing in the trash of {opened.path}"), err=True)


def _sorted(found: list[ListedVolume], sort: str, reverse: bool) -> list[ListedVolume]:
    if sort == "size":
        found = sorted(found, key=lambda item: by_size(item.space))
    elif sort == "created":
        found = sorted(found, key=lambda item: _age(item.volume))
    return found[::-1] if reverse else found


def _age(volume: Volume) -> tuple[bool, float]:
    """Sort the newest first, and what is of unknown age last."""
    made = volume.created_at
    return made is None, -made.timestamp() if made else 0.0


@click.command()
@scope_option
@click.option("--no-size", is_flag=True, help="Do not measure: that looks at every file.")
@json_option
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def inspect(scope: str, no_size: bool, as_json: bool, names: tuple[str, ...]) -> int:
    """Show all that is known of volumes, and who uses them.

    \b
      volfs inspect web
      volfs inspect --no-size web db
      volfs inspect web --json | jq '.[0].holders'

    A holder is a runtime's reference, a mount (which process of which container has it where),
    or a file open through the tree. What one may see of others' processes is up to the kernel:
    root sees all, a user sees their own.
    """
    from volfs.store import tree_mounts

    found = []
    scope, volumes = find_each(scope, *names)
    with open_scope(scope) as opened:
        trees = tree_mounts(opened.path)

        def one(name: str) -> None:
            volume = opened.store.get(name)
            item = ListedVolume(volume, opened.store.holders(name))
            if not no_size:
                measure_all([item])
            places = [f"{tree.rstrip('/')}/{volume.name}" for tree in trees]
            if as_json:
                found.append(
                    describe(volume)
                    | {"tree_paths": places}
                    | ({} if no_size else space_fields(item.space))
                    | {"holders": [asdict(holder) for holder in item.holders]}
                )
                return
            if found:
                click.echo()
            found.append({})
            _print_fields(item, places, with_size=not no_size)

        code = for_each(volumes, one)
        if as_json:
            print_json(found)
    return code


def _print_fields(item: ListedVolume, places: list[str], *, with_size: bool) -> None:
    volume, space = item.volume, item.space
    taken = f"{size(space.size)} in {space.entries} files and directories" if space else "unknown"
    fields = {
        "Name": [volume.name],
        "Driver": [volume.driver_name],
        "Path": [volume.path],
        "In tree": places or ["not mounted"],
        "Created": [local_time(volume.created_at)],
        "Labels": [pairs(volume.labels.items()) or "-"],
        "Options": [pairs(volume.options.items()) or "-"],
        "Size": [taken] if with_size else [],
        "Used by": [str(holder) for holder in item.holders] or ["nobody"],
    }
    for title, values in fields.items():
        for count, value in enumerate(values):
            click.echo(f"{f'{title}:' if count == 0 else '':<9}{printable(value)}")
