"""What the README shows is true: its shell session runs, its tables name what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click

from tests.conftest import is_mounted, wait_for
from volfs.errors import VolfsError

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_shell_session_runs(workspace: Path) -> None:
    (session,) = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    scope, mnt, bin_ = workspace / "scope", workspace / "mnt", workspace / "bin"
    mnt.mkdir()
    bin_.mkdir()
    (bin_ / "volfs").write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m volfs "$@"\n'
    )
    (bin_ / "volfs").chmod(0o755)
    text = session.replace("/srv/volumes", str(scope)).replace("/mnt/volumes", str(mnt))
    text = text.replace("volfs mount ", f"volfs mount --log-file {workspace}/log ")
    done = subprocess.run(
        ["sh", "-eux", "-c", text],
        env={
            **os.environ,
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "HOME": str(workspace),
            "XDG_STATE_HOME": str(workspace),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if is_mounted(mnt):
        subprocess.run(["umount", "-l", mnt], check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("hello\n") == 2
    assert "web" in done.stdout
    wait_for(lambda: not is_mounted(mnt), "the end of the tree")


def test_every_command_and_option_named_is_there() -> None:
    from volfs.cli import cli
    from volfs.cli.mounting import mount

    named = set(re.findall(r"`([a-z]+)(?: [^`|]*)?`(?=[, |])", _table("command")))
    assert named == set(cli.list_commands(click.Context(cli)))
    options = {text for option in mount.params for text in (*option.opts, *option.secondary_opts)}
    for cell in re.findall(r"^\| (`[^|]+`[^|]*) \|", _table("option").replace("\\|", "/"), re.M):
        for name in re.findall(r"`([a-z-]+)", cell):
            assert f"--{name}" in options


def test_every_exit_code_is_explained_by_help() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "volfs", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    codes = {int(code) for code in re.findall(r"^ +(\d+)  ", shown, re.M)}
    assert {kind.exit_code for kind in _all(VolfsError)} <= codes


def test_the_scripts_named_are_there() -> None:
    for name in re.findall(r"scripts/[a-z.]+", README):
        assert (ROOT / name).exists(), name


def _table(heading: str) -> str:
    found = re.search(rf"^\| {heading} \|.*?\n\n", README, re.DOTALL | re.MULTILINE)
    assert found
    return found.group().split("\n", 2)[2]


def _all(kind: type[VolfsError]) -> list[type[VolfsError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _all(child))]
