"""Lengths of time, as people write them."""

from __future__ import annotations

import re

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as ``24h``, ``1h30m``, ``90`` (seconds) or ``0``.

    Raises ValueError, saying what would be one.
    """
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    if not re.fullmatch(r"([0-9]+[smhdw])+", text):
        raise ValueError(f"{text!r} is no duration; write it like 30m, 24h, 7d, 1h30m or 0")
    return float(sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"([0-9]+)([smhdw])", text)))
