"""Running other people's programs: found or skipped, bounded in time, ended by their pid."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import pytest

from tests.conftest import wait_for

DEADLINE = 30.0
"""Seconds within which anything a test waits for has to happen."""


def require(*programs: str) -> None:
    """Skip the test, naming the programs that are not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def require_root() -> None:
    """Skip the test unless it runs as root, which the runtimes and changes of user need."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


def run(
    *command: str | os.PathLike[str],
    fails: bool = False,
    stdin: str | None = None,
    timeout: float = 60.0,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    user: int | None = None,
) -> str:
    """Run a command to its end and return what it printed, both streams together.

    Its failure fails the test with that output; with ``fails`` its success does. ``env`` is
    added to this process's environment. ``user`` runs it as that user and group, with no other
    groups.
    """
    process = subprocess.Popen(
        [os.fspath(word) for word in command],
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="surrogateescape",
        cwd=cwd,
        env={**os.environ, **(env or {})},
        # A group of their own, so that its children can be ended with it.
        process_group=0,
        **identity(user),
    )
    try:
        output, _ = process.communicate(stdin, timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        end(process)
        raise
    ended = f"{' '.join(map(str, command))}\nended with {process.returncode}:\n{output}"
    assert (process.returncode != 0) == fails, ended
    return output


def spawn(*command: str | os.PathLike[str], user: int | None = None) -> subprocess.Popen[str]:
    """Start a command with no input, both of its streams in one pipe; see finish and end."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **identity(user),
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a spawned process to end in success; return what it printed."""
    output, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, output
    return output


@contextmanager
def daemon(log: Path, ready: str, *command: str | os.PathLike[str]) -> Iterator[None]:
    """A server that runs from when its log says ``ready``, and is ended by SIGTERM."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    try:
        wait_for(
            lambda: process.poll() is not None or ready in log.read_text(errors="replace"),
            str(command[0]),
        )
        assert process.poll() is None, log.read_text(errors="replace")
        yield
    finally:
        end(process, by=signal.SIGTERM)


class Identity(TypedDict, total=False):
    """The arguments of subprocess that say as whom a child runs."""

    user: int
    group: int
    extra_groups: list[int]


def identity(user: int | None) -> Identity:
    """As whom a child runs: ``user`` and the group of that number, or ourselves for None."""
    return {} if user is None else {"user": user, "group": user, "extra_groups": []}


def end(process: subprocess.Popen[str], *, by: signal.Signals = signal.SIGKILL) -> int:
    """End one child, by its pid, and return its exit status; kill it if it does not obey."""
    if process.poll() is None:
        process.send_signal(by)
    try:
        process.wait(DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(DEADLINE)
        raise
    finally:
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return process.returncode
