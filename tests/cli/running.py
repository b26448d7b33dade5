"""Running the command line, in this process or as a program of its own."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests import interpreter
from tests.conftest import wait_for
from tests.interpreter import PROGRAM as PROGRAM
from tests.interpreter import ROOT as ROOT
from tests.interpreter import User
from volfs.cli import cli

HELPER = [sys.executable, "-c", "from volfs.cli.fstab import main; main()"]

SERVING = r"(\S+ \S+ )?INFO volfs.level: serving at \S+, level (plain|tap|passthrough)( \(.*\))?\n"
"""All that a daemon logs when nothing is the matter."""


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
    command: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    user: User | None = None,
) -> Result:
    """Run ``volfs`` as a program, or what ``command`` begins."""
    if command:
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
    else:
        done = interpreter.run(*words, environment=environment, user=user)
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


class Terminal:
    """A command on a terminal of its own, which it is on until the end of a with statement."""

    def __init__(
        self, *words: str | Path, command: list[str] = PROGRAM, stdout: int | None = None
    ) -> None:
        """``stdout`` is a descriptor, where that is to be no terminal."""
        self._ours, theirs = pty.openpty()
        self._shown = b""
        self._process = subprocess.Popen(
            [*command, *map(str, words)],
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm"},
            start_new_session=True,
            # Controlled by it, so that what is typed there can interrupt.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    @property
    def shown(self) -> str:
        """What was shown so far, without colours and line ends as in a file."""
        text = re.sub(r"\x1b\[[\d;]*m", "", self._shown.decode(errors="replace"))
        return text.replace("\r\n", "\n")

    def until(self, text: str) -> None:
        """Wait until the command has shown something."""
        while text not in self.shown:
            assert self._read(), f"it ended and never showed {text!r}:\n{self.shown}"

    def until_it_waits(self) -> None:
        """Wait until the command sleeps, as it does once it reads an answer.

        A signal that comes between a question and the reading is noticed after the answer.
        """
        stat = Path(f"/proc/{self._process.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "it to wait")

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._ours, text.encode())

    def end(self) -> tuple[str, int]:
        """Wait for the end; return what was shown and the exit code."""
        while self._read():
            pass
        return self.shown, self._process.wait(30)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], 30)
        assert ready, f"it went silent after:\n{self.shown}"
        try:
            part = os.read(self._ours, 65536)
        except OSError:
            return False  # EIO: the other end is closed
        self._shown += part
        return bool(part)


def on_terminal(
    *words: str | Path, answer: str = "", command: list[str] = PROGRAM, stdout: int | None = None
) -> tuple[str, int]:
    """Run a command on a terminal of its own; return what it showed and its exit code."""
    with Terminal(*words, command=command, stdout=stdout) as terminal:
        terminal.type(answer)
        return terminal.end()
