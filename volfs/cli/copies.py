"""The commands that copy volumes: clone, export, import."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from volfs.cli.interruption import cleaning_up
from volfs.cli.output import complain, json_option, number, print_json, printable, size
from volfs.cli.progress import Meter
from volfs.cli.scope import find_volumes, open_scope, scope_option
from volfs.cli.volumes import describe, key_values, label_option
from volfs.errors import ArchiveError

if TYPE_CHECKING:
    from volfs.store import VolumeStore
    from volfs.volume import CopyReport

_CHANGED = 1
"""What export ends with when the archive is not of one point in time, as tar(1) does."""
_TOLD = 5
_TIDY = 2.0
"""Seconds spent on deleting what killed commands left."""

create_option = click.option(
    "--opt",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="A create option: uid, gid or mode (octal) of the data path, path.",
)


@click.command()
@scope_option
@label_option
@create_option
@json_option
@click.argument("source", metavar="SRC")
@click.argument("name", metavar="DST")
def clone(
    scope: str,
    labels: tuple[str, ...],
    options: tuple[str, ...],
    as_json: bool,
    source: str,
    name: str,
) -> None:
    """Make a volume that starts as a copy of another one.

    \b
      volfs clone web web-test
      volfs clone --label stage=test web web-test

    Labels and options are those of SRC, except those given here. On btrfs and XFS the data is
    shared until one of the two changes it, so this takes neither time nor space. The copy
    is of one point in time, also while SRC is used; where SRC is changed faster than it can be
    copied, a warning says so.
    """
    from volfs.volume import NewVolume

    scope, (source, name) = find_volumes(scope, source, name)
    new = NewVolume(name, key_values(options, "--opt"), key_values(labels, "--label"))
    with open_scope(scope) as opened, cleaning_up():
        path = opened.store.get(source).path
        with Meter(f"copying {source}", lambda: _space(path)) as meter:
            volume, report = opened.store.clone(source, new, on_progress=meter)
        if as_json:
            print_json(describe(volume) | {"copied": _describe_copy(report)})
        else:
            how = "sharing its data" if report.is_reflinked else f"{size(report.size)} copied"
            click.echo(printable(f"{name} is a copy of {source} ({how})"))
        if not report.is_point_in_time:
            _warn("copied", "the copy", source, report.changed, report.examples)
        _tidy(opened.store)


@click.command()
@scope_option
@click.option("-o", "--output", metavar="FILE", help="Write to a file instead.")
@click.argument("name", metavar="VOLUME")
def export(scope: str, output: str | None, name: str) -> int:
    """Write what is in a volume to standard output, as a tar archive.

    \b
      volfs export web > web.tar
      volfs export web | zstd > web.tar.zst
      volfs export web | ssh host volfs import web

    The archive keeps numeric owners, times, extended attributes with ACLs and file
    capabilities, hard links and holes. On btrfs and XFS it is of one point in time, also while
    the volume is used. Elsewhere what changes meanwhile is noticed: the archive is whole, but
    a warning says so and the exit code is 1, as tar(1) has it. With -o the file appears when it
    is complete, readable for its owner only.
    """
    if output == "-":
        output = None
    if output is None and (sys.stdout is None or sys.stdout.isatty()):
        raise click.UsageError("an archive is not for a terminal; redirect it, or use --output")
    from volfs.copies.archive import pack

    scope, (name,) = find_volumes(scope, name)
    with open_scope(scope) as opened, cleaning_up():
        path = opened.store.get(name).path
        with (
            Meter(f"exporting {name}", lambda: _space(path)) as meter,
            _written(output) as out,
            opened.store.reading(name) as (data, report),
        ):
            packed = pack(data, out, live=report is None, on_progress=meter)
            changed, examples = packed.changed, packed.examples
            if report is not None:
                changed, examples = report.changed, report.examples
        _pass_on(packed.complaints)
        _tidy(opened.store)
    if changed:
        _warn("read", "the archive", name, changed, examples)
        return _CHANGED
    return 0


@click.command("import")
@scope_option
@click.option("-i", "--input", "input_file", metavar="FILE", help="Read from a file instead.")
@label_option
@create_option
@json_option
@click.argument("name", metavar="VOLUME")
def import_(
    scope: str,
    input_file: str | None,
    labels: tuple[str, ...],
    options: tuple[str, ...],
    as_json: bool,
    name: str,
) -> None:
    """Make a volume from a tar archive on standard input.

    \b
      volfs import web < web.tar
      volfs import --label team=blue -i web.tar.zst web

    The archive may be compressed by gzip, xz, zstd or bzip2. The volume appears when all of it
    is there: an archive that is cut short, or an interruption, leaves none. Owners are the
    archive's numbers when root does this, else everything is yours.
    """
    wanted, tags = key_values(options, "--opt"), key_values(labels, "--label")
    if input_file == "-":
        input_file = None
    if input_file is None and (sys.stdin is None or sys.stdin.isatty()):
        raise click.UsageError("an archive does not come from a terminal; use < or --input")
    from volfs.copies.archive import unpack
    from volfs.volume import NewVolume

    complaints: tuple[str, ...] = ()
    scope, (name,) = find_volumes(scope, name)
    with _read(input_file) as source, open_scope(scope, make=True) as opened, cleaning_up():
        with Meter(f"importing {name}", _length(source)) as meter:

            def fill(data: int, keep_alive: Callable[[], None]) -> None:
                def progress(count: int) -> None:
                    keep_alive()
                    meter(count)

                nonlocal complaints
                complaints = unpack(source, data, on_progress=progress)

            volume = opened.store.make_filled(NewVolume(name, wanted, tags), fill)
        _pass_on(complaints)
        if as_json:
            print_json(describe(volume))
        else:
            click.echo(printable(name))
        _tidy(opened.store)


def _describe_copy(report: CopyReport) -> dict[str, object]:
    return {
        "reflinked": report.is_reflinked,
        "point_in_time": report.is_point_in_time,
        "changed": report.changed,
        "bytes": report.size,
    }


def _warn(done: str, what: str, volume: str, changed: int, examples: Sequence[str]) -> None:
    where = f"in {number(changed, 'place')}" + (", such as " if examples else "")
    complain(
        f"{volume} was changed while it was {done} ({where}{', '.join(examples[:_TOLD])}): "
        f"{what} is not of one point in time"
    )


def _pass_on(complaints: Sequence[str]) -> None:
    for line in complaints[:_TOLD]:
        complain(f"tar: {line}")
    if len(complaints) > _TOLD:
        complain(f"tar: and {len(complaints) - _TOLD} more of these")


def _space(path: str) -> int:
    from volfs.cli.measuring import measure

    return measure(path).size


def _tidy(store: VolumeStore) -> None:
    """Delete what earlier commands left when they were killed, but not for long."""
    from volfs.linux.deletion import after

    with suppress(OSError):
        store.tidy(after(_TIDY))


@contextmanager
def _read(name: str | None) -> Iterator[int]:
    if name is None:
        yield sys.stdin.fileno()
        return
    with open(name, "rb", buffering=0) as file:  # noqa: PTH123
        yield file.fileno()


def _length(fd: int) -> int | None:
    status = os.fstat(fd)
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@contextmanager
def _written(name: str | None) -> Iterator[int]:
    """Yield a descriptor to write to; a file gets its name, or replaces another, at the end."""
    if name is None:
        yield sys.stdout.fileno()
        return
    if os.path.exists(name) and not os.path.isfile(name):
        with open(name, "wb", buffering=0) as device:  # noqa: PTH123
            yield device.fileno()
        return
    from volfs.linux.durable import opened, sync_directory

    name = os.path.realpath(name)
    if not os.path.isdir(directory := os.path.dirname(name)):
        # Rather a mistake than a directory to be made.
        raise ArchiveError(f"there is no directory {directory}: make it, or name another file")
    fd, temporary = tempfile.mkstemp(prefix=".volfs-", dir=directory)
    try:
        yield fd
        os.fsync(fd)
        os.rename(temporary, name)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    # One may write in a directory that one may not read.
    with suppress(PermissionError), opened(directory) as above:
        sync_directory(above)
