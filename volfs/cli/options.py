"""The mount options: one table, from which both ``--cache never`` and ``-o cache=never`` come.

mount(8) and /etc/fstab spell them in the second way. What mount(8) handles itself or means for
other programs (``nofail``, ``x-systemd.*``) is accepted and ignored.
"""

from __future__ import annotations

import difflib
import grp
import pwd
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from volfs.cli.durations import parse_duration
from volfs.fs.files import CachePolicy
from volfs.fs.mount.options import MountOptions

DAY = 86400.0


class OptionError(ValueError):
    """A mount option is unknown or its value makes no sense; the message says what would."""


@dataclass(frozen=True, slots=True)
class MountRequest:
    """All that can be asked of a mount.

    ``keep_removed``: seconds a removed volume stays restorable. ``log_file``: where a daemon in
    the background logs, None for the default. ``plugin``: the volume plugin is served as well,
    at the absolute path ``plugin_socket``, None for the default. ``create_scope``: a scope that is
    not there is made.
    """

    options: MountOptions = field(default_factory=MountOptions)
    keep_removed: float = DAY
    log_file: str | None = None
    plugin: bool = False
    plugin_socket: str | None = None
    create_scope: bool = True


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table.

    ``parse`` is None for a switch, whose opposite is ``opposite`` and whose value in the field
    is ``on`` or its negation.
    """

    name: str
    field: str
    help: str
    metavar: str = ""
    parse: Callable[[str], object] | None = None
    opposite: str = ""
    on: bool = True


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise OptionError(f"{text!r} is none of {', '.join(values)}")
        return text

    return parse


def _cache(text: str) -> CachePolicy:
    return CachePolicy(_one_of(*(policy.value for policy in CachePolicy))(text))


def _mode(text: str) -> int:
    if not re.fullmatch(r"0?o?[0-7]{3,4}", text):
        raise OptionError(f"{text!r} is no octal mode; write it like 0755 or 1777")
    return int(text.removeprefix("0o"), 8)


def _owner(text: str) -> tuple[int, int]:
    """``USER``, ``USER:GROUP`` or numbers; a user alone brings their own group."""
    user, colon, group = text.partition(":")
    try:
        if user.isdecimal():
            uid, gid = int(user), int(user)
        else:
            entry = pwd.getpwnam(user)
            uid, gid = entry.pw_uid, entry.pw_gid
        if colon:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise OptionError(f"{text!r} names no user or group of this machine") from None
    return uid, gid


def _text(text: str) -> str:
    if not text:
        raise OptionError("an empty value means nothing here")
    return text


def _absolute(text: str) -> str:
    return str(Path(_text(text)).absolute())


OPTIONS = (
    Option(
        "cache",
        "cache",
        "How long the kernel answers from memory: never asks every time, auto (the default) "
        "knows of changes behind the mount after a second, always is for scopes that nothing "
        "but this mount touches.",
        "never|auto|always",
        _cache,
    ),
    Option(
        "rmdir",
        "rmdir",
        "What rmdir of a volume does: data (the default) removes it with its data, into the "
        "trash; empty refuses unless it is empty.",
        "data|empty",
        _one_of("data", "empty"),
    ),
    Option("root-mode", "root_mode", "Mode of the tree's root, 0755 by default.", "MODE", _mode),
    Option(
        "root-owner",
        "root_owner",
        "Owner of the tree's root, by default who mounts it.",
        "USER[:GROUP]",
        _owner,
    ),
    Option(
        "keep-removed",
        "keep_removed",
        "How long a removed volume can be restored, 24h by default; 0 deletes it at once.",
        "DURATION",
        parse_duration,
    ),
    Option(
        "log-file",
        "log_file",
        "Where the daemon in the background logs.",
        "FILE",
        _absolute,
    ),
    Option(
        "plugin",
        "plugin",
        "Serve the volume plugin for Docker and Podman as well, or not (default).",
        opposite="no-plugin",
    ),
    Option(
        "plugin-socket",
        "plugin_socket",
        "Where the plugin is served, /run/docker/plugins/volfs.sock by default.",
        "PATH",
        _absolute,
    ),
    Option(
        "allow-other",
        "allow_other",
        "Whether users other than the one who mounts get in (default: yes for root; others "
        "need user_allow_other in /etc/fuse.conf).",
        opposite="no-allow-other",
    ),
    Option(
        "create-scope",
        "create_scope",
        "Make a scope that is not there (default of volfs mount), or refuse (default of mount(8) "
        "and /etc/fstab).",
        opposite="no-create-scope",
    ),
    Option("ro", "read_only", "Mount read-only or writable (default).", opposite="rw"),
    Option("suid", "suid", "Honour set-user-id bits or not (default).", opposite="nosuid"),
    Option("dev", "dev", "Honour device files or not (default).", opposite="nodev"),
    Option(
        "exec", "noexec", "Allow (default) or forbid running programs.", opposite="noexec", on=False
    ),
    Option(
        "atime",
        "noatime",
        "Note when files are read as the scope's filesystem does (default), or not at all.",
        opposite="noatime",
        on=False,
    ),
    Option(
        "passthrough",
        "passthrough",
        "Let the kernel read and write the files of volumes itself where it can (default), or "
        "leave that to the daemon.",
        opposite="no-passthrough",
    ),
    Option(
        "tap",
        "tap",
        "Answer requests where they come in (default), or leave all to pyfuse3, without "
        "passthrough and with fewer kinds of requests.",
        opposite="no-tap",
    ),
)

_BY_NAME = {option.name: option for option in OPTIONS}
_OPPOSITES = {option.opposite: option for option in OPTIONS if option.opposite}

# mount(8) acts on these itself, or they are for other readers of fstab. The other access time
# options are the backing filesystem's and mean nothing to FUSE, as does lazytime.
_IGNORED = frozenset(
    (
        *("defaults", "auto", "noauto", "nofail", "_netdev", "async", "silent", "loud"),
        *("user", "nouser", "users", "owner", "group", "mand", "nomand"),
        *("relatime", "norelatime", "strictatime", "nostrictatime"),
        *("diratime", "nodiratime", "lazytime", "nolazytime"),
    )
)
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")
_YES_NO = {"yes": True, "on": True, "1": True, "no": False, "off": False, "0": False}


def known_options() -> str:
    """Return the names of all options, for messages."""
    names = [f"{o.name}=" if o.parse else f"{o.name}/{o.opposite}" for o in OPTIONS]
    return ", ".join(names)


def parse_options(
    text: str, *, from_mount: bool = False, sloppy: bool = False
) -> dict[str, object]:
    """Return the fields and values that an ``-o`` list (``cache=never,ro``) asks for.

    Names may be written with underscores too. A switch takes ``=yes`` or ``=no``. With
    ``from_mount`` the bare words ``suid`` and ``dev`` mean nothing: mount(8) drops them and
    mount.fuse3(8) adds them to everything, so only ``suid=yes`` and ``dev=yes`` are a wish.
    With ``sloppy`` unknown options are passed over.

    Raises OptionError, naming the known ones when one is unknown.
    """
    values: dict[str, object] = {}
    for word in filter(None, text.split(",")):
        if word in _IGNORED or word.startswith(_IGNORED_PREFIXES):
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if from_mount and not equals and name in ("suid", "dev"):
            continue
        if name == "remount":
            raise OptionError("a mounted tree cannot be remounted: unmount it and mount it anew")
        option = _BY_NAME.get(name) or _OPPOSITES.get(name)
        if option is None:
            if sloppy:
                continue
            close = difflib.get_close_matches(name, [*_BY_NAME, *_OPPOSITES], 1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise OptionError(f"unknown mount option {name!r}{hint} (known: {known_options()})")
        values[option.field] = _value(option, name, value if equals else None)
    return values


def _value(option: Option, name: str, value: str | None) -> object:
    if option.parse:
        if value is None:
            raise OptionError(f"mount option {name} needs a value: {name}={option.metavar}")
        try:
            return option.parse(value)
        except ValueError as error:
            raise OptionError(f"mount option {name}: {error}") from None
    wanted = True if value is None else _YES_NO.get(value)
    if wanted is None:
        raise OptionError(f"mount option {name} is yes or no, not {value!r}")
    return wanted == ((name == option.name) == option.on)


def make_request(*layers: Mapping[str, object]) -> MountRequest:
    """Return the request that fields and values make, later layers winning over earlier ones.

    Raises OptionError when they contradict each other.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values.update(layer)
    names = ("keep_removed", "log_file", "plugin", "plugin_socket", "create_scope")
    own = {name: values.pop(name) for name in names if name in values}
    if "plugin_socket" in own and not own.get("plugin"):
        raise OptionError("plugin-socket says where the plugin is served: ask for it with plugin")
    return MountRequest(options=MountOptions(**values), **own)


