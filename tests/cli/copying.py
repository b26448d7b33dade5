"""What the tests of clone, export and import have in common."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cli.running import Result
from tests.interpreter import Piped

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
