"""What README.md shows, for the tests that do it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(heading: str, language: str) -> list[str]:
    """The blocks in a language in the section below a heading."""
    found = re.search(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", README, re.DOTALL | re.MULTILINE)
    assert found, heading
    return re.findall(rf"^```{language}\n(.*?)^```$", found[1], re.DOTALL | re.MULTILINE)


class Session:
    """A shell for what README shows, with the scope and the tree in a directory of the test's."""

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
