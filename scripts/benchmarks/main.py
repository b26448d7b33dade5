"""The command line of scripts/bench."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import chart, fixtures, report, requirements
from benchmarks.filesystems import (
    FILESYSTEMS,
    BenchError,
    Caching,
    FileSystem,
    Site,
    mounted,
)
from benchmarks.measure import Pinning, run_rounds, run_walks
from benchmarks.workloads import MIB, WORKLOADS, Group, Sizes, Tools, Workload, run_client
from benchmarks.workplace import workplace

_DESCRIPTION = """\
Measure volfs beside its peers and the bare directory, on this machine, in one run:
native, volfs, bindfs, mergerfs (Debian packages) and libfuse's passthrough_ll (its
source from Debian's libfuse3-dev, compiled for the run). The table shows medians as
multiples of native."""

_NOTES = """\
how it is kept fair:
  Every filesystem serves the same directories on the same backing filesystem: for root
  an ext4 image made for the run, else --dir itself. All have the same cache timeouts
  (0 s: each operation reaches the daemon; or 1 s), permissions checked by the kernel,
  one thread, and the daemon pinned to the same processor.
  Each measurement has a fresh mount, is preceded by 300 untimed stats of other files, and
  works on names that the mount has not seen, unless the line says "again" or "cached".
  Filesystems take turns within each workload.
  System calls are made by a C loop (client.c), so a time is the call and nothing else;
  untar, git and rm are the real programs. Data stays in the page cache: no disk is
  measured. passthrough_ll finds an inode by a linear search and keeps a descriptor for
  each, so it falls behind, and at last fails, on many files.
  --json records every command line, every round, and the daemon's processor time per
  call, which a busy machine disturbs less than it does the clock.

examples:
  scripts/bench --quick
  scripts/bench --only 'uncached/*' --fs volfs,bindfs --pin both
  scripts/bench --json scripts/bench.json --chart scripts/bench.svg
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 1 if volfs failed somewhere, 2 if nothing ran."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        if options.show:
            result = json.loads(options.show.read_text())
        else:
            result = _run(options, Console(stderr=True))
            if options.json:
                options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        report.show(result, console)
        if options.chart:
            chart.draw(result["runs"][0], options.chart)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; everything is unmounted and removed", file=sys.stderr)
        return 130
    return 1 if _failed(result) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=_DESCRIPTION,
        epilog=_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds, files and bytes: under 2 minutes")
    add("--full", action="store_true", help="untar and rm with 20,000 files rather than 2,000")
    add("--rounds", type=int, metavar="N", help="measure everything N times (default 5; quick 3)")
    add("--only", metavar="PATTERN,...", default="*", help="workloads by name; --list shows them")
    add("--fs", metavar="NAME,...", default=",".join(FILESYSTEMS), help="filesystems beside native")
    add(
        "--pin",
        choices=("split", "same", "both"),
        default="split",
        help="client and daemon on two processors (default), on one, or one run of each",
    )
    add("--inodes", type=int, metavar="N", help="files in the tree walked (default 100,000)")
    add("--dir", type=Path, default=Path("/tmp"), help="where to work (default /tmp; needs 2 GiB)")
    add("--in-place", action="store_true", help="work in --dir itself, not in an image made there")
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    add("--chart", type=Path, metavar="FILE.svg", help="draw the ratios (needs matplotlib)")
    add("--show", type=Path, metavar="FILE", help="no run: print and draw FILE, from --json")
    add("--install", action="store_true", help="install missing Debian packages first")
    add("--list", action=_ListAction, help="print the names of the workloads and end")
    return parser


class _ListAction(argparse.Action):
    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for workload in WORKLOADS:
            print(f"{workload.name:30} {workload.title}")
        print(f"{'walk':30} a large tree: time, memory and descriptors of each daemon")
        parser.exit()


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    patterns = options.only.split(",")
    workloads = [w for w in WORKLOADS if any(fnmatch(w.name, p) for p in patterns)]
    walk = any(fnmatch("walk", pattern) for pattern in patterns)
    if not workloads and not walk:
        raise BenchError(f"no workload is named {options.only}; --list shows the names")
    unknown = set(options.fs.split(",")) - set(FILESYSTEMS)
    if unknown:
        raise BenchError(f"unknown filesystem {', '.join(unknown)}: have {', '.join(FILESYSTEMS)}")
    chosen = {"native", *options.fs.split(",")}
    filesystems = [fs for name, fs in FILESYSTEMS.items() if name in chosen]
    sizes = _sizes(options)
    rounds = options.rounds or (3 if options.quick else 5)
    inodes = options.inodes or (20_000 if options.quick else 100_000)
    in_place = options.in_place or os.geteuid() != 0
    requirements.require(
        _programs(filesystems, workloads) | (set() if in_place else {"mkfs.ext4"}),
        libfuse="passthrough_ll" in chosen,
        install=options.install,
    )
    # passthrough_ll holds a descriptor for every file it has seen.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    with workplace(options.dir, in_place=in_place) as place, console.status("") as status:
        site, tools = _prepare(place, filesystems, workloads, sizes)
        pinnings = _pinnings(options.pin)
        runs = []
        for pinning in pinnings:
            results = run_rounds(
                workloads, filesystems, site, tools, pinning, rounds, status.update
            )
            runs.append(
                {
                    "pin": pinning.name,
                    "client_cpu": pinning.client,
                    "daemon_cpu": pinning.daemon,
                    "workloads": report.results_json(results, workloads),
                    "means": report.means_json(results, workloads),
                }
            )
        walks = {}
        if walk:
            walks = run_walks(filesystems, site, tools, pinnings[0], inodes, status.update)
        return {
            "machine": _machine(place, chosen),
            "rounds": rounds,
            "sizes": {name: getattr(sizes, name) for name in sizes.__slots__},
            "commands": _commands(filesystems, site),
            "runs": runs,
            "walk": report.walks_json(walks),
        }


