"""How answers look: tables for people, tab-separated lines for pipes, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from volfs.holder import Holder

_NARROWEST = 10
"""Columns of a terminal for each cell beside one that is not folded."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def print_json(value: object) -> None:
    """Print a value as JSON on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: str = "", whole: str = ""
) -> None:
    """Print rows: aligned on a terminal, else separated by tabs under a line of headers.

    ``right`` lists the headers of columns to align to the right, separated by spaces, ``whole``
    those of columns that stay in one piece, to be copied, however narrow the terminal is.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [[header.lower() for header in headers], *rows]:
            click.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        table.add_column(
            header,
            overflow="fold",
            justify="right" if header in right.split() else "left",
            no_wrap=header in whole.split(),
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    kept = sum(
        max((len(row[column]) for row in rows), default=0)
        for column, header in enumerate(headers)
        if header in whole.split()
    )
    # Below that rich would cut off what is to stay whole; the terminal wraps the line instead.
    if kept and console.width < kept + _NARROWEST * len(headers):
        console = Console(width=kept + _NARROWEST * len(headers))
    console.print(table)


def print_lines(texts: Iterable[str]) -> None:
    """Print texts, one on each line."""
    for text in texts:
        click.echo(printable(text))


def printable(text: str) -> str:
    """Return the text with what could confuse a terminal or a line of output escaped."""
    if text.isprintable():
        return text
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def iso(moment: datetime | None) -> str | None:
    """Return a time as JSON has it: RFC 3339 in UTC, None when unknown."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def local_time(moment: datetime | None) -> str:
    """Return a time as people read it, on the local clock; a dash when unknown."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment else "-"


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def pairs(values: Iterable[tuple[str, str]]) -> str:
    """Return labels or options on one line."""
    return " ".join(f"{key}={value}" if value else key for key, value in sorted(values))


def users(holders: Sequence[Holder]) -> str:
    """Return who uses a volume in a few words, such as ``2 containers, 1 mount``.

    A runtime's references count where none of its containers is seen: else they are the same.
    """
    containers = {holder.container for holder in holders if holder.container}
    others = [holder for holder in holders if not holder.container]
    counts = {
        "container": len(containers),
        "mount": sum(holder.kind == "mount" for holder in others),
        "process": len({holder.pid for holder in others if holder.kind == "open"}),
        "reference": sum(holder.kind == "reference" for holder in others if not containers),
    }
    return ", ".join(number(count, what) for what, count in counts.items() if count) or "-"


def number(count: int, what: str) -> str:
    """Return how many there are of something, in words that agree: ``1 process``."""
    ending = "" if count == 1 else "es" if what.endswith("s") else "s"
    return f"{count} {what}{ending}"


def can_ask() -> bool:
    """Tell whether somebody is there to answer a question."""
    return sys.stdin is not None and sys.stdin.isatty()


def confirmed(question: str, otherwise: str) -> bool:
    """Ask on the terminal, and print ``otherwise`` when the answer is no, as it is by default.

    Raises click.Abort where no answer comes, as upon Ctrl-C.
    """
    if click.confirm(question, err=True):
        return True
    click.echo(otherwise)
    return False


def complain(message: str) -> None:
    """Print one line of complaint on standard error."""
    click.echo(f"volfs: {printable(' '.join(message.split()))}", err=True)
