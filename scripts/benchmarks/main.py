"""The command line of scripts/bench."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import chart, report, session
from benchmarks.catalogue import WORKLOADS
from benchmarks.filesystems import DEFAULT, FILESYSTEMS, OTHER, BenchError, other_checkout
from benchmarks.measure import Rounds
from benchmarks.workloads import QUICK, Sizes

_WIDTH = 120
"""Columns of a report that goes to no terminal."""

_DESCRIPTION = """\
Measure volfs beside its peers and the bare directory, on this machine, in one run:
native, volfs, volfs-tap (--no-passthrough), bindfs, mergerfs (Debian packages) and
libfuse's passthrough_ll (its source from Debian's libfuse3-dev, compiled for the run);
with --fs also volfs-plain (--no-tap). The table shows medians as multiples of native,
the end of it what volfs has to reach and whether it does."""

_NOTES = """\
how it is kept fair:
  Every filesystem serves the same directories on the same backing filesystem: for root
  an ext4 image made for the run, else --dir itself. All have the same cache timeouts
  (0 s: each operation reaches the daemon; 1 s; for cached metadata a day, and the caching
  of listings and links where there is an option for it), permissions checked by the
  kernel, one thread, and the daemon pinned to the same processor.
  Each measurement has a fresh mount, is preceded by 300 untimed stats of other files, and
  works on names that the mount has not seen, unless the line says "again" or "cached".
  Filesystems take turns within each workload.
  System calls are made by a C loop (client.c), so a time is the call and nothing else;
  untar, git, find and rm are the real programs.
  Data path: fio, one thread, without fsync. The file stays in the page cache of the backing
  filesystem: no disk is measured. The first part of each run is not counted, so that the
  filesystem's own page cache is warm as well, except where the line says "first time" or
  "mmap". Fsync and databases: with fsync, after a sync of all that was written before;
  PostgreSQL has fsync on, small buffers and one client.
  Requests are counted by volfs itself, for metadata and files.
  passthrough_ll finds an inode by a linear search and keeps a descriptor for each, so it
  falls behind, and at last fails, on many files; it has no extended attributes by default,
  and creates everything as root, so that initdb, run by another user, fails.
  --json records every command line, every round, and the daemon's processor time per
  call, which a busy machine disturbs less than it does the clock.

examples:
  scripts/bench --quick
  scripts/bench --only 'uncached/*' --fs volfs,volfs-plain,bindfs
  scripts/bench --quick --fs volfs --other ../volfs-before
  scripts/bench --json scripts/bench.json --chart scripts/bench.svg
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code: 1 if volfs failed somewhere, 2 if nothing ran."""
    options = _parser().parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    try:
        if options.show:
            result = json.loads(options.show.read_text())
        else:
            with _progress() as progress:
                result = session.run(_plan(options), progress)
            if options.json:
                options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        report.show(result, console)
        if options.chart:
            chart.draw(result["runs"], options.chart)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; everything is unmounted and removed", file=sys.stderr)
        return 130
    return 1 if session.failed(result) else 0


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Where the run tells how far it is: one changing line, or in a log a line per round."""
    if sys.stderr.isatty():
        with Console(stderr=True).status("") as status:
            yield status.update
        return
    told: set[str] = set()

    def tell(text: str) -> None:
        stage = ", ".join(text.split(", ")[:2])
        if stage not in told:
            told.add(stage)
            print(f"{time.strftime('%H:%M:%S')} {stage}", file=sys.stderr, flush=True)

    yield tell


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=_DESCRIPTION,
        epilog=_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer rounds, files and bytes: about 4 minutes")
    add(
        "--rounds",
        type=int,
        metavar="N",
        help="measure everything N times (default: metadata 5, the rest 3; quick: 2 and 1)",
    )
    add("--only", metavar="PATTERN,...", default="*", help="workloads by name; --list shows them")
    add("--fs", metavar="NAME,...", default=",".join(DEFAULT), help="filesystems beside native")
    add(
        "--other",
        type=Path,
        metavar="CHECKOUT",
        help="the volfs of another checkout as well, as volfs-other: what a change costs",
    )
    add(
        "--pin",
        choices=("split", "same", "both"),
        default="both",
        help="client and daemon on two processors, on one, or (default) all on two and then the "
        "uncached metadata on one",
    )
    add("--inodes", type=int, metavar="N", help="files in the tree walked (default 100,000)")
    add("--dir", type=Path, default=Path("/tmp"), help="where to work (default /tmp; needs 4 GiB)")
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
        print(f"{session.WALK:30} a large tree: time, memory and descriptors of each daemon")
        parser.exit()


def _plan(options: argparse.Namespace) -> session.Plan:
    rounds = Rounds(2, 1) if options.quick else Rounds(5, 3)
    if options.rounds:
        rounds = Rounds(options.rounds, options.rounds)
    chosen = options.fs.split(",")
    if options.other:
        FILESYSTEMS[OTHER] = other_checkout(options.other)
        chosen.append(OTHER)
    return session.Plan(
        patterns=options.only.split(","),
        filesystems=chosen,
        sizes=QUICK if options.quick else Sizes(),
        rounds=rounds,
        inodes=options.inodes or (10_000 if options.quick else 100_000),
        pin=options.pin,
        directory=options.dir,
        in_place=options.in_place,
        install=options.install,
    )
