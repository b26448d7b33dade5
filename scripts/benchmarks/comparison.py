"""Ratios of times, from the rows that a run has in the JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.filesystems import PEERS

Row = dict[str, Any]


def time(row: Row, fs: str) -> float | None:
    """The median of ``fs`` in this row, in microseconds; None if it has none."""
    figures = row["filesystems"].get(fs)
    return figures["median_us"] if figures else None


def ratio(row: Row, fs: str, base: str) -> float | None:
    """Time of ``fs`` / time of ``base``; None if one has none."""
    return _divide(time(row, fs), time(row, base))


def to_fastest_peer(row: Row, fs: str) -> float | None:
    """Time of ``fs`` / time of the peer that is fastest in this row."""
    times = [value for peer in PEERS if (value := time(row, peer)) is not None]
    return _divide(time(row, fs), min(times, default=None))


def mean_ratio(rows: Sequence[Row], fs: str, base: str) -> float | None:
    """Geometric mean of ``fs`` / ``base`` over the rows that have both; None if there are none."""
    ratios = [value for row in rows if (value := ratio(row, fs, base)) is not None]
    return _geometric_mean(ratios) if ratios else None


def mean_to_fastest_peer(rows: Sequence[Row], fs: str) -> tuple[float, str] | None:
    """The largest of the mean ratios to each peer, and which peer that is."""
    means = [(mean, peer) for peer in PEERS if (mean := mean_ratio(rows, fs, peer)) is not None]
    return max(means, default=None)


def _divide(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))
