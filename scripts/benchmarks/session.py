"""One run of the benchmark, from its options to its figures."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from benchmarks import fixtures, machine, postgres, report, requirements, verdict
from benchmarks.catalogue import WORKLOADS
from benchmarks.filesystems import (
    FILESYSTEMS,
    NATIVE,
    VOLFS,
    BenchError,
    Caching,
    FileSystem,
    Site,
    mounted,
)
from benchmarks.measure import Pinning, Rounds, run_rounds, run_walks
from benchmarks.workloads import Group, Sizes, Tools, Workload, run_client
from benchmarks.workplace import workplace

WALK = "walk"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: patterns of workloads' names, names of filesystems, how much and where.

    ``pin`` is "split", "same" or "both"; ``inodes`` is the size of the tree walked; ``install``
    says whether missing packages may be installed.
    """

    patterns: Sequence[str]
    filesystems: Sequence[str]
    sizes: Sizes
    rounds: Rounds
    inodes: int
    pin: str
    directory: Path
    in_place: bool
    install: bool


def run(plan: Plan, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns everything as it goes into the JSON. Raises BenchError if it cannot."""
    started = time.monotonic()
    workloads = [w for w in WORKLOADS if any(fnmatch(w.name, p) for p in plan.patterns)]
    walk = any(fnmatch(WALK, pattern) for pattern in plan.patterns)
    if not workloads and not walk:
        raise BenchError(f"no workload is named {plan.patterns}; --list shows the names")
    unknown = set(plan.filesystems) - set(FILESYSTEMS)
    if unknown:
        raise BenchError(f"unknown filesystem {', '.join(unknown)}: have {', '.join(FILESYSTEMS)}")
    skipped = {}
    without = postgres.missing()
    if without and any(w.postgres for w in workloads):
        workloads = [w for w in workloads if not w.postgres]
        skipped["PostgreSQL"] = without
    chosen = {NATIVE, *plan.filesystems}
    filesystems = [fs for name, fs in FILESYSTEMS.items() if name in chosen]
    in_place = plan.in_place or os.geteuid() != 0
    requirements.require(
        _programs(filesystems, workloads) | (set() if in_place else {"mkfs.ext4"}),
        libfuse="passthrough_ll" in chosen,
        install=plan.install,
    )
    # passthrough_ll holds a descriptor for every file it has seen.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    with workplace(plan.directory, in_place=in_place) as place:
        progress("preparing")
        site, tools = _prepare(place, filesystems, workloads, plan.sizes)
        levels = _levels(filesystems, site)
        pinnings = _pinnings(plan.pin)
        runs = []
        for pinning in pinnings:
            if pinning is pinnings[0]:
                chosen_workloads = workloads
            else:
                # Where the daemon runs matters most where everything waits for it.
                chosen_workloads = [w for w in workloads if w.group is Group.UNCACHED]
            results = run_rounds(
                chosen_workloads, filesystems, site, tools, pinning, plan.rounds, progress
            )
            rows = report.rows_json(results, chosen_workloads)
            runs.append(
                {
                    "pin": pinning.name,
                    "client_cpu": pinning.client,
                    "daemon_cpu": pinning.daemon,
                    "workloads": rows,
                    "means": report.means_json(rows),
                }
            )
        walks = {}
        if walk:
            walks = run_walks(filesystems, site, tools, pinnings[0], plan.inodes, progress)
        return {
            "machine": machine.describe(place, chosen),
            "rounds": {"metadata": plan.rounds.quick, "others": plan.rounds.slow},
            "sizes": {name: getattr(plan.sizes, name) for name in plan.sizes.__slots__},
            "commands": machine.command_lines(filesystems, site),
            "levels": levels,
            "skipped": skipped,
            "runs": runs,
            "walk": report.walks_json(walks),
            "verdict": verdict.judge(runs),
            "seconds": round(time.monotonic() - started),
        }


def _programs(filesystems: Sequence[FileSystem], workloads: Sequence[Workload]) -> set[str]:
    programs = {"gcc", "umount" if os.geteuid() == 0 else "fusermount3"}
    programs |= {fs.name for fs in filesystems} & {"bindfs", "mergerfs"}
    if any(fs.name == "passthrough_ll" for fs in filesystems):
        programs.add("pkg-config")
    if any(w.open_files and not w.postgres for w in workloads):
        programs.add("fio")
    if {"files/clone", "files/status"} & {w.name for w in workloads}:
        programs.add("git")
    return programs


def _prepare(
    place: Path, filesystems: Sequence[FileSystem], workloads: Sequence[Workload], sizes: Sizes
) -> tuple[Site, Tools]:
    """Make the volume, the sources and the programs."""
    site = Site(place / "scope", place / "mnt", place / "tools", place / "daemon.log")
    site.tools.mkdir()
    site.mountpoint.mkdir()
    tools = Tools(requirements.compile_client(site.tools), site.tools, sizes)
    names = {workload.name for workload in workloads}
    if names & {"files/untar", "files/read-all", "files/rm"}:
        fixtures.write_tar(tools.tar, sizes.files)
    if names & {"files/clone", "files/status"}:
        fixtures.write_repository(tools.repository, sizes.repository)
    if any(fs.name == "passthrough_ll" for fs in filesystems):
        requirements.compile_passthrough_ll(site.tools)
    if any(fs.name.startswith(VOLFS) for fs in filesystems):
        site.scope.mkdir()
        with mounted(FILESYSTEMS[VOLFS], site, Caching.NEVER, None, make_volume=True):
            pass
        if not site.data.is_dir():
            raise BenchError(f"mkdir in volfs's root made no {site.data}")
        # mergerfs goes there as the user who asks; a scope is closed to others.
        for directory in (site.data.parent, site.data.parent.parent, site.scope):
            directory.chmod(0o755)
    else:
        site.data.mkdir(parents=True)
    # A new filesystem is slower where no inode has been used yet; let no one measure that.
    for operation in ("create", "unlink", "mkdir", "rmdir"):
        run_client(tools, site.data, operation, sizes.listing)
    return site, tools


def _levels(filesystems: Sequence[FileSystem], site: Site) -> dict[str, str]:
    """The level that volfs says it serves at, for each of its ways of mounting."""
    levels = {}
    for fs in filesystems:
        if fs.name.startswith(VOLFS):
            with mounted(fs, site, Caching.AUTO, None) as place:
                levels[fs.name] = str((place.counters() or {}).get("level", "unknown"))
    return levels


def _pinnings(choice: str) -> list[Pinning]:
    cpus = sorted(os.sched_getaffinity(0))
    same = Pinning("same", cpus[0], cpus[0])
    if len(cpus) == 1:
        return [same]
    split = Pinning("split", cpus[0], cpus[1])
    return {"split": [split], "same": [same], "both": [split, same]}[choice]


def failed(result: dict[str, Any]) -> bool:
    """Whether there is a workload without a figure for volfs itself."""
    rows = [row["filesystems"] for run in result["runs"] for row in run["workloads"]]
    figures = [row[VOLFS] for row in rows if VOLFS in row]
    walk = result["walk"].get(VOLFS)
    return any(figure["error"] for figure in (*figures, *([walk] if walk else [])))
