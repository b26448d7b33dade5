"""Mounting with a daemon in the background."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests import levels
from tests.cli.running import Result, program, running
from tests.interpreter import Piped


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
