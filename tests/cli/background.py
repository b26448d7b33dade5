"""Mounting with a daemon in the background."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests import levels
from tests.cli.running import Result, program, running
from tests.conftest import is_mounted, wait_for
from tests.interpreter import Piped
from volfs.linux import syscalls


@dataclass
class Background:
    """Places for a mount whose daemon is in the background."""

    scope: Path
    mnt: Path
    log: Path

    def mount(self, *words: str) -> Result:
        options = levels.mount_options()
        return program("mount", self.scope, self.mnt, "--log-file", self.log, *options, *words)

    def foreground(self, environment: Mapping[str, str]) -> Piped:
        options = levels.mount_options()
        return Piped("mount", "-f", self.scope, self.mnt, *options, environment=environment)

    def umount(self, *words: str) -> Result:
        return program("umount", self.mnt, *words)

    def daemon(self) -> int:
        """The daemon's process id; fails when there is none."""
        (pid,) = self.daemons()
        return pid

    def daemons(self) -> list[int]:
        return running("mount", self.mnt)

    def ended(self) -> bool:
        return not self.daemons()


P = TypeVar("P", bound=Background)


@contextmanager
def ending(place: P) -> Iterator[P]:
    """With a mount point made; what is mounted or runs there in the end is ended."""
    place.mnt.mkdir()
    try:
        yield place
    finally:
        while is_mounted(place.mnt):
            syscalls.umount2(os.fsencode(place.mnt), syscalls.MNT_DETACH)
        for pid in place.daemons():
            os.kill(pid, signal.SIGTERM)
        wait_for(place.ended, "the daemon's end")
