"""Which scope a command works on, its store, and which volumes are meant.

People give names as they type them: ``web``, and what the shell makes of it in a tree, ``web/``,
``./web``, ``/mnt/volumes/web``. The scope is then that of the tree, and else that of the tree in
whose root one stands.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from volfs.cli.output import printable
from volfs.errors import InvalidNameError, ScopeError

if TYPE_CHECKING:
    from volfs.store import MountedTrees, OpenScope, TreePath

_BY_PATH = "volfs.scope"
"""Where a context keeps the scope that a path named."""


def _find_scope(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
    from volfs.store import MountedTrees

    trees = MountedTrees()
    if not _is_given(ctx):
        here = trees.here()
        if here is not None and not here.inside:
            return here.scope
    scope = value or default_scope()
    # A tree given as a scope can mean nothing else: nobody keeps volumes as volumes.
    at = trees.at(os.path.realpath(scope))
    return at.scope if at is not None and not at.inside else scope


_HELP = (
    "The directory that keeps the volumes (default: {}$VOLFS_SCOPE, else /var/lib/volfs for root "
    "and $XDG_DATA_HOME/volfs for others)."
)

scope_option = click.option(
    "--scope",
    envvar="VOLFS_SCOPE",
    metavar="SCOPE",
    callback=_find_scope,
    help=_HELP.format("that of the tree one stands in, else "),
)
"""For commands that work on a scope: they get its path."""

served_scope_option = click.option(
    "--scope", envvar="VOLFS_SCOPE", metavar="SCOPE", help=_HELP.format("")
)
"""For commands that serve a scope: they get what was given. Wherever they are started, they go on
for long, and a scope they find by chance would be a surprise."""


def default_scope() -> str:
    """Return the scope of somebody who names none."""
    if os.geteuid() == 0:
        return "/var/lib/volfs"
    data = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification says to ignore a relative path.
    return str((Path(data) if data.startswith("/") else Path.home() / ".local/share") / "volfs")


def given_scope() -> str:
    """Return ``--scope SCOPE `` if that names the scope of this command, for those it suggests:
    not where the tree one stands in or the environment does."""
    context = click.get_current_context()
    scope = context.params["scope"] if _is_given(context) else context.meta.get(_BY_PATH)
    return f"--scope {shlex.quote(scope)} " if scope else ""


def _is_given(context: click.Context) -> bool:
    return context.get_parameter_source("scope") is click.core.ParameterSource.COMMANDLINE


def find_volumes(scope: str, *words: str) -> tuple[str, list[str]]:
    """The same as ``find_each``. Raises InvalidNameError for a path that can be no volume's."""
    scope, names = find_each(scope, *words)
    return scope, [*map(found, names)]


def found(name: str | InvalidNameError) -> str:
    """Return a name that was found. Raises the error that stands in its place."""
    if isinstance(name, InvalidNameError):
        raise name
    return name


def find_each(scope: str, *words: str) -> tuple[str, list[str | InvalidNameError]]:
    """Return the scope that is meant, and the names of the volumes, which need not exist.

    ``scope`` is what ``scope_option`` found. Where a word is a path in a tree, that tree's scope
    is meant, also by the words that are plain names. In place of a path that can be no volume's
    stands the error: the others are volumes nevertheless. Raises click.UsageError where words,
    option and working directory contradict each other.
    """
    if not any(map(_is_path, words)):
        return scope, [*words]
    from volfs.store import MountedTrees

    context, trees = click.get_current_context(), MountedTrees()
    names: list[str | InvalidNameError] = []
    named: dict[str, str] = {}
    for word in words:
        at = trees.find(word) if _is_path(word) else None
        if at is not None:
            named[at.scope] = word
        try:
            names.append(
                _bare(word, given=_is_given(context)) if at is None else _volume_at(at, word)
            )
        except InvalidNameError as error:
            names.append(error)
    if not named:
        return scope, names
    (meant, word), *others = named.items()
    if others:
        other, second = others[0]
        raise click.UsageError(
            f"{word} is in a tree of {meant}, and {second} in one of {other}: a command works on"
            " one scope"
        )
    if _is_given(context):
        if meant != os.path.realpath(scope):
            raise click.UsageError(f"{word} is in a tree of {meant}, but --scope says {scope}")
        return scope, names
    if not all(map(_is_path, words)) and _stands_elsewhere(trees, meant):
        raise click.UsageError(
            f"{word} is in a tree of {meant}, but here a name alone is a volume of {scope}: give"
            " paths only, or --scope"
        )
    context.meta[_BY_PATH] = meant
    return meant, names


def _is_path(word: str) -> bool:
    return "/" in word or word in (".", "..")


def _volume_at(at: TreePath, word: str) -> str:
    if not at.inside:
        raise InvalidNameError(f"{word} is a whole tree, of {at.scope}: give a volume in it")
    name, *below = at.inside
    if below:
        place = f", or {at.root.rstrip('/')}/{name}" if at.root else ""
        raise InvalidNameError(f"{word} is inside a volume: give the volume itself, {name}{place}")
    return name


def _bare(word: str, *, given: bool) -> str:
    """Return the name that a word is which leads into no tree. Raises InvalidNameError."""
    if not _is_path(word):
        return word
    name = word.rstrip("/")
    # Something else that is here is hardly a volume that happens to have its name.
    if name and not _is_path(name) and (given or not os.path.lexists(name)):
        return name
    raise InvalidNameError(
        f"{word} is in no tree of volumes: give the volume's name, or its path in a mounted tree"
    )


def _stands_elsewhere(trees: MountedTrees, scope: str) -> bool:
    here = trees.here()
    return here is not None and not here.inside and here.scope != scope


def is_scope(path: str) -> bool:
    """Tell whether there is a scope, be it one at which we may not look: opening it says that."""
    try:
        return stat.S_ISDIR(os.stat(f"{path}/volumes").st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


@contextmanager
def announcing(path: str) -> Iterator[Callable[[], None]]:
    """Say on standard error at the end, or when what is yielded is called, that a scope was made.

    A mistyped one is not to be made silently.
    """
    told, process = is_scope(path), os.getpid()

    def tell() -> None:
        nonlocal told
        # A daemon in the background has only its log: whoever started it says it.
        if not told and os.getpid() == process and is_scope(path):
            told = True
            click.echo(printable(f"made the scope {path}"), err=True)

    try:
        yield tell
    finally:
        tell()


@contextmanager
def open_scope(scope: str, *, make: bool = False) -> Iterator[OpenScope]:
    """Open a scope for one command. With ``make`` it is made where there is none yet.

    Who uses its volumes is looked up only once. Raises ScopeError.
    """
    from volfs import store

    if not make and not is_scope(scope):
        raise ScopeError(
            f"there are no volumes in {scope} yet: `volfs create --scope {shlex.quote(scope)} NAME`"
            " makes the first, or name another --scope"
        )
    with announcing(scope) as announce, store.open_scope(scope, once=True) as opened:
        announce()
        yield opened
