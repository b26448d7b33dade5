"""The command df: who takes the space."""

from __future__ import annotations

import os
from pathlib import Path

import click

from volfs.cli.output import json_option, local_time, print_json, print_table, size
from volfs.cli.scope import open_scope, scope_option


@click.command()
@scope_option
@json_option
def df(scope: str | None, as_json: bool) -> None:
    """Show the space each volume takes, and what the trash holds.

    \b
      volfs df
      volfs df --json | jq '.volumes | max_by(.size)'

    Sizes are what is allocated on disk, as du(1) counts. Looks at every file, so it may take
    a while. What is removed takes its space until it is pruned.
    """
    from volfs.space import Space, measure

    with open_scope(scope) as opened:
        volumes = [(volume, measure(volume.path)) for volume in opened.store.list()]
        # Within an entry of the trash a data path that is a link stays a link.
        removed = [
            (entry, measure(str(Path(opened.path, "trash", entry.id))))
            for entry in opened.driver.trash.list()
        ]
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
                    "volumes": [
                        {"name": volume.name, "size": space.size, "entries": space.entries}
                        for volume, space in volumes
                    ],
                    "removed": [
                        {
                            "id": entry.id,
                            "name": entry.name,
                            "size": space.size,
                            "entries": space.entries,
                        }
                        for entry, space in removed
                    ],
                }
            )
            return
        print_table(
            ("NAME", "SIZE", "FILES", "STATE"),
            [
                *((v.name, size(s.size), str(s.entries), "") for v, s in volumes),
                *(
                    (e.name, size(s.size), str(s.entries), f"removed {local_time(e.removed_at)}")
                    for e, s in removed
                ),
            ],
            right="SIZE FILES",
        )
        live = sum((space for _, space in volumes), Space(0, 0))
        gone = sum((space for _, space in removed), Space(0, 0))
        click.echo(
            f"{len(volumes)} volumes take {size(live.size)}, {len(removed)} removed ones "
            f"{size(gone.size)}; {size(filesystem['available'])} of {size(filesystem['size'])} "
            f"are free in {opened.path}",
            err=True,
        )
