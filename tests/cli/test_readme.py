"""What README.md shows is true: its sessions run, its tables and links name what there is."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.conftest import is_mounted, wait_for
from tests.documents import PAGES, README, ROOT, Session
from volfs.cli import cli
from volfs.cli.options import OPTIONS


@pytest.fixture
def session(workspace: Path) -> Iterator[Session]:
    session = Session(workspace)
    yield session
    if is_mounted(session.mnt):
        subprocess.run(["umount", "-l", session.mnt], check=False)


def test_it_takes_five_minutes() -> None:
    assert README.text.count("\n") <= 150


def test_what_the_first_session_prints(session: Session) -> None:
    (transcript,) = README.blocks("volfs", "console")
    lines = transcript.splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    shown = [line for line in lines if not line.startswith("$ ")]
    assert session.run("\n".join(commands)).splitlines() == shown


def test_the_session_in_a_shell_runs(session: Session) -> None:
    (block,) = README.blocks("In a shell", "sh")
    printed = session.run(block)
    assert "restored site\n" in printed
    wait_for(lambda: not is_mounted(session.mnt), "the end of the tree")
    assert sorted(os.listdir(session.scope / "volumes")) == ["copy", "site"]
    assert (session.scope / "volumes/copy/_data/index.html").read_text() == "hello\n"


def test_the_line_for_fstab_is_the_manuals() -> None:
    """Which tests/cli/test_fstab.py mounts."""
    assert README.blocks("At boot", "fstab") == PAGES["mount.volfs.8"].blocks("FSTAB", "fstab")


def test_every_command_is_named() -> None:
    cells = ", ".join(row[0] for row in README.table("command"))
    named = re.findall(r"`([a-z]+)(?: [^`]*)?`", cells)
    assert sorted(named) == sorted(cli.list_commands(click.Context(cli)))


def test_every_option_named_is_there() -> None:
    names = {name for option in OPTIONS for name in (option.name, option.opposite)}
    named = re.findall(r"`([^`]+)`", ", ".join(row[0] for row in README.table("option")))
    assert len(named) > 8
    assert set(named) <= names


def test_what_it_links_to_and_the_scripts_named_are_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README.text)
    assert {f"volfs/manual/{name}.md" for name in PAGES} <= set(links)
    for name in (*links, *re.findall(r"scripts/[a-z.]+", README.text)):
        assert (ROOT / name).exists(), name
