"""What a comparison has come to: a difference, and how much was done."""

from __future__ import annotations

import errno
import re
from collections import Counter
from typing import Any

from tests.mount.likeness.calls import USERS, Outcome, Step

_OF_BOTH = (
    *("chmod", "chown", "truncate", "utimensat", "stat", "statfs", "chdir"),
    *("setxattr", "getxattr", "listxattr", "removexattr"),
)
"""Calls on paths that are other calls on open files: fchmod(2) and so on."""


class DifferenceError(Exception):
    """What a sequence came to in a tree and not natively; ``steps`` are those up to there.

    ``kind`` is the same for what is likely to have the same cause.
    """

    def __init__(
        self, what: str, steps: list[Step], native: Any, tree: Any, *, seed: int | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.steps = steps
        self.native = native
        self.tree = tree
        self.seed = seed

    @property
    def kind(self) -> tuple[str, str]:
        what = re.sub(r"b(['\"]).*|since.*", "", self.what)
        return self.steps[-1].call[0] if self.steps else "", re.sub(r"\d+", "", what)

    def __str__(self) -> str:
        said = f"{said_of(self.steps[-1])}: {self.what}" if self.steps else self.what
        where = f"step {len(self.steps)}"
        if self.seed is not None:
            where = f"seed {self.seed}, {where}"
        return f"{where}, {said}\n  native {self.native!r}\n  tree   {self.tree!r}"


def said_of(step: Step) -> str:
    """A step in words."""
    name, *arguments = step.call
    return f"{USERS[step.user].name} {name}({', '.join(map(repr, arguments))})"


class Tally:
    """How often each call was made, and how often it succeeded or failed natively."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        self.succeeded: Counter[str] = Counter()
        self._errors: dict[str, Counter[int]] = {}

    def add(self, step: Step, outcome: Outcome) -> None:
        name = step.call[0]
        if name in _OF_BOTH and isinstance(step.call[1], int):
            name = f"f{name}"
        self.made[name] += 1
        if outcome[0]:
            self._errors.setdefault(name, Counter())[outcome[0]] += 1
        else:
            self.succeeded[name] += 1

    def share(self, name: str) -> float:
        """How much of what was made of a call has succeeded."""
        return self.succeeded[name] / self.made[name]

    def table(self) -> str:
        """A line for each call: number, how many of a hundred succeeded, the commonest errors."""
        lines = [f"{self.made.total()} calls, {self.succeeded.total()} of them succeeded"]
        for name in sorted(self.made):
            errors = [
                f"{errno.errorcode.get(number, number)} {count}"
                for number, count in self._errors.get(name, Counter()).most_common(4)
            ]
            lines.append(
                f"{name:16}{self.made[name]:8}{self.share(name):6.0%}  {', '.join(errors)}"
            )
        return "\n".join(lines)
