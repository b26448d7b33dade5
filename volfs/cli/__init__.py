"""The command line: a face for people, and with ``--json`` for programs.

A module holds one command or a few that belong together, and is named for what they are about. It
is imported when the command is called, with what it needs of the store, so that the others start
quickly. ``output`` is how things are shown, ``scope`` which scope is meant, ``daemon`` and
``services`` how a tree or a plugin is served. Calls all rooms. Start here, and go on at
``volumes``.
"""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from typing import Any, NoReturn

import click

import volfs
from volfs.cli.output import complain
from volfs.errors import VolfsError

EXIT_CODES = {
    0: "done",
    1: "failed for a reason that has no code of its own",
    2: "wrong usage",
    3: "the name cannot be a volume's, or a create option is unknown or malformed",
    4: "no such volume, or no such removed volume",
    5: "a volume of that name exists, perhaps with other options",
    6: "the volume is in use, or not empty where only empty ones are removed",
    7: "the data lies outside the scope: removal refused",
    8: "no such volume driver",
    9: "the scope cannot serve",
    10: "the tree cannot be mounted or unmounted here",
    11: "the volume plugin cannot serve",
    130: "interrupted",
}
"""What the command line ends with; the numbers are those of volfs.errors."""

_COMMANDS = {
    "mount": "volfs.cli.mounting",
    "umount": "volfs.cli.mounting",
    "plugin": "volfs.cli.plugin",
    "create": "volfs.cli.volumes",
    "rm": "volfs.cli.volumes",
    "ls": "volfs.cli.listing",
    "inspect": "volfs.cli.listing",
    "rename": "volfs.cli.volumes",
    "label": "volfs.cli.volumes",
    "restore": "volfs.cli.removed",
    "prune": "volfs.cli.pruning",
    "purge": "volfs.cli.removed",
    "df": "volfs.cli.space",
    "clone": "volfs.cli.copies",
    "export": "volfs.cli.copies",
    "import": "volfs.cli.copies",
    "doctor": "volfs.cli.doctor",
    "help": "volfs.cli.manual",
}


_ALIASES = {"list": "ls", "remove": "rm", "mv": "rename"}
"""What people type who know other programs, and the commands that they mean."""


def _epilog() -> str:
    lines = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    return f"\b\nExit codes:\n{lines}"


class _Group(click.Group):
    """A group that imports a command's module when it is called, and knows the exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = _ALIASES.get(cmd_name, cmd_name)
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        attribute = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word, *rest = args
        command = self.get_command(ctx, word)
        if command is not None:
            return command.name, command, rest
        if not ctx.resilient_parsing:
            import difflib

            # Not every version of click has suggestions of its own.
            close = difflib.get_close_matches(word, [*_COMMANDS, *_ALIASES], 1)
            hint = f"did you mean {close[0]}?" if close else "`volfs help` lists them"
            ctx.fail(f"there is no command {word!r}; {hint}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Alike in all versions of click, of which some end with 0 and some raise an error that
        # holds the whole help.
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True, color=ctx.color)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def main(self, args: Any = None, prog_name: Any = None, **extra: Any) -> NoReturn:  # type: ignore[override]
        extra["standalone_mode"] = False
        try:
            code = super().main(args, prog_name or "volfs", **extra)
            sys.stdout.flush()
        except click.exceptions.Exit as end:
            code = end.exit_code
        except click.Abort:
            complain("interrupted")
            code = 130
        except click.ClickException as error:
            command = getattr(getattr(error, "ctx", None), "command_path", "volfs")
            complain(f"{error.format_message().rstrip('.')} (see {command} --help)")
            code = error.exit_code
        except VolfsError as error:
            complain(str(error))
            code = error.exit_code
        except BrokenPipeError:
            # The reader went away, as head(1) does; nothing may be flushed at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = 1
        except OSError as error:
            where = f": {error.filename}" if error.filename is not None else ""
            complain(f"{error.strerror or error}{where}")
            code = 1
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    cls=_Group,
    name="volfs",
    epilog=_epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(volfs.__version__, "-V", "--version", prog_name="volfs")
def cli() -> None:
    """Volumes as directories: in a mounted tree mkdir makes a volume and rmdir removes it.

    \b
      volfs mount /srv/volumes /mnt/volumes     serve the scope as a tree
      mkdir /mnt/volumes/web                    a volume, ready for -v or --mount
      volfs ls --scope /srv/volumes             the same, from the outside
      volfs umount /mnt/volumes

    All commands but mount, umount and plugin work on a scope directly, whether it is mounted or
    not. The scope is --scope, else that of the tree one stands in, else $VOLFS_SCOPE, else
    /var/lib/volfs for root and $XDG_DATA_HOME/volfs for others. A volume is named by its name, or
    by its path in a tree. `volfs help` lists the pages of the manual.
    """


def main() -> NoReturn:
    """The program ``volfs``."""
    # mount.fuse3(8) knows no commands: it runs `volfs SCOPE MNT -o OPTIONS`.
    if len(sys.argv) > 2 and "/" in sys.argv[1] and not sys.argv[1].startswith("-"):
        from volfs.cli.fstab import main as mount_helper

        mount_helper()
    cli.main()
