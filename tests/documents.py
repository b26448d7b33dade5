"""README.md and the pages of the manual, for the tests that do what they show."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Block:
    """A block of code, below the heading that stands before it."""

    heading: str
    language: str
    text: str


class Document:
    """A text in Markdown: its tables, lists and blocks of code."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.text = path.read_text()
        self.headings: list[str] = []
        self.every_block: list[Block] = []
        self._rows: list[list[str]] = []
        before = heading = ""
        for token in MarkdownIt().enable("table").parse(self.text):
            if token.type == "fence":
                self.every_block.append(Block(heading, token.info, token.content))
            elif token.type == "tr_open":
                self._rows.append([])
            elif token.type == "table_close":
                self._rows.append([])  # between two tables
            elif token.type == "inline" and before == "heading_open":
                heading = token.content
                self.headings.append(heading)
            elif token.type == "inline" and before in ("th_open", "td_open"):
                self._rows[-1].append(token.content)
            before = token.type

    def blocks(self, heading: str, language: str) -> list[str]:
        """The blocks in a language below a heading."""
        found = [b.text for b in self.every_block if (b.heading, b.language) == (heading, language)]
        assert found, f"no {language} below {heading} in {self.name}"
        return found

    def table(self, first: str) -> list[list[str]]:
        """The rows of the table whose first column has this header, each a list of cells."""
        rows = itertools.dropwhile(lambda row: row[:1] != [first], self._rows)
        found = list(itertools.takewhile(bool, rows))
        assert found, f"no table of {first} in {self.name}"
        return found[1:]

    def terms(self, heading: str) -> list[str]:
        """The terms of the definition lists below a heading."""
        section = re.search(
            rf"^#+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", self.text, re.DOTALL | re.MULTILINE
        )
        assert section, heading
        return re.findall(r"^(.+)\n:   ", section[1], re.MULTILINE)


README = Document(ROOT / "README.md")
PAGES = {
    path.name.removesuffix(".md"): Document(path)
    for path in sorted((ROOT / "volfs" / "manual").glob("*.md"))
}
"""The pages of the manual by name, such as ``volfs.8``."""


class Session:
    """A shell for what a document shows, with scope and tree in a directory of the test's."""

    def __init__(self, workspace: Path) -> None:
        self.scope, self.mnt = workspace / "scope", workspace / "mnt"
        self._bin = workspace / "bin"
        for made in (self.mnt, self._bin):
            made.mkdir()
        (self._bin / "volfs").write_text(
            f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m volfs "$@"\n'
        )
        (self._bin / "volfs").chmod(0o755)
        self._workspace = workspace

    def run(self, text: str, before: str = "", environment: Mapping[str, str] | None = None) -> str:
        """Run a block; return what it printed. ``before`` is script that is not in it."""
        text = text.replace("/srv/volumes", str(self.scope)).replace("/mnt/volumes", str(self.mnt))
        text = text.replace("volfs mount ", f"volfs mount --log-file {self._workspace}/log ")
        done = subprocess.run(
            ["sh", "-euxc", before + text],
            env={
                **os.environ,
                "PATH": f"{self._bin}:{os.environ['PATH']}",
                "HOME": str(self._workspace),
                "XDG_STATE_HOME": str(self._workspace),
                **(environment or {}),
            },
            cwd=self._workspace,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
