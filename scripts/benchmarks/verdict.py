"""What volfs has to reach, and whether a run shows that it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from benchmarks.comparison import Row, mean_to_fastest_peer, ratio, to_fastest_peer
from benchmarks.filesystems import NATIVE, TAP, VOLFS
from benchmarks.trees import NEW_FILE
from benchmarks.workloads import Group

SAME_SPEED = 1.03
"""Medians whose ratio is no larger count as equal: two runs of one thing differ as much."""
_NEW_FILE_REQUESTS = ("LOOKUP", "CREATE", "GETXATTR", "RELEASE")
_ENTERING = 0.05
"""Requests per call that come from entering the directory, not from the call."""


@dataclass(frozen=True, slots=True)
class _Finding:
    """The figure for a target, None if there is none, and where it comes from."""

    value: float | None
    detail: str


_Rows = dict[str, list[Row]]
"""The rows of a result by pinning and group."""
_Find = Callable[[_Rows, float], _Finding | None]


@dataclass(frozen=True, slots=True)
class _Target:
    """``find`` computes a figure from the rows of a result; it must be ``limit`` or less."""

    name: str
    limit: float
    find: _Find


def _key(pin: str, group: str) -> str:
    return f"{pin} {group}"


def _worst(
    fs: str,
    compare: Callable[[Row, str], float | None],
    pin: str,
    group: Group,
    names: Sequence[str] = (),
) -> _Find:
    """The largest ratio among the rows of a group, or those of them that ``names`` lists."""

    def find(rows: _Rows, limit: float) -> _Finding | None:
        chosen = rows.get(_key(pin, group.value), [])
        chosen = [row for row in chosen if fs in row["filesystems"]]
        chosen = [row for row in chosen if not names or row["name"] in names]
        failed = [row["title"] for row in chosen if row["filesystems"][fs]["error"]]
        if failed:
            return _Finding(None, f"failed: {', '.join(failed)}")
        ratios = [(v, row["title"]) for row in chosen if (v := compare(row, fs)) is not None]
        if not ratios:
            return None
        worst, title = max(ratios)
        above = sum(value > limit for value, _ in ratios)
        return _Finding(worst, title + (f"; {above} of {len(ratios)} above" if above else ""))

    return find


def _to_native(row: Row, fs: str) -> float | None:
    return ratio(row, fs, NATIVE)


def _mean(pin: str) -> _Find:
    """The geometric mean of all uncached metadata, to the peer that has the smallest."""

    def find(rows: _Rows, limit: float) -> _Finding | None:
        chosen = rows.get(_key(pin, Group.UNCACHED.value), [])
        found = mean_to_fastest_peer(chosen, VOLFS)
        return _Finding(found[0], f"fastest peer: {found[1]}") if found else None

    return find


def _new_file(rows: _Rows, limit: float) -> _Finding | None:
    """How many requests a new file takes beyond its four, and beyond one of each."""
    for row in chain.from_iterable(rows.values()):
        counts = row["filesystems"].get(VOLFS, {}).get("requests")
        if row["name"] == NEW_FILE and counts is not None:
            beyond = sum(
                max(0.0, count - (1 + _ENTERING if name in _NEW_FILE_REQUESTS else 0))
                for name, count in counts.items()
            )
            return _Finding(beyond, requests(counts))
    return None


def requests(counts: dict[str, float]) -> str:
    """Requests per call as text: "LOOKUP 1, GETATTR 0.02"."""
    return ", ".join(f"{name} {count:,.2f}".removesuffix(".00") for name, count in counts.items())


_TREES = ("files/untar", "files/clone", "files/status", "files/read-all", "files/rm")
_CACHED = ("cached/stat", "cached/readlink", "cached/absent", "cached/list")
_SPLIT, _SAME = "split", "same"

_TARGETS = (
    _Target("data: 0.95 of native speed", 1 / 0.95, _worst(VOLFS, _to_native, _SPLIT, Group.DATA)),
    _Target(
        "data: never slower than a peer", SAME_SPEED,
        _worst(VOLFS, to_fastest_peer, _SPLIT, Group.DATA),
    ),
    _Target(
        "data, no passthrough: 0.8 of the fastest peer's speed", 1 / 0.8,
        _worst(TAP, to_fastest_peer, _SPLIT, Group.DATA),
    ),
    _Target("uncached, two processors: mean to the fastest peer", 1.0, _mean(_SPLIT)),
    _Target("uncached, one processor: mean to the fastest peer", 1.5, _mean(_SAME)),
    _Target(
        "uncached, two processors: each to the fastest peer", 2.0,
        _worst(VOLFS, to_fastest_peer, _SPLIT, Group.UNCACHED),
    ),
    _Target(
        "uncached, one processor: each to the fastest peer", 2.0,
        _worst(VOLFS, to_fastest_peer, _SAME, Group.UNCACHED),
    ),
    _Target(
        "cached: each to native", 1.1, _worst(VOLFS, _to_native, _SPLIT, Group.CACHED, _CACHED)
    ),
    _Target(
        "trees: each faster than every peer", 1.0,
        _worst(VOLFS, to_fastest_peer, _SPLIT, Group.FILES, _TREES),
    ),
    _Target("new small file: requests beyond one of each of four", 0.0, _new_file),
)  # fmt: skip


def judge(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each target with its figure; ``met`` is None where the runs do not show it."""
    rows: _Rows = {}
    for run in runs:
        for row in run["workloads"]:
            rows.setdefault(_key(run["pin"], row["group"]), []).append(row)
    verdicts = []
    for target in _TARGETS:
        finding = target.find(rows, target.limit)
        value = finding.value if finding else None
        verdicts.append(
            {
                "target": target.name,
                "limit": round(target.limit, 3),
                "value": None if value is None else round(value, 3),
                "met": None if finding is None else value is not None and value <= target.limit,
                "detail": finding.detail if finding else "not measured",
            }
        )
    return verdicts
