"""The table of mount options: both spellings, and what mount(8) adds."""

from __future__ import annotations

import os

import click
import pytest

from volfs.cli.durations import parse_duration
from volfs.cli.options import (
    OPTIONS,
    MountRequest,
    OptionError,
    make_request,
    mount_options,
    parse_options,
    request_of,
)
from volfs.fs.files import CachePolicy
from volfs.fs.mount.options import MountOptions


def requested(*words: str) -> MountRequest:
    """Return what a command with the mount options understands."""
    answer = []

    @click.command()
    @mount_options
    def command(o: tuple[str, ...], **fields: object) -> None:
        answer.append(request_of(o, fields))

    command.main(list(words), standalone_mode=False)
    return answer[0]


SPELLINGS = [
    ("cache", "never", MountOptions(cache=CachePolicy.NEVER)),
    ("cache", "always", MountOptions(cache=CachePolicy.ALWAYS)),
    ("rmdir", "empty", MountOptions(rmdir="empty")),
    ("root-mode", "1777", MountOptions(root_mode=0o1777)),
    ("root-mode", "0750", MountOptions(root_mode=0o750)),
    ("root-owner", "0:0", MountOptions(root_owner=(0, 0))),
    ("root-owner", "root", MountOptions(root_owner=(0, 0))),
    ("root-owner", "root:5", MountOptions(root_owner=(0, 5))),
    ("root-owner", "1234", MountOptions(root_owner=(1234, 1234))),
    ("allow-other", "", MountOptions(allow_other=True)),
    ("no-allow-other", "", MountOptions(allow_other=False)),
    ("ro", "", MountOptions(read_only=True)),
    ("rw", "", MountOptions()),
    ("suid", "", MountOptions(suid=True)),
    ("nosuid", "", MountOptions()),
    ("dev", "", MountOptions(dev=True)),
    ("nodev", "", MountOptions()),
    ("exec", "", MountOptions()),
    ("noexec", "", MountOptions(noexec=True)),
    ("atime", "", MountOptions()),
    ("noatime", "", MountOptions(noatime=True)),
    ("passthrough", "", MountOptions()),
    ("no-passthrough", "", MountOptions(passthrough=False)),
    ("tap", "", MountOptions()),
    ("no-tap", "", MountOptions(tap=False)),
]


@pytest.mark.parametrize(("name", "value", "meaning"), SPELLINGS)
def test_both_spellings(name: str, value: str, meaning: MountOptions) -> None:
    long = [f"--{name}", value] if value else [f"--{name}"]
    short = f"{name}={value}" if value else name
    assert requested(*long).options == meaning
    assert requested("-o", short).options == meaning
    assert requested("-o", short.replace("-", "_")).options == meaning


def test_every_option_is_tried_above() -> None:
    names = {name for name, _, _ in SPELLINGS} | {"keep-removed", "log-file"}
    names |= {"plugin", "no-plugin", "plugin-socket", "create-scope", "no-create-scope"}
    assert names == {n for option in OPTIONS for n in (option.name, option.opposite) if n}


def test_what_is_not_a_matter_of_the_mount() -> None:
    request = requested("--keep-removed", "7d", "-o", "log-file=/tmp/log")
    assert request == MountRequest(MountOptions(), 7 * 86400, "/tmp/log")
    assert requested("-o", "keep-removed=0").keep_removed == 0
    request = requested("--plugin", "-o", "plugin_socket=/run/x.sock")
    assert request == MountRequest(plugin=True, plugin_socket="/run/x.sock")
    assert requested("-o", "plugin,plugin-socket=x.sock").plugin_socket == f"{os.getcwd()}/x.sock"
    assert requested("-o", "plugin", "--no-plugin") == MountRequest()
    assert requested("-o", "no-create-scope") == MountRequest(create_scope=False)
    assert requested("-o", "no-create-scope,create-scope") == MountRequest()
    with pytest.raises(click.UsageError, match="ask for it with plugin"):
        requested("--plugin-socket", "/run/x.sock")
    assert requested() == MountRequest(MountOptions(), 86400, None)


def test_several_lists_and_the_long_option_wins() -> None:
    options = requested("-o", "cache=never,ro", "-o", "noexec", "--cache", "always", "--rw").options
    assert options == MountOptions(cache=CachePolicy.ALWAYS, noexec=True)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("1.5", 1.5), ("30m", 1800), ("24h", 86400), ("1h30m", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1y", "24 h", "1h-", "inf", "nan"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="24h"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("bogus", "unknown mount option 'bogus' .*known: cache=, rmdir=.*noexec"),
        ("cach=never", "did you mean cache?"),
        ("cache", "needs a value: cache=never|auto|always"),
        ("cache=sometimes", "cache: 'sometimes' is none of never, auto, always"),
        ("rmdir=all", "none of data, empty"),
        ("root-mode=rwx", "octal"),
        ("root-mode=99999", "octal"),
        ("root-owner=nobody-at-all", "names no user"),
        ("root-owner=root:no-such-group", "names no user or group"),
        ("keep-removed=soon", "24h"),
        ("ro=maybe", "is yes or no"),
        ("remount,ro", "unmount it and mount it anew"),
        ("log-file=", "empty value"),
    ],
)
def test_complaints(text: str, complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint.replace("|", r"\|").replace("?", r"\?")):
        parse_options(text)
    with pytest.raises(click.UsageError):
        requested("-o", text)


def test_generic_options_are_ignored() -> None:
    generic = (
        "defaults,auto,noauto,_netdev,nofail,user,users,user=joe,x-systemd.automount,X-mount.mkdir,"
        "comment=hello,norelatime,relatime,,lazytime"
    )
    assert parse_options(generic) == {}


def test_what_mount_adds_on_its_own_is_no_wish() -> None:
    # mount.fuse3(8) adds dev and suid to the options of every mount.
    assert make_request(parse_options("rw,dev,suid", from_mount=True)).options == MountOptions()
    wished = make_request(parse_options("rw,suid=yes,dev=yes", from_mount=True)).options
    assert wished == MountOptions(suid=True, dev=True)
    unwished = make_request(parse_options("suid=no,exec=no", from_mount=True)).options
    assert unwished == MountOptions(noexec=True)


def test_sloppy() -> None:
    assert parse_options("bogus,ro", sloppy=True) == {"read_only": True}
