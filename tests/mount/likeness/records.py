"""Records: sequences written down, to be done again."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from tests.mount.likeness.calls import Step


def save(path: Path, steps: Iterable[Step]) -> None:
    """Write steps to a file, one on a line: user, look and call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{tuple(step)!r}\n" for step in steps))


def load(path: Path) -> list[Step]:
    """The steps that ``save`` wrote."""
    return [Step(*ast.literal_eval(line)) for line in path.read_text().splitlines()]