def mount_options(function: Callable[..., object]) -> Callable[..., object]:
    """Decorate a click command with ``-o`` and one long option for each row of the table.

    The command gets ``o`` and a keyword for each field, for ``request_of``.
    """
    for option in reversed(OPTIONS):
        if option.parse:
            decorator = click.option(
                f"--{option.name}", option.field, metavar=option.metavar, help=option.help
            )
        else:
            names = f"--{option.name}/--{option.opposite}"
            decorator = click.option(names, option.field, default=None, help=option.help)
        function = decorator(function)
    return click.option(
        "-o",
        "o",
        multiple=True,
        metavar="OPTIONS",
        help="The same options as mount(8) writes them: -o cache=never,ro",
    )(function)


def request_of(o: Iterable[str], fields: Mapping[str, object]) -> MountRequest:
    """Return what a command decorated with ``mount_options`` was asked for.

    A long option wins over ``-o``. Raises click.UsageError.
    """
    try:
        given = {}
        for option in OPTIONS:
            value = fields.get(option.field)
            if isinstance(value, str):
                given[option.field] = _value(option, option.name, value)
            elif value is not None:
                given[option.field] = value if option.on else not value
        return make_request(parse_options(",".join(o)), given)
    except OptionError as error:
        raise click.UsageError(str(error)) from None
