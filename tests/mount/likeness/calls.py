"""What a step of a sequence is, and what comes of it: plain values, to be sent and written down."""

from __future__ import annotations

from typing import Any, NamedTuple

Place = int | bytes | tuple[int, bytes | None]
"""Where a call works: on an open file, at a path, at a path below an open directory, or (with
None) on an open file by its name in /proc. Open files are known by numbers, their *slots*. A path
that begins with a slash begins at the top of what is compared."""

Call = tuple[Any, ...]
"""The name of a call, as Executor has it, and its arguments."""

Outcome = tuple[int, Any, tuple[Any, ...]]
"""Of a call: its errno or 0, what it returned, and how the files are that it was about."""

TARGET = 1
"""In Step.look: see afterwards how the files are that the call was about."""
PARENT = 2
"""In Step.look: see also how the directories are in which they are."""


class Step(NamedTuple):
    """One call of one user (an index of USERS)."""

    user: int
    look: int
    call: Call


class User(NamedTuple):
    """Somebody who makes calls; ``groups`` are supplementary."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


USERS = (
    User("root", 0, 0, ()),
    User("owner", 1000, 1000, (2000,)),
    User("member", 1001, 1001, (1000, 2000, 2001)),
    User("stranger", 1002, 1002, ()),
)
ROOT, OWNER, MEMBER, STRANGER = range(4)
