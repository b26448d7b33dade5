"""The command df: who takes the space; and measuring for the commands that show sizes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from volfs.cli.output import (
    json_option,
    local_time,
    number,
    print_json,
    print_lines,
    print_table,
    printable,
    size,
)
from volfs.cli.progress import Bar
from volfs.cli.scope import open_scope, scope_option

if TYPE_CHECKING:
    from volfs.cli.measuring import Space

Item = TypeVar("Item")


@click.command()
@scope_option
@click.option("-q", "--quiet", is_flag=True, help="Print only names of volumes, largest first.")
@json_option
def df(scope: str, quiet: bool, as_json: bool) -> None:
    """Show the space each volume takes, and what the trash holds, largest first.

    \b
      volfs df
      volfs df --json | jq '.volumes | max_by(.size)'

    Sizes are what is allocated on disk, as du(1) counts: what volumes share (as copies made by
    reflink do) counts for each of them, so their sum can exceed what the disk has in use. Looks
    at every file, so it may take a while. What is removed takes its space until it is purged.
    """
    with open_scope(scope) as opened:
        volumes, entries = opened.store.list(), opened.store.removed()
        if quiet and not as_json:
            entries = []
        # Within an entry of the trash a data path that is a link stays a link.
        spaces = measured(
            [(volume.name, volume.path) for volume in volumes]
            + [(entry.name, str(Path(opened.path, "trash", entry.id))) for entry in entries]
        )
        live = _by_size(zip(volumes, spaces, strict=False))
        removed = _by_size(zip(entries, spaces[len(volumes) :], strict=True))
        totals = {"volumes": _total(live), "removed": _total(removed)}
        found = os.statvfs(opened.path)
        filesystem = {
            "size": found.f_blocks * found.f_frsize,
            "used": (found.f_blocks - found.f_bfree) * found.f_frsize,
            "available": found.f_bavail * found.f_frsize,
        }
    if as_json:
        print_json(
            {
                "scope": opened.path,
                "filesystem": filesystem,
                "volumes": [{"name": v.name} | space_fields(space) for v, space in live],
                "removed": [
                    {"id": e.id, "name": e.name} | space_fields(space) for e, space in removed
                ],
                "totals": totals,
            }
        )
        return
    if quiet:
        print_lines(volume.name for volume, _ in live)
        return
    print_table(
        ("NAME", "SIZE", "FILES", "STATE"),
        [
            *((v.name, *_cells(space), "") for v, space in live),
            *(
                (e.name, *_cells(space), f"removed {local_time(e.removed_at)}")
                for e, space in removed
            ),
        ],
        right="SIZE FILES",
    )
    click.echo(
        printable(
            f"volumes {size(totals['volumes'])}, trash {size(totals['removed'])}, free "
            f"{size(filesystem['available'])} of {size(filesystem['size'])} in {opened.path}"
        ),
        err=True,
    )


def measured(places: Sequence[tuple[str, str]]) -> list[Space | None]:
    """Measure directories, given as pairs of a name to show and a path, behind a progress bar.

    None stands for what cannot be measured: it is gone, or its disk is not mounted.
    """
    from volfs.cli.measuring import measure

    spaces: list[Space | None] = []
    with Bar("Measuring", len(places)) as bar:
        for name, path in places:

            def tell(space: Space, name: str = name) -> None:
                bar.show(f"{name}: {size(space.size)} in {number(space.entries, 'file')}")

            bar.show(name)
            try:
                spaces.append(measure(path, tell))
            except OSError:
                spaces.append(None)
            bar.advance()
    return spaces


def space_fields(space: Space | None) -> dict[str, int | None]:
    """Return a measured space as JSON shows it."""
    return {
        "size": space.size if space else None,
        "entries": space.entries if space else None,
    }


def space_cell(space: Space | None) -> str:
    """Return a measured size as a cell of a table."""
    return size(space.size) if space else "-"


def by_size(space: Space | None) -> int:
    """Sort largest first, with what could not be measured at the end."""
    return -space.size if space else 1


def _cells(space: Space | None) -> tuple[str, str]:
    return space_cell(space), str(space.entries) if space else "-"


def _by_size(items: Iterable[tuple[Item, Space | None]]) -> list[tuple[Item, Space | None]]:
    return sorted(items, key=lambda item: by_size(item[1]))


def _total(items: Iterable[tuple[object, Space | None]]) -> int:
    return sum(space.size for _, space in items if space)
