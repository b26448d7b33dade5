"""What every container runtime has to do with a volume bound to its /data."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from tests.clients.programs import finish
from tests.clients.volumes import VolumeDir
from tests.conftest import wait_for

ANSWER_TWICE = """
for side in tree data; do
    until [ -s /data/question-$side ]; do sleep 0.05; done
    cat /data/question-$side > /data/answer-$side
done
until [ -e /data/bye ]; do sleep 0.05; done
"""
"""For the container's shell: answer what is asked through the tree, then behind the mount, and
stay until told to go."""


@dataclass(frozen=True)
class Engine(ABC):
    """docker or podman, with storage below ``base`` that holds one image."""

    base: Path
    image: ClassVar[str]

    @abstractmethod
    def __call__(self, *words: str | os.PathLike[str], fails: bool = False) -> str:
        """Run a command of the client and return what it printed."""

    @abstractmethod
    def remove_all(self) -> None:
        """End and remove what containers there are."""

    def start(self, volume: VolumeDir, script: str, *options: str) -> str:
        """Start a container that has the volume at /data; return its id."""
        return self(
            *("run", "--detach", "--network=none", *options),
            *("--volume", f"{volume.path}:/data", self.image, "sh", "-ec", script),
        ).strip()


def share_with_container(volume: VolumeDir, engine: Engine) -> None:
    """A container and the host work on a volume, which the container holds until it ends."""
    container = engine.start(volume, ANSWER_TWICE)
    converse(volume)
    volume.assert_busy()
    volume.assert_held_by(container)
    say_goodbye(volume)
    assert engine("wait", container).strip() == "0"
    volume.assert_held_by()
    volume.remove()


def share_with_process(volume: VolumeDir, process: subprocess.Popen[str]) -> None:
    """The same with a container in the foreground: a spawned process in which ANSWER_TWICE runs."""
    converse(volume)
    volume.assert_busy()
    say_goodbye(volume)
    finish(process)
    volume.remove()


def converse(volume: VolumeDir) -> None:
    """Ask the shell that runs ANSWER_TWICE from both sides, and see its answers on both."""
    for side in ("tree", "data"):
        _appear(volume.side(side) / f"question-{side}", f"asked {side}")
        for seen_at in ("tree", "data"):
            answer = volume.side(seen_at) / f"answer-{side}"
            wait_for(partial(_is_filled, answer), f"{answer} from the container")
            assert answer.read_text() == f"asked {side}"


def say_goodbye(volume: VolumeDir) -> None:
    """Let the shell that runs ANSWER_TWICE go."""
    (volume.path / "bye").touch()


def _is_filled(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _appear(path: Path, text: str) -> None:
    """Make a file that is there only with its whole content."""
    half = path.with_name(path.name + ".half")
    half.write_text(text)
    os.rename(half, path)
