"""What is measured: each workload prepares a directory behind the mount and works in it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from benchmarks import fixtures
from benchmarks.filesystems import BenchError, Caching

MIB = 1 << 20
TIME_LIMIT = 300.0
"""Seconds one run of one workload may take before it counts as failed."""


class Group(Enum):
    """Workloads that belong together; the value is the heading they are shown under.

    ``UNCACHED`` runs with timeouts of 0 s, the others with 1 s.
    """

    UNCACHED = "Metadata, uncached"
    CACHED = "Metadata, cached"
    FILES = "Files"
    DATA = "One open file"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; data sizes in bytes."""

    names: int = 500
    listing: int = 10_000
    files: int = 2000
    repository: int = 1000
    data: int = 256 * MIB
    small_io: int = 16 * MIB


@dataclass(frozen=True, slots=True)
class Tools:
    """What workloads run with: programs and sources, all outside of the filesystems measured."""

    client: Path
    tar: Path
    repository: Path
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class Timing:
    """``ns`` nanoseconds for ``calls`` calls, entries, I/Os or whole runs."""

    ns: float
    calls: int


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of the table.

    ``prepare`` fills an empty directory on the backing filesystem, unseen by the filesystem under
    test; ``run`` then works in that directory through a fresh mount, after an untimed ``warm_up``
    if what counts is what comes after the first time. A workload that names a
    ``fixture`` only reads, or overwrites in place, so its directory is made once and shared.
    ``unit`` is what one call of its timing is.
    """

    name: str
    title: str
    group: Group
    unit: str
    prepare: Callable[[Tools, Path], None]
    run: Callable[[Tools, Path], Timing]
    warm_up: Callable[[Tools, Path], Timing] | None = None
    fixture: str | None = None

    @property
    def caching(self) -> Caching:
        return Caching.NEVER if self.group is Group.UNCACHED else Caching.AUTO


def run_client(tools: Tools, where: Path, operation: str, count: int, passes: int = 1) -> Timing:
    """Run the C client in ``where``; raises BenchError with its complaint if a call fails."""
    done = _checked([str(tools.client), operation, str(count), str(passes)], where)
    ns, calls = done.stdout.split()
    return Timing(int(ns), int(calls))


def _checked(
    command: Sequence[str], where: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, cwd=where, env=env, check=True, text=True, capture_output=True,
            timeout=TIME_LIMIT,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{Path(command[0]).name}: {error.stderr.strip()[-300:]}") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{Path(command[0]).name}: not done after {TIME_LIMIT:.0f} s") from None
    except OSError as error:
        raise BenchError(f"{Path(command[0]).name}: {error}") from None


def _timed(command: Sequence[str], where: Path, env: dict[str, str] | None = None) -> Timing:
    start = time.perf_counter_ns()
    _checked(command, where, env)
    return Timing(time.perf_counter_ns() - start, 1)


def _nothing(tools: Tools, directory: Path) -> None:
    pass


def _client(operation: str, passes: int = 1) -> Callable[[Tools, Path], Timing]:
    return lambda tools, where: run_client(tools, where, operation, tools.sizes.names, passes)


def _names(operation: str) -> Callable[[Tools, Path], None]:
    def prepare(tools: Tools, directory: Path) -> None:
        run_client(tools, directory, operation, tools.sizes.names)

    return prepare


def _prepare_listing(tools: Tools, directory: Path) -> None:
    run_client(tools, directory, "create", tools.sizes.listing)


def _metadata() -> list[Workload]:
    uncached, cached = Group.UNCACHED, Group.CACHED

    def calls(
        name: str, title: str, operation: str, before: str | None, *, again: bool = False
    ) -> Workload:
        prepare = _names(before) if before else _nothing
        run = _client(operation)
        warm_up = run if again else None
        return Workload(f"uncached/{name}", title, uncached, "call", prepare, run, warm_up)

    def repeated(
        name: str, title: str, operation: str, before: str | None, passes: int
    ) -> Workload:
        prepare = _names(before) if before else _nothing
        run, warm_up = _client(operation, passes), _client(operation)
        return Workload(f"cached/{name}", title, cached, "call", prepare, run, warm_up)

    def listing(group: Group, name: str, title: str, operation: str) -> Workload:
        run = _client(operation)
        warm_up = run if group is cached else None
        return Workload(
            name, title, group, "entry", _prepare_listing, run, warm_up, fixture="listing"
        )

    return [
        calls("stat", "stat, first time", "stat", "create"),
        calls("stat-again", "stat, again", "stat", "create", again=True),
        calls("open", "open + close", "open", "create"),
        calls("create", "create + close", "create", None),
        calls("rename", "rename", "rename", "create"),
        calls("unlink", "unlink", "unlink", "create"),
        calls("mkdir", "mkdir", "mkdir", None),
        calls("rmdir", "rmdir", "rmdir", "mkdir"),
        calls("absent", "stat of an absent name", "missing", None),
        listing(uncached, "uncached/list", "list, per entry", "list"),
        listing(uncached, "uncached/list-stat", "list + stat, per entry", "liststat"),
        repeated("stat", "stat", "stat", "create", 20),
        repeated("open", "open + close", "open", "create", 2),
        repeated("absent", "stat of an absent name", "missing", None, 20),
        listing(cached, "cached/list", "list, per entry", "list"),
        listing(cached, "cached/list-stat", "list + stat, per entry", "liststat"),
    ]


def _untar(tools: Tools, where: Path) -> Timing:
    return _timed(["tar", "-xf", str(tools.tar)], where)


def _prepare_tree(tools: Tools, directory: Path) -> None:
    tree = directory / "tree"
    tree.mkdir()
    _untar(tools, tree)


def _clone(tools: Tools, where: Path) -> Timing:
    # --no-local: a local clone would hard-link on the native directory and copy on the others.
    # No fsync: this is about the filesystem, not the disk.
    options = ["-c", "core.fsync=none", "-c", "gc.auto=0"]
    clone = ["git", *options, "clone", "-q", "--no-local", str(tools.repository), "clone"]
    return _timed(clone, where, fixtures.git_environment(tools.repository.parent))


def _files() -> list[Workload]:
    group = Group.FILES

    def of_names(name: str, title: str, operation: str, before: str | None) -> Workload:
        prepare = _names(before) if before else _nothing
        return Workload(f"files/{name}", title, group, "file", prepare, _client(operation))

    def remove(tools: Tools, where: Path) -> Timing:
        return _timed(["rm", "-rf", "tree"], where)

    return [
        of_names("write", "write a new 4 KiB file", "write", None),
        of_names("read", "read a 4 KiB file", "read", "write"),
        Workload("files/untar", "untar small files", group, "run", _nothing, _untar),
        Workload("files/clone", "git clone", group, "run", _nothing, _clone),
        Workload("files/rm", "rm -rf of small files", group, "run", _prepare_tree, remove),
    ]


def _data() -> list[Workload]:
    name = "file"

    def prepare(tools: Tools, directory: Path) -> None:
        fixtures.write_file(directory / name, tools.sizes.data)

    def io(order: str, action: str, block: int) -> Workload:
        rw = f"rand{action}" if order == "random" else action

        def run(tools: Tools, where: Path) -> Timing:
            amount = tools.sizes.small_io if block < MIB else tools.sizes.data
            # --invalidate=0: the file stays in the page cache of the backing filesystem.
            fio = ["fio", "--name=io", f"--filename={name}", f"--rw={rw}", f"--bs={block}"]
            fio += [f"--size={tools.sizes.data}", f"--io_size={amount}", "--ioengine=psync"]
            fio += ["--invalidate=0", "--overwrite=1", "--fallocate=none", "--output-format=json"]
            report = json.loads(_checked(fio, where).stdout)["jobs"][0][action]
            count = int(report["total_ios"])
            return Timing(float(report["lat_ns"]["mean"]) * count, count)

        size = "4 KiB" if block < MIB else "1 MiB"
        short = f"data/{order}-{action}-{size.replace(' ', '').lower()}"
        title = f"{order} {action}, {size}"
        return Workload(short, title, Group.DATA, "I/O", prepare, run, fixture="data")

    return [
        io(order, action, block)
        for block in (4096, MIB)
        for order in ("sequential", "random")
        for action in ("read", "write")
    ]


WORKLOADS = [*_metadata(), *_files(), *_data()]
