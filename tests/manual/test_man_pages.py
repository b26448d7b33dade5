"""scripts/manpages makes man pages that man(1) shows well."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.programs import require
from tests.conftest import open_workspace
from tests.documents import PAGES, ROOT

MANPAGES = ROOT / "scripts/manpages"


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    require("pandoc", "man")
    with open_workspace() as base:
        done = subprocess.run(
            [MANPAGES, base / "share/man"],
            cwd=base,
            env={**os.environ, "SOURCE_DATE_EPOCH": "86400"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        yield base / "share/man"


def test_they_lie_where_man_looks_for_them(directory: Path) -> None:
    made = {str(path.relative_to(directory)) for path in directory.rglob("*.*")}
    assert made == {f"man{name[-1]}/{name}" for name in PAGES}


@pytest.mark.parametrize("name", PAGES)
def test_what_man_shows(directory: Path, name: str) -> None:
    page, document = directory / f"man{name[-1]}" / name, PAGES[name]
    shown = subprocess.run(
        ["man", "--warnings=w", "--local-file", page],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MAN_KEEP_FORMATTING": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = re.sub(r"\x1b\[\d*m|.\x08", "", shown.stdout).splitlines()
    title, *headings = document.headings
    assert lines[0].split() == [title, "Volumes", "as", "directories", title]
    assert lines[-1].split()[-2:] == ["1970-01-02", title]
    outlined = [line.strip() for line in lines[1:-1] if re.match(r" {0,3}\S", line)]
    assert outlined == headings
    assert max(map(len, lines)) <= 80
    # Terms stand to the left of what they mean, and no mark of Markdown is left.
    text = "\n".join(lines)
    assert not re.search(r"\*\*|^ *:   |```|\|---|\\\||^ *## ", text, re.MULTILINE)
    for block in document.every_block:
        for line in filter(str.strip, block.text.splitlines()):
            assert f" {line}\n" in text
    # mandb(8) takes the line that apropos(1) shows from here.
    known = subprocess.run(["lexgrog", page], capture_output=True, text=True, check=False).stdout
    assert f'"{title.partition("(")[0]} - ' in known


def test_without_a_directory_or_pandoc(tmp_path: Path) -> None:
    for words, path, complaint in (
        ([], os.environ["PATH"], "into which directory"),
        ([str(tmp_path / "man")], str(tmp_path), "apt-get install -y pandoc"),
    ):
        done = subprocess.run(
            ["/bin/bash", MANPAGES, *words],
            env={"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert complaint in done.stderr
    assert not (tmp_path / "man").exists()
