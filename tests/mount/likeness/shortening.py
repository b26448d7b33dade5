"""Shortening: which steps of a sequence it takes to show a difference."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tests.mount.likeness.calls import Step


def shorten(
    steps: Sequence[Step], shows: Callable[[list[Step]], bool], seconds: float
) -> list[Step]:
    """Leave out what can be left out while ``shows`` is true of what is left, for some time."""
    end = time.monotonic() + seconds
    left = list(steps)
    size = len(left) // 2
    while size:
        start, removed = len(left), False
        while start > 0 and time.monotonic() < end:
            start = max(start - size, 0)
            candidate = left[:start] + left[start + size :]
            if shows(candidate):
                left, removed = candidate, True
        if not (removed and size == 1):
            size //= 2
        if time.monotonic() > end:
            break
    return left