def _sizes(options: argparse.Namespace) -> Sizes:
    if options.quick:
        return Sizes(
            names=300, listing=2000, files=1000, repository=300, data=64 * MIB, small_io=4 * MIB
        )
    return Sizes(files=20_000) if options.full else Sizes()


def _programs(filesystems: Sequence[FileSystem], workloads: Sequence[Workload]) -> set[str]:
    programs = {"gcc", "umount" if os.geteuid() == 0 else "fusermount3"}
    programs |= {fs.name for fs in filesystems} & {"bindfs", "mergerfs"}
    if any(fs.name == "passthrough_ll" for fs in filesystems):
        programs.add("pkg-config")
    if any(w.group is Group.DATA for w in workloads):
        programs.add("fio")
    if any(w.name == "files/clone" for w in workloads):
        programs.add("git")
    return programs


def _prepare(
    place: Path, filesystems: Sequence[FileSystem], workloads: Sequence[Workload], sizes: Sizes
) -> tuple[Site, Tools]:
    """Make the volume, the sources and the programs; each filesystem must mount once."""
    site = Site(place / "scope", place / "mnt", place / "tools", place / "daemon.log")
    site.tools.mkdir()
    site.mountpoint.mkdir()
    client = requirements.compile_client(site.tools)
    tools = Tools(client, place / "files.tar", place / "repository.git", sizes)
    names = {workload.name for workload in workloads}
    if names & {"files/untar", "files/rm"}:
        fixtures.write_tar(tools.tar, sizes.files)
    if "files/clone" in names:
        fixtures.write_repository(tools.repository, sizes.repository)
    if any(fs.name == "passthrough_ll" for fs in filesystems):
        requirements.compile_passthrough_ll(site.tools)
    if any(fs.name == "volfs" for fs in filesystems):
        site.scope.mkdir()
        with mounted(FILESYSTEMS["volfs"], site, Caching.NEVER, None, make_volume=True):
            pass
        if not site.data.is_dir():
            raise BenchError(f"mkdir in volfs's root made no {site.data}")
    else:
        site.data.mkdir(parents=True)
    # A new filesystem is slower where no inode has been used yet; let no one measure that.
    for operation in ("create", "unlink", "mkdir", "rmdir"):
        run_client(tools, site.data, operation, sizes.listing)
    return site, tools


def _pinnings(choice: str) -> list[Pinning]:
    cpus = sorted(os.sched_getaffinity(0))
    same = Pinning("same", cpus[0], cpus[0])
    if len(cpus) == 1:
        return [same]
    split = Pinning("split", cpus[0], cpus[1])
    return {"split": [split], "same": [same], "both": [split, same]}[choice]


def _machine(place: Path, chosen: set[str]) -> dict[str, Any]:
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    versions = {
        "bindfs": ["bindfs", "--version"],
        "mergerfs": ["mergerfs", "-V"],
        "libfuse": ["pkg-config", "--modversion", "fuse3"],
        "volfs": [sys.executable, "-m", "volfs", "--version"],
    }
    asked = {name for name in versions if name in chosen or name == "libfuse"}
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "model": model[0] if model else platform.machine(),
        "backing": _backing(place),
        "versions": {name: _first_line(versions[name]) for name in sorted(asked)},
    }


def _backing(place: Path) -> str | None:
    """Type and mount options of the filesystem everything works on."""
    command = ["findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", str(place)]
    line = _first_line(command)
    return " ".join(line.split()) if line else None


def _first_line(command: Sequence[str]) -> str | None:
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def _commands(filesystems: Sequence[FileSystem], site: Site) -> dict[str, dict[str, str]]:
    """Each filesystem's command lines, with the run's own paths in short."""
    short = {
        str(site.tools) + "/": "",
        str(site.data.parent): "DIR",
        str(site.scope): "SCOPE",
        str(site.mountpoint): "MNT",
        sys.executable: "python",
    }
    commands: dict[str, dict[str, str]] = {}
    for fs in filesystems:
        if fs.command is None:
            continue
        lines = {}
        for caching in Caching:
            line = " ".join(fs.command(site, caching))
            for long, brief in short.items():
                line = line.replace(long, brief)
            lines[f"{caching.value} s"] = line
        commands[fs.name] = lines
    return commands


def _failed(result: dict[str, Any]) -> bool:
    """Whether volfs, of all, has a workload without a figure."""
    rows = [row["filesystems"] for run in result["runs"] for row in run["workloads"]]
    figures = [row["volfs"] for row in rows if "volfs" in row]
    walk = result["walk"].get("volfs")
    return any(figure["error"] for figure in (*figures, *([walk] if walk else [])))
