"""Running the command line, in this process or as a program of its own."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
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
) -> Result:
    """Run a command as a program, by default ``volfs``."""
    done = subprocess.run(
        [*command, *map(str, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        check=False,
        timeout=60,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def running(*words: str | Path) -> list[int]:
    """The processes of this machine that were started with all of these words."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                given = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if {os.fsencode(word) for word in words} <= set(given):
                found.append(int(entry))
    return found


@contextmanager
def process(*command: str | Path, cwd: Path | None = None) -> Iterator[int]:
    """A process that has said "ready" and lives until the end; its pid."""
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cwd
    )
    assert child.stdin and child.stdout
    try:
        assert child.stdout.readline() == "ready\n"
        yield child.pid
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()


def shell(script: str) -> tuple[str, ...]:
    return ("sh", "-ec", f"{script}\necho ready; read x || true")


def elsewhere(script: str) -> tuple[str, ...]:
    """The same in a mount namespace of its own."""
    return ("unshare", "--mount", "--propagation", "private", *shell(script))


def names(*words: str) -> list[str]:
    result = volfs("ls", "-q", *words)
    assert result.code == 0
    return result.out.splitlines()


def on_terminal(*words: str, answer: str = "") -> tuple[str, int]:
    """Run a command on a terminal of its own; return what it showed and its exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *words], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:
        pass  # EIO: the other end is closed
    finally:
        os.close(ours)
    return re.sub(r"\x1b\[[\d;]*m", "", shown.decode()), process.wait(30)
