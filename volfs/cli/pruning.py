"""The command prune: volumes that nobody uses go into the trash."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import click

from volfs.cli.filters import FILTERS, Filters
from volfs.cli.listing import filter_option, find, measure_all, print_volumes
from volfs.cli.output import can_ask, complain, confirmed, json_option, print_json
from volfs.cli.scope import open_scope, scope_option
from volfs.cli.volumes import for_each, say_removed, user
from volfs.errors import VolfsError, VolumeNotFoundError

if TYPE_CHECKING:
    from volfs.volume import Volume


@dataclass(frozen=True, slots=True)
class Chosen:
    """A volume that was shown, and can be told from another that takes its name."""

    name: str
    inode: tuple[int, int] | None
    created_at: datetime | None

    @classmethod
    def of(cls, volume: Volume) -> Chosen:
        try:
            found = os.stat(volume.path)
        except OSError:  # an administrator's link to a disk that is not mounted
            return cls(volume.name, None, volume.created_at)
        return cls(volume.name, (found.st_dev, found.st_ino), volume.created_at)


FRESH = 0.2
"""Seconds after which the uses of volumes are looked up anew, while some are being removed."""


@click.command()
@scope_option
@filter_option(
    known=[name for name in FILTERS if name != "dangling"],
    globs=True,
    help="Only some of them, as volfs ls --filter has it, but name=NAME is a whole name, or a "
    "pattern such as 'web-*'. Can be given several times.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def prune(scope: str, filters: Filters, yes: bool, as_json: bool) -> int:
    """Remove the volumes that nobody uses, with their data, into the trash.

    \b
      volfs prune                                shows what would go, and asks
      volfs prune --filter label!=keep --filter until=7d
      volfs prune --filter label=stage=test --yes     for scripts
      volfs restore NAME                         brings one back
      volfs ls -f dangling=true                  only shows what nobody uses

    A volume is unused when no runtime refers to it, no container has it mounted, and no file of it
    is open through the tree, as far as this user may see: run it as root where others use the
    volumes. One that comes into use while you are asked is refused, and the exit code is then 6.
    What is removed can be restored until the trash is emptied.
    """
    filters = replace(filters, dangling=True)
    with open_scope(scope) as opened:
        if not yes and (as_json or not can_ask()):
            raise click.UsageError("prune asks on a terminal only; use --yes")
        found, code = find(opened, filters)
        chosen = [Chosen.of(item.volume) for item in found]
        if found and not yes:
            measure_all(found)
            print_volumes(found, with_size=True, with_users=False)
    if found and not yes:
        what = "this volume" if len(found) == 1 else f"these {len(found)} volumes"
        question = f"Remove {what}? (volfs restore NAME brings one back)"
        if not confirmed(question, otherwise="nothing removed"):
            return code
    removed, failed = remove_chosen(scope, filters, chosen, quiet=as_json)
    if as_json:
        print_json([{"name": name} for name in removed])
    elif not found:
        click.echo("nothing to remove")
    return code or failed


def remove_chosen(
    scope: str,
    filters: Filters,
    chosen: list[Chosen],
    *,
    quiet: bool,
    fresh: float = FRESH,
) -> tuple[list[str], int]:
    """Remove what was chosen; return the names of what is removed, and an exit code.

    After ``fresh`` seconds the uses of volumes are looked up anew.
    """
    left = deque(chosen)
    removed: list[str] = []
    code = 0
    while left:
        # A scope that has just been opened has just looked at who uses what.
        with open_scope(scope) as opened:
            until = time.monotonic() + fresh
            while left:
                one = left.popleft()

                def remove(name: str, one: Chosen = one) -> None:
                    try:
                        _require_same(opened.store.get(name), one, filters)
                        opened.store.remove(name, by=f"volfs prune by {user()}")
                    except VolumeNotFoundError:
                        complain(f"volume {name!r} was removed by somebody else meanwhile")
                        return
                    removed.append(name)
                    if not quiet:
                        say_removed(name)

                failed = for_each([one.name], remove)
                code = code or failed
                if time.monotonic() >= until:
                    break
    return removed, code


def _require_same(volume: Volume, chosen: Chosen, filters: Filters) -> None:
    """Refuse a volume that took the chosen one's name, or was relabelled, since the choice.

    Raises VolfsError. Whether it is in use is for the store to decide.
    """
    if Chosen.of(volume) != chosen or not filters.matches(volume, lambda _: False):
        raise VolfsError(f"volume {volume.name!r} was changed meanwhile and stays")
