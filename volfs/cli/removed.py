"""The commands for removed volumes: restore, purge."""

from __future__ import annotations

from dataclasses import asdict

import click

from volfs.cli.durations import parse_duration
from volfs.cli.output import (
    can_ask,
    complain,
    confirmed,
    iso,
    json_option,
    local_time,
    print_json,
    print_table,
    printable,
)
from volfs.cli.scope import find_volumes, open_scope, scope_option
from volfs.cli.volumes import describe
from volfs.errors import VolumeNotFoundError


@click.command()
@scope_option
@click.option("--as", "new_name", metavar="NEW", help="Restore it under another name.")
@json_option
@click.argument("which", metavar="NAME|ID")
def restore(scope: str, new_name: str | None, as_json: bool, which: str) -> None:
    """Bring a removed volume back, with its data, labels and options.

    \b
      volfs ls --removed
      volfs restore web                  the newest removal of that name
      volfs restore ID --as web-old      that one, beside a new web

    Refused when a volume of that name exists: use --as.
    """
    words = [which] if new_name is None else [which, new_name]
    scope, [which, *others] = find_volumes(scope, *words)
    with open_scope(scope) as opened:
        try:
            volume = opened.store.restore(which, *others)
        except VolumeNotFoundError as error:
            raise VolumeNotFoundError(f"{opened.path}: {error}") from None
        if as_json:
            print_json(describe(volume))
        else:
            click.echo(f"restored {printable(volume.name)}")


def _duration(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command()
@scope_option
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--older-than",
    callback=_duration,
    metavar="DURATION",
    help="Only what was removed longer ago than this, such as 12h or 7d.",
)
@json_option
def purge(scope: str, yes: bool, older_than: float | None, as_json: bool) -> int:
    """Empty the trash: delete removed volumes for good.

    \b
      volfs purge                          shows what would go, and asks
      volfs purge --older-than 7d --yes    for scripts

    Volumes that are there are never touched: to remove those that nobody uses, see volfs prune.
    What cannot be deleted (an immutable file, something mounted inside) is named, and the exit
    code is 1.
    """
    with open_scope(scope) as opened:
        if yes:
            purged = opened.store.purge(older_than=older_than)
        else:
            from datetime import UTC, datetime

            entries = [
                entry
                for entry in opened.store.removed()
                if older_than is None
                or (datetime.now(UTC) - entry.removed_at).total_seconds() > older_than
            ]
            if entries:
                if as_json or not can_ask():
                    raise click.UsageError("purge asks on a terminal only; use --yes")
                print_table(
                    ("NAME", "REMOVED", "ID"),
                    ((e.name, local_time(e.removed_at), e.id) for e in entries),
                    whole="ID",
                )
                what = "this one" if len(entries) == 1 else f"these {len(entries)}"
                if not confirmed(f"Delete {what} for good?", otherwise="nothing deleted"):
                    return 0
            # What somebody else removes meanwhile was not shown, so it stays.
            purged = opened.store.purge([entry.id for entry in entries])
        if as_json:
            print_json([asdict(e) | {"removed_at": iso(e.removed_at)} for e in purged])
        for entry in purged:
            if entry.left:
                for place in entry.left:
                    complain(f"{entry.name} ({entry.id}) is not wholly deleted: {place}")
            elif not as_json:
                click.echo(f"deleted {printable(entry.name)} ({printable(entry.id)})")
        if not purged and not as_json:
            click.echo("nothing to delete")
        return int(any(entry.left for entry in purged))
