"""volfs help: the manual without man(1), and the help of each command."""

from __future__ import annotations

import re

import click
import pytest

from tests.cli.running import on_terminal, program, volfs
from tests.documents import PAGES
from volfs.cli import cli

COMMANDS = cli.list_commands(click.Context(cli))
TOPICS = {
    "volfs": "volfs.8",
    "mount": "mount.volfs.8",
    "mount.volfs": "mount.volfs.8",
    "tree": "volfs-tree.7",
    "volfs-tree": "volfs-tree.7",
    "internals": "volfs-internals.7",
    "volfs-internals": "volfs-internals.7",
}


def test_every_page_has_a_topic() -> None:
    assert set(TOPICS.values()) == set(PAGES)


def test_without_a_topic_all_are_listed() -> None:
    result = volfs("help")
    assert (result.code, result.err) == (0, "")
    for topic in ("volfs", "mount", "tree", "internals", *COMMANDS):
        assert re.search(rf"^  {topic} +\S", result.out, re.MULTILINE)


@pytest.mark.parametrize(("topic", "page"), TOPICS.items())
def test_to_a_pipe_a_page_is_its_source(topic: str, page: str) -> None:
    assert program("help", topic).out == PAGES[page].text


@pytest.mark.parametrize(("topic", "page"), TOPICS.items())
def test_on_a_terminal_a_page_is_laid_out(
    topic: str, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGER", "cat")
    monkeypatch.setenv("COLUMNS", "80")
    shown, code = on_terminal("help", topic)
    assert code == 0
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= 80
    assert not re.search(r"\*\*|^ *:   |```|\|---|^ *## ", "\n".join(lines), re.MULTILINE)
    title, *headings = PAGES[page].headings
    assert lines[0].strip() == title
    assert set(headings) <= set(lines)
    for block in PAGES[page].every_block:
        assert all(f" {line}" in lines for line in block.text.splitlines() if line)


def test_pages_go_through_the_pager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGER", "sed s/KNOWN/PAGED/")
    shown, code = on_terminal("help", "tree")
    assert code == 0
    assert "PAGED DIFFERENCES" in shown
    assert "KNOWN" not in shown


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in TOPICS])
def test_the_name_of_a_command_shows_its_help(command: str) -> None:
    assert volfs("help", command) == volfs(command, "--help")


@pytest.mark.parametrize(
    ("topic", "hint"),
    [
        ("tre", "did you mean tree"),
        ("intenals", "did you mean internals"),
        ("restor", "did you mean restore"),
        ("xyzzy", "`volfs help` lists them"),
    ],
)
def test_what_there_is_no_help_on(topic: str, hint: str) -> None:
    result = volfs("help", topic)
    assert (result.code, result.out) == (2, "")
    assert f"there is no help on '{topic}'; {hint}" in result.err
