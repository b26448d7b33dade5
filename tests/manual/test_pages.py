"""The manual is complete and true: it names what there is, all of it and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click
import pytest

from tests.documents import PAGES, README, ROOT
from volfs.cli import EXIT_CODES, cli
from volfs.cli.options import OPTIONS

VOLFS, MOUNT = PAGES["volfs.8"], PAGES["mount.volfs.8"]
COMMANDS = cli.list_commands(click.Context(cli))
MOUNT_OPTIONS = {name for o in OPTIONS for name in (o.name, o.opposite) if name}
IN_COMMON = {"--scope", "--json"}
"""Options that are explained once, below COMMANDS."""

RUN = {
    ("README.md", "volfs", "console"),
    ("README.md", "volfs", ""),
    ("README.md", "In a shell", "sh"),
    ("README.md", "With containers", "sh"),
    ("README.md", "At boot", "fstab"),
    ("mount.volfs.8.md", "DESCRIPTION", "sh"),
    ("mount.volfs.8.md", "FSTAB", "fstab"),
    ("volfs.8.md", "NAMES", "sh"),
    ("volfs.8.md", "Docker", "sh"),
    ("volfs.8.md", "Podman", "toml"),
    ("volfs.8.md", "Podman", "sh"),
    ("volfs.8.md", "Compose", "yaml"),
    ("volfs.8.md", "In a tree", "sh"),
    ("volfs.8.md", "On a scope", "sh"),
}
"""Every block of code and where it stands. Each is run or used by a test: README's by
tests/cli/test_readme.py, those with containers by tests/clients, those of mount.volfs(8) by
tests/cli/test_fstab.py, the rest by test_examples.py."""


def test_every_block_is_one_that_is_run() -> None:
    shown = {
        (document.name, block.heading, block.language)
        for document in (README, *PAGES.values())
        for block in document.every_block
    }
    assert shown == RUN


def option_names(terms: Iterable[str]) -> set[str]:
    """The options that terms of a definition list name."""
    return {name for term in terms for name in re.findall(r"\*\*(-[-\w]+)\*\*", term)}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_in_volfs_8(command: str) -> None:
    (heading,) = (h for h in VOLFS.headings if re.match(rf"volfs {command}\b", h))
    known = cli.get_command(click.Context(cli), command)
    assert known
    options = {
        name
        for param in known.params
        if isinstance(param, click.Option)
        for name in (*param.opts, *param.secondary_opts)
    }
    options -= IN_COMMON
    if command == "mount":
        options -= {f"--{name}" for name in MOUNT_OPTIONS}
    assert option_names(VOLFS.terms(heading)) == options


def test_the_options_that_commands_have_in_common() -> None:
    assert option_names(VOLFS.terms("COMMANDS")) == IN_COMMON


def test_every_mount_option_is_in_both_pages_that_list_them() -> None:
    rows = [f"{option} {meaning}" for option, _, meaning in VOLFS.table("option")]
    listed = set(re.findall(r"`([-a-z]+)=?`", " ".join(rows)))
    values = {"auto", "never", "always", "data", "empty", "rmdir"}
    assert MOUNT_OPTIONS <= listed <= MOUNT_OPTIONS | values
    explained = re.findall(r"`([-a-z]+)[=`]", " ".join(MOUNT.terms("OPTIONS")))
    assert set(explained) == MOUNT_OPTIONS


def test_every_exit_code_is_in_volfs_8() -> None:
    assert VOLFS.terms("EXIT STATUS") == [f"**{code}**" for code in EXIT_CODES]
    for meaning in EXIT_CODES.values():
        assert re.search(rf"^:   {re.escape(meaning)}", VOLFS.text, re.MULTILINE | re.IGNORECASE)


@pytest.mark.parametrize("name", PAGES)
class TestPage:
    def test_it_is_in_the_order_of_man_pages(self, name: str) -> None:
        section = name.rpartition(".")[2]
        first, *headings = PAGES[name].headings
        assert first == f"{name.rpartition('.')[0]}({section})"
        usual = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "ENVIRONMENT", "FILES"]
        usual += ["EXIT STATUS", "NOTES", "EXAMPLES", "SEE ALSO"]
        found = [heading for heading in headings if heading in usual]
        assert found == [heading for heading in usual if heading in headings]
        assert {"NAME", "DESCRIPTION", "SEE ALSO"} <= set(found)

    def test_pages_of_ours_that_it_names_are_there(self, name: str) -> None:
        for page, section in re.findall(r"\*\*([\w.-]*volfs[\w.-]*)\*\*\((\d)\)", PAGES[name].text):
            assert f"{page}.{section}" in PAGES

    def test_what_it_names_of_the_sources_is_there(self, name: str) -> None:
        for path in re.findall(r"`((?:volfs|scripts)/[\w./@-]+)`", PAGES[name].text):
            assert (ROOT / path).exists(), path

    def test_code_fits_a_page_of_80_columns(self, name: str) -> None:
        for block in PAGES[name].every_block:
            for line in block.text.splitlines():
                assert len(line) <= 66, line
