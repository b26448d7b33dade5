"""What the README shows is true: its shell sessions run, its tables name what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click

from tests.conftest import is_mounted, wait_for
from tests.readme import README, ROOT, Session, blocks
from volfs.errors import VolfsError


def test_the_shell_sessions_run(workspace: Path) -> None:
    in_tree, beside = blocks("In a shell", "sh")
    session = Session(workspace)
    try:
        printed = session.run(in_tree)
    finally:
        if is_mounted(session.mnt):
            subprocess.run(["umount", "-l", session.mnt], check=False)
    assert printed.count("hello\n") == 2
    assert "web" in printed
    wait_for(lambda: not is_mounted(session.mnt), "the end of the tree")
    printed = session.run(beside)
    assert sorted(os.listdir(session.scope / "volumes")) == ["shop", "shop-2", "site"]
    assert "removed shop-copy" in printed
    assert (session.scope / "volumes" / "shop" / "_data").stat().st_uid == 1000


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
