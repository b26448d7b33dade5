"""The levels at which a tree can be served, and the one that the tests run at (``--level``)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Literal, get_args

Level = Literal["plain", "tap", "passthrough"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""From the fewest means to the most."""

_OPTION: dict[Level, str] = {"plain": "no-tap", "tap": "no-passthrough"}
_SWITCHES = ("tap", "passthrough")

_chosen: Level = "passthrough"


def choose(level: Level) -> None:
    """Set the level that the tests run at."""
    global _chosen
    _chosen = level


def chosen() -> Level:
    """The level that the tests run at."""
    return _chosen


def reaches(level: Level) -> bool:
    """Whether trees are served at this level or a higher one, as far as this machine allows."""
    return LEVELS.index(level) <= min(LEVELS.index(_chosen), LEVELS.index(attainable()))


def mount_options() -> list[str]:
    """The words that have ``volfs mount`` serve at the chosen level: ``-o no-tap``, or nothing."""
    return ["-o", _OPTION[_chosen]] if _chosen in _OPTION else []


def with_level(options: Mapping[str, str | bool]) -> dict[str, str | bool]:
    """Options of the mount factory with the chosen level's, unless they name a level already."""
    named = any(name.removeprefix("no_") in _SWITCHES for name in options)
    if named or _chosen not in _OPTION:
        return dict(options)
    return {**options, _OPTION[_chosen].replace("-", "_"): True}


def attainable(user: int = 0) -> Level:
    """The highest level that a mount of this user can have on this machine.

    Passthrough is in Linux since 6.9 and asks for CAP_SYS_ADMIN.
    """
    if user or os.geteuid() != 0:
        return "tap"
    major, minor = map(int, re.findall(r"\d+", os.uname().release)[:2])
    return "passthrough" if (major, minor) >= (6, 9) else "tap"


def expected(options: Mapping[str, str | bool], user: int = 0) -> Level:
    """The level at which a mount with these options of the factory has to be served."""
    wanted: Level = "passthrough"
    if not _is_on("passthrough", options):
        wanted = "tap"
    if not _is_on("tap", options):
        wanted = "plain"
    return min(wanted, attainable(user), key=LEVELS.index)


def _is_on(switch: str, options: Mapping[str, str | bool]) -> bool:
    return options.get(switch) not in (False, "no") and not options.get(f"no_{switch}")
