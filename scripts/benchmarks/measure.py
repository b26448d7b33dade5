"""Rounds of workloads over filesystems, and the walk of a large tree."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.filesystems import BenchError, Caching, FileSystem, Mounted, Site, mounted
from benchmarks.workloads import Group, Timing, Tools, Workload, run_client

_GREETING = "greeting"
"""The directory whose files each fresh mount is asked about before anything is timed: it is a
running daemon that is measured, not one that starts."""
_GREETINGS = 100

_WALK_WIDTH = 100
"""Files to a directory of the tree that is walked."""


@dataclass(frozen=True, slots=True)
class Pinning:
    """Which processor the clients run on and which the daemons, for all alike."""

    name: str
    client: int
    daemon: int


@dataclass(slots=True)
class Series:
    """One workload on one filesystem: a figure a round, in nanoseconds per call.

    ``daemon`` is the processor time of the daemon per call. ``error`` says why there is nothing.
    """

    wall: list[float] = field(default_factory=list)
    daemon: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.wall) if self.wall and not self.error else None

    @property
    def daemon_median(self) -> float | None:
        return statistics.median(self.daemon) if self.daemon and not self.error else None

    def add(self, timing: Timing, daemon_ns: int) -> None:
        self.wall.append(timing.ns / timing.calls)
        self.daemon.append(daemon_ns / timing.calls)


Results = dict[str, dict[str, Series]]
"""By name of workload, then of filesystem."""


def run_rounds(
    workloads: Sequence[Workload],
    filesystems: Sequence[FileSystem],
    site: Site,
    tools: Tools,
    pinning: Pinning,
    rounds: int,
    progress: Callable[[str], None],
) -> Results:
    """Measure everything ``rounds`` times.

    Each measurement has a fresh mount, so that no kernel cache and no daemon remembers an earlier
    one. Filesystems take turns within a workload, first ones first in turn, so that a slow spell
    of the machine falls on all of them. A filesystem that fails a workload is left out of it.
    """
    os.sched_setaffinity(0, {pinning.client})
    if not (site.data / _GREETING).exists():
        (site.data / _GREETING).mkdir()
        run_client(tools, site.data / _GREETING, "create", _GREETINGS)
    results: Results = {w.name: {fs.name: Series() for fs in filesystems} for w in workloads}
    for turn in range(rounds):
        for position, workload in enumerate(workloads):
            first = (turn + position) % len(filesystems)
            for fs in (*filesystems[first:], *filesystems[:first]):
                progress(f"round {turn + 1}, {workload.name}, {fs.name}")
                series = results[workload.name][fs.name]
                if series.error is None:
                    try:
                        series.add(*_measure(workload, fs, site, tools, pinning))
                    except (BenchError, OSError) as error:
                        series.error = str(error)
    return results


def _measure(
    workload: Workload, fs: FileSystem, site: Site, tools: Tools, pinning: Pinning
) -> tuple[Timing, int]:
    name = workload.fixture or "run"
    directory = site.data / name
    if not (workload.fixture and directory.exists()):
        directory.mkdir()
        workload.prepare(tools, directory)
    try:
        with mounted(fs, site, workload.caching, pinning.daemon) as place:
            run_client(tools, place.data / _GREETING, "stat", _GREETINGS, 3)
            if workload.warm_up:
                workload.warm_up(tools, place.data / name)
            before = place.daemon_ns()
            timing = workload.run(tools, place.data / name)
            return timing, place.daemon_ns() - before
    finally:
        if not workload.fixture:
            shutil.rmtree(directory)


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of ``values``, which are positive and at least one."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def mean_ratio(
    results: Results, workloads: Sequence[Workload], group: Group, fs: str, base: str
) -> float | None:
    """Geometric mean of ``fs`` / ``base`` over the workloads of ``group`` that both did."""
    ratios = []
    for workload in workloads:
        series = results[workload.name]
        if workload.group is group and fs in series and base in series:
            ours, theirs = series[fs].median, series[base].median
            if ours is not None and theirs is not None:
                ratios.append(ours / theirs)
    return geometric_mean(ratios) if ratios else None


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk with stat over a tree of ``entries`` by one filesystem.

    Nanoseconds per entry, then what the daemon holds afterwards: bytes of memory added per entry
    and open descriptors. ``stats`` are volfs's own counters. ``error`` says why there is nothing.
    """

    entries: int = 0
    ns_per_entry: float | None = None
    bytes_per_entry: float | None = None
    descriptors: int | None = None
    stats: dict[str, int] | None = None
    error: str | None = None


def run_walks(
    filesystems: Sequence[FileSystem],
    site: Site,
    tools: Tools,
    pinning: Pinning,
    inodes: int,
    progress: Callable[[str], None],
) -> dict[str, Walk]:
    """Walk one tree of ``inodes`` files, from a cold start, through each filesystem."""
    os.sched_setaffinity(0, {pinning.client})
    progress(f"making a tree of {inodes} files")
    tree = site.data / "walk"
    for number in range(0, inodes, _WALK_WIDTH):
        directory = tree / f"d{number // _WALK_WIDTH // 100:04}" / f"d{number:08}"
        directory.mkdir(parents=True)
        run_client(tools, directory, "create", min(_WALK_WIDTH, inodes - number))
    # Once untimed, so that the native walk does not pay for reading directories from disk.
    run_client(tools, tree, "walk", 1)
    walks = {}
    for fs in filesystems:
        progress(f"walk, {fs.name}")
        try:
            with mounted(fs, site, Caching.AUTO, pinning.daemon) as place:
                walks[fs.name] = _walk(place, tools)
        except (BenchError, OSError) as error:
            walks[fs.name] = Walk(error=str(error))
    progress("removing the tree")
    shutil.rmtree(tree)
    return walks


def _walk(place: Mounted, tools: Tools) -> Walk:
    top = place.data / "walk"
    top.stat()
    before = _resident(place.pid)
    timing = run_client(tools, top, "walk", 1)
    if place.pid is None:
        return Walk(timing.calls, timing.ns / timing.calls)
    return Walk(
        timing.calls,
        timing.ns / timing.calls,
        (_resident(place.pid) - before) / timing.calls,
        len(os.listdir(f"/proc/{place.pid}/fd")),
        _own_counters(place.data),
    )


def _resident(pid: int | None) -> int:
    """Memory of a process that is its own (not files mapped), in bytes."""
    if pid is None:
        return 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _own_counters(data: Path) -> dict[str, int] | None:
    try:
        counters = json.loads(os.getxattr(data.parent, "volfs.stats"))
    except OSError:
        return None
    return {str(name): int(value) for name, value in counters.items()}
