"""The commands that make and change volumes: create, rm, rename, label."""

from __future__ import annotations

import getpass
import os
import shlex
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from volfs.cli.output import (
    complain,
    iso,
    json_option,
    print_json,
    print_lines,
    printable,
)
from volfs.cli.scope import find_each, find_volumes, found, given_scope, open_scope, scope_option
from volfs.errors import InvalidNameError, VolfsError

if TYPE_CHECKING:
    from volfs.volume import Volume


label_option = click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label to keep."
)


@click.command()
@scope_option
@click.option(
    "--opt",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="A create option: uid, gid or mode (octal) of the data path; from=VOLUME starts as a "
    "copy of that one; path=tree|native is the path runtimes are given.",
)
@label_option
@json_option
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def create(
    scope: str,
    options: tuple[str, ...],
    labels: tuple[str, ...],
    as_json: bool,
    names: tuple[str, ...],
) -> int:
    """Make volumes.

    \b
      volfs create web
      volfs create --label team=blue --opt uid=1000 --opt mode=0750 data logs

    Makes the scope as well when there is none yet, and says so. A volume that exists already is
    left as it is, which is success unless it was made with other options. Prints the names.
    """
    from volfs.volume import NewVolume

    wanted, tags = key_values(options, "--opt"), key_values(labels, "--label")
    made: list[Volume] = []
    # The volume to start from is named last, should it be named at all.
    source = [wanted["from"]] if "from" in wanted else []
    scope, volumes = find_each(scope, *names, *source)
    if source:
        wanted["from"] = found(volumes.pop())
    with open_scope(scope, make=True) as opened:

        def one(name: str) -> None:
            made.append(opened.store.create(NewVolume(name, wanted, tags)))
            if not as_json:
                click.echo(printable(name))

        code = for_each(volumes, one)
        if as_json:
            print_json([describe(volume) for volume in made])
    return code


@click.command()
@scope_option
@click.option("--empty", is_flag=True, help="Remove only what holds no data.")
@json_option
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def rm(scope: str, empty: bool, as_json: bool, names: tuple[str, ...]) -> int:
    """Remove volumes, with their data, into the trash.

    \b
      volfs rm web
      volfs restore web        brings it back
      volfs purge              deletes it for good

    A volume that is in use is refused, and the message says what uses it: a runtime's reference, a
    mount in any container, or a file open through the tree.
    """
    removed: list[str] = []
    scope, volumes = find_each(scope, *names)
    with open_scope(scope) as opened:

        def one(name: str) -> None:
            opened.store.remove(name, by=f"volfs rm by {user()}", only_empty=empty)
            removed.append(name)
            if not as_json:
                say_removed(name)

        code = for_each(volumes, one)
        if as_json:
            print_json([{"name": name} for name in removed])
    return code


@click.command()
@scope_option
@json_option
@click.argument("old")
@click.argument("new")
def rename(scope: str, as_json: bool, old: str, new: str) -> None:
    """Give a volume another name.

    \b
      volfs rename web web-old

    Refused when the new name is taken, and while a runtime or a mount holds the volume: it would go
    on using the old name. Open files do not matter.
    """
    scope, (old, new) = find_volumes(scope, old, new)
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


@click.command()
@scope_option
@json_option
@click.argument("name")
@click.argument("changes", metavar="[KEY=VALUE|KEY-]...", nargs=-1)
def label(scope: str, as_json: bool, name: str, changes: tuple[str, ...]) -> None:
    """Set labels of a volume, remove them, or show them.

    \b
      volfs label web team=blue tier=front     sets two, replacing what they were
      volfs label web team-                    removes one
      volfs label web                          shows all

    Other labels stay as they are. Removing one that is not there is no error. In a mounted
    tree, setfattr -n volfs.label.KEY -v VALUE does the same.
    """
    new, gone = _changes(changes)
    scope, (name,) = find_volumes(scope, name)
    with open_scope(scope) as opened:
        if changes:
            volume = opened.store.change_labels(
                name,
                lambda old: {k: v for k, v in {**old, **new}.items() if k not in gone},
            )
        else:
            volume = opened.store.get(name)
        if as_json:
            print_json(describe(volume))
        elif not changes:
            print_lines(f"{key}={value}" for key, value in sorted(volume.labels.items()))


def _changes(words: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Return the labels that are to be set, and the keys of those that are to go."""
    new: dict[str, str] = {}
    gone: set[str] = set()
    for word in words:
        key, equals, value = word.partition("=")
        if key and equals:
            new[key] = value
        elif key.endswith("-") and key != "-" and not equals:
            gone.add(key[:-1])
        else:
            raise click.UsageError(f"{word!r} is neither KEY=VALUE nor KEY-")
    if both := gone & new.keys():
        raise click.UsageError(f"label {min(both)!r} is both set and removed")
    return new, gone


def for_each(names: Iterable[str | InvalidNameError], one: Callable[[str], None]) -> int:
    """Call ``one`` for every name; complain of each failure and return the first one's code.

    An error among the names is a failure too.
    """
    code = 0
    for name in dict.fromkeys(names):
        try:
            one(found(name))
        except VolfsError as error:
            complain(str(error))
            code = code or error.exit_code
        except OSError as error:
            complain(f"{name}: {error.strerror or error}")
            code = code or VolfsError.exit_code
    return code


def key_values(words: Iterable[str], option: str) -> dict[str, str]:
    """Return KEY=VALUE words as a dictionary. Raises BadParameter, naming the option."""
    values = {}
    for word in words:
        key, _, value = word.partition("=")
        if not key:
            raise click.BadParameter(f"{word!r} is not KEY=VALUE", param_hint=option)
        values[key] = value
    return values


def say_removed(name: str) -> None:
    """Say that a volume is in the trash, and how it comes back."""
    undo = f"volfs restore {given_scope()}{shlex.quote(name)}"
    click.echo(printable(f"removed {name} ({undo} brings it back)"))


def user() -> str:
    """Return who runs this command, for the record."""
    # sudo tells who is behind root.
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
