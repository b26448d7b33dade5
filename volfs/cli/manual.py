"""The command help: the pages of the manual, without any man(1) installed."""

from __future__ import annotations

import difflib
import io
import shutil
import sys
from collections.abc import Iterator
from importlib.resources import files

import click

_PAGES = {
    "volfs": "volfs.8",
    "mount": "mount.volfs.8",
    "tree": "volfs-tree.7",
    "internals": "volfs-internals.7",
}
"""The topics, and the files in volfs.manual that they stand for."""

_WIDEST = 100
"""Columns of text; longer lines are hard to read."""


@click.command("help")
@click.argument("topic", required=False)
@click.pass_context
def help(ctx: click.Context, topic: str | None) -> None:
    """Show a page of the manual, or the help of a command.

    \b
      volfs help             lists the topics
      volfs help tree        what operations in a tree mean
      volfs help restore     the same as volfs restore --help

    On a terminal pages are shown by $PAGER; to a pipe they are written as Markdown. The topic
    mount is the page about mounting, also by fstab and as a service: see `volfs mount --help`
    for the command.
    """
    parent = ctx.parent
    assert parent is not None
    group = parent.command
    assert isinstance(group, click.Group)
    names = {name.rpartition(".")[0]: name for name in _PAGES.values()} | _PAGES
    if topic is None:
        _list(parent, group)
    elif topic in names:
        _show(_page(names[topic]))
    elif command := group.get_command(parent, topic):
        click.echo(command.get_help(click.Context(command, info_name=topic, parent=parent)))
    else:
        known = [*names, *group.list_commands(parent)]
        close = difflib.get_close_matches(topic, known, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`volfs help` lists them"
        raise click.UsageError(f"there is no help on {topic!r}; {hint}", ctx)


def _list(parent: click.Context, group: click.Group) -> None:
    formatter = parent.make_formatter()
    formatter.write_text("volfs help TOPIC shows a page of the manual or the help of a command.")
    with formatter.section("Pages"):
        formatter.write_dl([(topic, _summary(_page(name))) for topic, name in _PAGES.items()])
    with formatter.section("Commands"):
        commands = ((name, group.get_command(parent, name)) for name in group.list_commands(parent))
        formatter.write_dl(
            [(name, command.get_short_help_str(66)) for name, command in commands if command]
        )
    click.echo(formatter.getvalue().rstrip("\n"))


def _page(name: str) -> str:
    return files("volfs.manual").joinpath(f"{name}.md").read_text(encoding="utf-8")


def _summary(page: str) -> str:
    """Return what stands after the dash in the section NAME."""
    line = page.partition("## NAME\n")[2].split("\n", 2)[1]
    return line.partition(" - ")[2]


def _show(page: str) -> None:
    if not sys.stdout.isatty():
        click.echo(page, nl=False)
        return
    from rich.console import Console
    from rich.markdown import Markdown

    width = min(shutil.get_terminal_size().columns, _WIDEST)
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with console.capture() as capture:
        console.print(Markdown("\n".join(_with_bullets(page.splitlines()))))
    click.echo_via_pager(capture.get())


def _with_bullets(lines: list[str]) -> Iterator[str]:
    """Turn definition lists, which rich does not know, into lists with bullets."""
    inside = False
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if after.startswith(":   "):
            inside = True
            yield f"- {line}"
        elif line.startswith(":   "):
            yield from ("", f"  {line[4:]}")
        elif inside and line.startswith("    "):
            yield line[2:]
        else:
            inside = inside and not line
            yield line
