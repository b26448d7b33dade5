"""What every container runtime has to do in a volume bound to its /data."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

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
