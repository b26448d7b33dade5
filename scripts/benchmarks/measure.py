"""Rounds of workloads over filesystems, and the walk of a large tree."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.filesystems import (
    BenchError,
    Caching,
    FileSystem,
    Mounted,
    Site,
    log_tail,
    mounted,
)
from benchmarks.workloads import Timing, Tools, Workload, run_client

_GREETING = "greeting"
"""The directory whose files each fresh mount is asked about before anything is timed: it is a
running daemon that is measured, not one that starts."""
_GREETINGS = 100

_ENTERING = 10
"""A kind of request that is sent less often than this says nothing about the calls measured."""
_WALK_WIDTH = 100
"""Files in each directory of the tree that is walked."""


@dataclass(frozen=True, slots=True)
class Pinning:
    """Which processor the clients run on and which the daemons, for all alike."""

    name: str
    client: int
    daemon: int


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often everything is measured: the quick workloads and the others."""

    quick: int
    slow: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: its time, the daemon's, and the requests the daemon was sent in all."""

    timing: Timing
    daemon_ns: int
    requests: dict[str, int] | None


@dataclass(slots=True)
class Series:
    """One workload on one filesystem: a figure a round, in nanoseconds per call.

    ``daemon`` is the processor time of the daemon per call, ``requests`` what the daemon was sent
    per call in the last round, where it counts that. ``error`` says why there is nothing.
    """

    wall: list[float] = field(default_factory=list)
    daemon: list[float] = field(default_factory=list)
    requests: dict[str, float] | None = None
    error: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.wall) if self.wall and not self.error else None

    @property
    def daemon_median(self) -> float | None:
        return statistics.median(self.daemon) if self.daemon and not self.error else None

    def add(self, measured: Measured) -> None:
        calls = measured.timing.calls
        self.wall.append(measured.timing.ns / calls)
        self.daemon.append(measured.daemon_ns / calls)
        if measured.requests is not None:
            self.requests = {name: n / calls for name, n in measured.requests.items()}


Results = dict[str, dict[str, Series]]
"""By name of workload, then of filesystem."""


def run_rounds(
    workloads: Sequence[Workload],
    filesystems: Sequence[FileSystem],
    site: Site,
    tools: Tools,
    pinning: Pinning,
    rounds: Rounds,
    progress: Callable[[str], None],
) -> Results:
    """Measure everything as often as ``rounds`` says.

    Each measurement has a fresh mount, so that no kernel cache and no daemon remembers an earlier
    one. Filesystems take turns within a workload, first ones first in turn, so that a slow spell
    of the machine falls on all of them. A filesystem that fails a workload is left out of it.
    """
    os.sched_setaffinity(0, {pinning.client})
    if not (site.data / _GREETING).exists():
        (site.data / _GREETING).mkdir()
        run_client(tools, site.data / _GREETING, "create", _GREETINGS)
    taking = {w.name: [fs for fs in filesystems if w.open_files or not fs.data_only]
              for w in workloads}  # fmt: skip
    results: Results = {name: {fs.name: Series() for fs in taking[name]} for name in taking}
    for turn in range(max(rounds.quick, rounds.slow)):
        for position, workload in enumerate(workloads):
            if turn >= (rounds.quick if workload.quick else rounds.slow):
                continue
            order = taking[workload.name]
            first = (turn + position) % len(order)
            for fs in (*order[first:], *order[:first]):
                progress(f"{pinning.name}, round {turn + 1}, {workload.name}, {fs.name}")
                series = results[workload.name][fs.name]
                if series.error is None:
                    try:
                        series.add(_measure(workload, fs, site, tools, pinning))
                    except (BenchError, OSError, subprocess.SubprocessError) as error:
                        series.error = str(error)
                        if fs.command and "did not mount" not in series.error:
                            series.error += f"\n{log_tail(site.log)}"
    return results


def _measure(
    workload: Workload, fs: FileSystem, site: Site, tools: Tools, pinning: Pinning
) -> Measured:
    name = workload.fixture or "run"
    directory = site.data / name
    ready = False
    try:
        if not (workload.fixture and directory.exists()):
            directory.mkdir()
            workload.prepare(tools, directory)
        ready = True
        with mounted(fs, site, workload.caching, pinning.daemon) as place:
            run_client(tools, place.data / _GREETING, "stat", _GREETINGS, 3)
            if workload.warm_up:
                workload.warm_up(tools, place.data / name)
            earlier, before = _requests(place), _requests(place)
            daemon_ns = place.daemon_ns()
            timing = workload.run(tools, place.data / name)
            daemon_ns = place.daemon_ns() - daemon_ns
            counted = _between(earlier, before, _requests(place)) if workload.countable else None
            return Measured(timing, daemon_ns, counted)
    finally:
        if not (workload.fixture and ready):
            shutil.rmtree(directory)


def _requests(place: Mounted) -> Counter[str] | None:
    counts = (place.counters() or {}).get("requests")
    return None if counts is None else Counter(counts)


def _between(
    earlier: Counter[str] | None, before: Counter[str] | None, after: Counter[str] | None
) -> dict[str, int] | None:
    """The requests from ``before`` to ``after``, most frequent first.

    Less those that reading the counters takes, which is what lies between ``earlier`` and
    ``before``, and less the few that it takes to enter the directory.
    """
    if earlier is None or before is None or after is None:
        return None
    asking = before - earlier
    counts = after - before - asking
    return {name: count for name, count in counts.most_common() if count >= _ENTERING}


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
    stats: dict[str, Any] | None = None
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
    for fs in (fs for fs in filesystems if not fs.data_only):
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
        place.counters(),
    )


def _resident(pid: int | None) -> int:
    """Memory of a process that is its own (not files mapped), in bytes."""
    if pid is None:
        return 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
