"""Running the command line, in this process or as a program of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volfs.cli import cli

ROOT = Path(__file__).parent.parent.parent
PROGRAM = [sys.executable, "-m", "volfs"]
HELPER = [sys.executable, "-c", "from volfs.cli.fstab import main; main()"]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def volfs(*words: str | Path) -> Result:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int)
    return Result(code, out.getvalue(), err.getvalue())


def program(
    *words: str | Path,
    command: list[str] = PROGRAM,
    environment: Mapping[str, str] | None = None,
    user: int | None = None,
) -> Result:
    """Run a command as a program."""
    done = subprocess.run(
        [*command, *map(str, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        check=False,
        timeout=60,
    )
    return Result(done.returncode, done.stdout, done.stderr)
