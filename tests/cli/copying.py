"""What the tests of clone, export and import have in common."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from tests.cli.running import Result
from tests.interpreter import Piped
from tests.threads import again_and_again

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def run(*words: str | Path, data: bytes = b"") -> Result:
    """Run a command as a program that reads ``data``."""
    with Piped(*words) as process, ThreadPoolExecutor() as threads:

        def feed() -> None:
            with suppress(BrokenPipeError):  # it need not read all
                process.stdin.write(data)
                process.stdin.close()

        fed, err = threads.submit(feed), threads.submit(process.stderr.read)
        out = process.stdout.read()
        fed.result()
        return Result(process.wait(60), os.fsdecode(out), err.result().decode())


def busy(file: Path) -> AbstractContextManager[None]:
    """Somebody who changes a file all the time."""
    file.write_text("0")
    return again_and_again(lambda number: file.write_text(f"{number + 1}"), pause=0.001)


def staged(scope: Path, pattern: str) -> list[Path]:
    """What is there of a volume that is not published yet."""
    return list((scope / "trash").glob(f".new-*/_data/{pattern}"))
