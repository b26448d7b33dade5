"""What the tests of clone, export and import have in common."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cli.running import Result
from tests.interpreter import PROGRAM, ROOT

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def run(*words: str | Path, data: bytes = b"") -> Result:
    """Run a command as a program that reads ``data``."""
    done = subprocess.run(
        [*PROGRAM, *words], input=data, capture_output=True, cwd=ROOT, check=False, timeout=60
    )
    return Result(done.returncode, os.fsdecode(done.stdout), done.stderr.decode())


@contextmanager
def started(*words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command at work, whose input and output are pipes."""
    process = subprocess.Popen(
        [*PROGRAM, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def busy(file: Path) -> Iterator[None]:
    """Somebody who changes a file all the time."""
    ended = threading.Event()

    def write() -> None:
        number = 0
        while not ended.wait(0.001):
            number += 1
            file.write_text(f"{number}")

    file.write_text("0")
    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def staged(scope: Path, pattern: str) -> list[Path]:
    """What is there of a volume that is not published yet."""
    return list((scope / "trash").glob(f".new-*/_data/{pattern}"))
