"""Daemons in the foreground, and the service manager that they tell how they are."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tests.interpreter import ROOT, Process

DEADLINE = 20.0
"""Seconds that anything awaited may take before the test fails."""


class ServiceManager:
    """Who is told that a daemon is ready (sd_notify(3)). A context that ends with its socket."""

    def __init__(self, address: Path | str) -> None:
        """``address`` is a path that is not there yet, or a name after ``@``."""
        self._address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if self._address.startswith("@"):
            self._socket.bind("\0" + self._address[1:])
        else:
            self._socket.bind(self._address)
            Path(address).chmod(0o777)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    @property
    def environment(self) -> Mapping[str, str]:
        """What a daemon finds it by."""
        return {"NOTIFY_SOCKET": self._address}

    def told(self, timeout: float = DEADLINE) -> list[str]:
        """The lines of the next message. Raises TimeoutError after these seconds."""
        self._socket.settimeout(timeout)
        return self._socket.recv(4096).decode().splitlines()

    def hears_ready(self, daemon: Process) -> bool:
        """Wait until the daemon is ready: true; or has ended or lets us wait too long: false."""
        for _ in range(int(DEADLINE * 10)):
            try:
                if "READY=1" in self.told(timeout=0.1):
                    return True
            except TimeoutError:
                if daemon.poll() is not None:
                    return False
        return False


@contextmanager
def foreground(
    *words: str | Path, environment: Mapping[str, str], command: Sequence[str]
) -> Iterator[subprocess.Popen[str]]:
    """A command with these words, its errors to be read; it is ended at the end."""
    with subprocess.Popen(
        [*command, *map(str, words)],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
